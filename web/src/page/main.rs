//! The page: draws what the worker reports. Here in a moment because nothing of the models is in it.

mod app;
mod client;
mod components;
mod failures;
mod folder;
mod state;

fn main() {
    console_error_panic_hook::set_once();
    app::mount();
}
