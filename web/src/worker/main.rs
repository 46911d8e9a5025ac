//! The worker: listens to the page, computes, reports. The only place where models run.

mod device;
mod download;
mod engine;
mod files;
mod gpu;
mod opfs;
mod scope;
mod store;
mod tries;

use device::choose_device;
use engine::{Engine, Unproved, survives};
use files::Files;
use opfs::File;
use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;
use web::protocol::{Aftermath, BundleSource, DeviceWish, Event, Failure, Request};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = addEventListener)]
    fn add_event_listener(kind: &str, listener: &js_sys::Function);
}

/// What outlives a request.
#[derive(Default)]
struct Worker {
    loading: Cell<bool>,
    engine: OnceCell<Engine>,
}

fn main() {
    scope::report_panics();
    let worker = Rc::new(Worker::default());
    let listener = Closure::<dyn FnMut(web_sys::MessageEvent)>::new(move |message: web_sys::MessageEvent| {
        // A request as text, and behind it the files that go with it.
        let parts = js_sys::Array::from(&message.data());
        let request = parts.shift().as_string().and_then(|text| serde_json::from_str(&text).ok());
        match request {
            Some(request) => worker.hear(request, parts.iter().map(|file| file.unchecked_into()).collect()),
            None => web_sys::console::error_2(&"not a request of this page:".into(), &message.data()),
        }
    });
    add_event_listener("message", listener.as_ref().unchecked_ref());
    listener.forget();
    // What is rejected without a panic ends here; a trap reaches the page as the worker's error.
    let lost = Closure::<dyn FnMut(JsValue)>::new(|event: JsValue| {
        let reason = js_sys::Reflect::get(&event, &"reason".into()).unwrap_or_default();
        scope::post(&Event::Failure(scope::after_death(format!("{reason:?}"))));
    });
    add_event_listener("unhandledrejection", lost.as_ref().unchecked_ref());
    lost.forget();
    scope::post(&Event::Booted);
}

impl Worker {
    fn hear(self: &Rc<Self>, request: Request, files: Vec<File>) {
        match request {
            Request::Load { bundle, device } if !self.loading.replace(true) => {
                spawn_local(self.clone().load(bundle, files, device))
            }
            Request::Load { .. } => {}
            Request::Ask { id, prompt, english, connection } => {
                let worker = self.clone();
                spawn_local(async move {
                    let Some(engine) = worker.engine.get() else { return };
                    if let Err(error) = engine.answer(id, &prompt, english.as_deref(), connection).await {
                        scope::post(&Event::Failure(answer_failure(&error)));
                    }
                });
            }
            Request::Stop => {
                if let Some(engine) = self.engine.get() {
                    engine.stop();
                }
            }
        }
    }

    async fn load(self: Rc<Self>, bundle: BundleSource, files: Vec<File>, device: DeviceWish) {
        let from_folder = matches!(bundle, BundleSource::Folder { .. });
        match Self::start(bundle, files, device).await {
            Ok(engine) => {
                let welcome = engine.welcome();
                self.engine.set(engine).ok();
                scope::post(&Event::Ready(welcome));
            }
            Err(reason) => scope::post(&Event::Failure(load_failure(reason, from_folder))),
        }
    }

    async fn start(bundle: BundleSource, given: Vec<File>, device: DeviceWish) -> Result<Engine, Unproved> {
        let files = Files::open(bundle, given).await.map_err(Unproved::Bundle)?;
        let config = files.config().map_err(Unproved::Bundle)?;
        // The device gets ready while the files travel.
        let candidate = choose_device(device, &config).await;
        Engine::start(&files, candidate).await
    }
}

fn load_failure(reason: Unproved, from_folder: bool) -> Failure {
    let (advice, detail) = match reason {
        Unproved::Bundle(detail) if from_folder => (
            "Choose the folder that the trainer exported, or export it again: one that was copied may lack files or have changed ones.",
            detail,
        ),
        Unproved::Bundle(detail) => (
            "Check the connection and reload. If it says the same again, the files on the server are not whole, or not of this \
             page's version: export the bundle again.",
            detail,
        ),
        Unproved::TooLarge(detail) => (
            "Use a browser with WebGPU, on a computer whose graphics card has the memory, or open a smaller bundle.",
            detail,
        ),
        Unproved::Device(detail) => (
            "Export the bundle again: not even the CPU gives the answers that it promises. Until then, open another one.",
            detail,
        ),
    };
    Failure {
        title: "The models could not be loaded".into(),
        advice: advice.into(),
        detail,
        aftermath: Aftermath::Dead,
    }
}

fn answer_failure(error: &cctuning::Error) -> Failure {
    let (title, advice, aftermath) = if survives(error) {
        ("This question cannot be answered", "Change the prompt and ask again.", Aftermath::Usable)
    } else {
        let advice =
            "Reload to open the device again. If it happens again, close other tabs, or run the models on the CPU.";
        ("The device stopped computing", advice, Aftermath::Dead)
    };
    Failure { title: title.into(), advice: advice.into(), detail: error.to_string(), aftermath }
}
