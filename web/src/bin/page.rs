//! The page: draws what the worker reports. Loads in a moment because nothing of the models is in it.

fn main() {
    console_error_panic_hook::set_once();
    web::app::mount();
}
