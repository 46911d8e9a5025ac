//! The parts of the page. Each shows some of the client's signals; none keeps state that another needs.

pub mod connection;
pub mod examples;
pub mod failure;
pub mod models;
pub mod pane;
pub mod prompt;
pub mod status;
pub mod switch;
