//! Vanilla beside CC-Tuned answers, computed in the visitor's browser.
//!
//! Two programs are built from this package. `page` draws and never computes; `worker` computes and never draws. They share
//! [`protocol`], what they say to each other, and [`folder`]. What else is here are rules of one of them that need no browser
//! and are tested without one: [`choice`] and [`text`] of the page, [`keep`] of the worker. Whatever it named, both would carry: Burn's GPU side registers itself at start-up, so that even an unused
//! mention of it costs the page 3 MB.

pub mod choice;
pub mod folder;
pub mod keep;
pub mod protocol;
pub mod text;
