//! The page and the worker: vanilla beside CC-Tuned answers, computed in the visitor's browser.
//!
//! Two programs are built from this crate. `page` draws and never computes; `worker` computes and never draws.
//! They share [`protocol`] and nothing else.

pub mod protocol;

/// The worker's side: files in, tokens out.
pub mod engine;
pub mod gpu;
pub mod scope;
pub mod weights;

/// The page's side: events in, pixels out.
pub mod app;
pub mod client;
pub mod components;
pub mod languages;
