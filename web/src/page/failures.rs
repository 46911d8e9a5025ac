//! The words for what goes wrong outside the worker.

use web::protocol::{Aftermath, Failure};

pub fn crashed(detail: String) -> Failure {
    Failure {
        title: "The program that runs the models has crashed".into(),
        advice: "Reload the models. If it happens again, close other tabs to free memory.".into(),
        detail,
        aftermath: Aftermath::Dead,
    }
}

/// The visitor has ended the loading.
pub fn stopped() -> Failure {
    Failure {
        title: "Loading was stopped".into(),
        advice: "Reload the models to go on. What this browser has kept of them is not fetched again.".into(),
        detail: "You stopped it.".into(),
        aftermath: Aftermath::Dead,
    }
}

pub fn no_worker(detail: String) -> Failure {
    Failure {
        title: "The program that runs the models could not start".into(),
        advice: "Reload the page. If it happens again, use a current browser: it needs WebAssembly with SIMD and module workers.".into(),
        detail,
        aftermath: Aftermath::Dead,
    }
}

pub fn unreadable(detail: String) -> Failure {
    Failure {
        title: "The page and its worker are of different versions".into(),
        advice: "Reload the page without the browser's cache (Ctrl+Shift+R).".into(),
        detail,
        aftermath: Aftermath::Dead,
    }
}

/// The models there were go on, if they did.
pub fn no_bundle(detail: String, aftermath: Aftermath) -> Failure {
    Failure {
        title: "This folder is no web bundle".into(),
        advice: "Choose the folder that the trainer exported; it holds a manifest.json.".into(),
        detail,
        aftermath,
    }
}

/// The address asks for a bundle where none can be.
pub fn bad_address(address: &str) -> Failure {
    Failure {
        title: "The address names no place of a bundle".into(),
        advice: "Behind ?bundle= belongs a path on this server, or an address that begins with https://.".into(),
        detail: format!("bundle={address}"),
        aftermath: Aftermath::Usable,
    }
}
