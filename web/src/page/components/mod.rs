//! The parts of the page. Each shows some of the client's signals; none keeps state that another needs.

pub mod connection;
pub mod examples;
pub mod failure;
pub mod models;
pub mod pane;
pub mod prompt;
pub mod status;
pub mod switch;

use leptos::prelude::document;
use wasm_bindgen::JsCast;
use web_sys::HtmlElement;

/// A button that goes away when it is pressed would take the focus with it: whoever pressed it goes on from the top.
pub fn focus_main() {
    let main = document().query_selector("main").ok().flatten();
    if let Some(main) = main.and_then(|main| main.dyn_into::<HtmlElement>().ok()) {
        main.focus().ok();
    }
}
