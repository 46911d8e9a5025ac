//! The page's handle on the worker: starts it, keeps what it reports as signals, asks it questions.
//!
//! Must not know: how anything looks.

use crate::failures::{crashed, no_bundle, no_worker, stopped, unreadable};
use crate::folder::Folder;
use crate::state::{FileState, Origin, PaneState, Phase, Question};
use leptos::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::prelude::*;
use web::protocol::{
    Aftermath, BundleSource, Connection, ConnectionReport, DeviceReport, DeviceWish, Event, ExamplePrompt, Failure,
    Pane, Request, SelfTestReport, Welcome,
};
use web::text::language_of;
use web_sys::{ErrorEvent, MessageEvent};

/// The module that starts the worker's program, beside the page.
const WORKER: &str = "start_worker.js";
/// Bytes between two announcements of a growing answer to a screen reader.
const ANNOUNCE_EVERY: usize = 60;
/// How long a screen reader may take until it begins with an answer; what is spoken need not be read a second time.
const SPOKEN_AFTER: Duration = Duration::from_secs(7);

#[wasm_bindgen]
extern "C" {
    type Worker;
    #[wasm_bindgen(constructor, catch)]
    fn new(url: &str, options: &JsValue) -> Result<Worker, JsValue>;
    #[wasm_bindgen(method, js_name = postMessage)]
    fn post(this: &Worker, message: &js_sys::Array);
    #[wasm_bindgen(method)]
    fn terminate(this: &Worker);
    #[wasm_bindgen(method, setter)]
    fn set_onmessage(this: &Worker, listener: Option<&js_sys::Function>);
    #[wasm_bindgen(method, setter)]
    fn set_onerror(this: &Worker, listener: Option<&js_sys::Function>);
}

/// Everything the page knows. Copies are handles on the same state.
#[derive(Clone, Copy)]
pub struct Client {
    pub phase: RwSignal<Phase>,
    pub origin: RwSignal<Origin, LocalStorage>,
    pub title: RwSignal<String>,
    /// Why the files will not be here at the next visit.
    pub not_kept: RwSignal<Option<String>>,
    /// The most bytes that the worker has held while it loaded.
    pub memory: RwSignal<Option<u64>>,
    pub files: RwSignal<Vec<FileState>>,
    pub device: RwSignal<Option<DeviceReport>>,
    pub self_test: RwSignal<Option<SelfTestReport>>,
    pub welcome: RwSignal<Option<Welcome>>,
    pub question: RwSignal<Option<Question>>,
    pub vanilla: PaneState,
    pub cc: PaneState,
    pub connected: RwSignal<Option<ConnectionReport>>,
    pub failure: RwSignal<Option<Failure>>,
    worker: StoredValue<Option<Rc<RunningWorker>>, LocalStorage>,
    /// Addresses with trailing slashes: the page's own bundle, and the one that its address asks for.
    own: StoredValue<String>,
    asked: StoredValue<Option<String>>,
    wish: StoredValue<DeviceWish>,
}

/// A worker with the listeners that must live as long as it does.
struct RunningWorker {
    worker: Worker,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
    _on_error: Closure<dyn FnMut(ErrorEvent)>,
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        self.worker.set_onmessage(None);
        self.worker.set_onerror(None);
        self.worker.terminate();
    }
}

impl Client {
    /// Starts the worker on the bundle `asked` for, else on the page's own; both are absolute addresses with a trailing
    /// slash.
    pub fn start(own: String, asked: Option<String>, device: DeviceWish) -> Self {
        let origin = asked.clone().map_or(Origin::Own, Origin::Address);
        let client = Client {
            phase: RwSignal::new(Phase::Starting),
            origin: RwSignal::new_local(origin),
            title: RwSignal::default(),
            not_kept: RwSignal::default(),
            memory: RwSignal::default(),
            files: RwSignal::default(),
            device: RwSignal::default(),
            self_test: RwSignal::default(),
            welcome: RwSignal::default(),
            question: RwSignal::default(),
            vanilla: PaneState::new(),
            cc: PaneState::new(),
            connected: RwSignal::default(),
            failure: RwSignal::default(),
            worker: StoredValue::new_local(None),
            own: StoredValue::new(own),
            asked: StoredValue::new(asked),
            wish: StoredValue::new(device.clone()),
        };
        client.start_worker(device);
        client
    }

    /// Shows the models of a visitor's folder; one without a bundle changes nothing.
    pub fn open_folder(self, folder: Folder) {
        let paths = folder.files.iter().map(|(path, _)| path.as_str());
        if web::folder::bundle_inside(paths).is_none() {
            return self.refuse_folder(web::folder::no_bundle(&folder.name, folder.files.len()));
        }
        self.origin.set(Origin::Folder(folder));
        self.start_worker(self.device_wish());
    }

    /// Says why a folder is not opened.
    pub fn refuse_folder(self, reason: String) {
        let dead = self.phase.get_untracked() == Phase::Dead;
        let aftermath = if dead { Aftermath::Dead } else { Aftermath::Usable };
        self.failure.set(Some(no_bundle(reason, aftermath)));
    }

    /// Leaves the visitor's folder for the bundle that the address asks for, and that one for the page's own.
    pub fn open_own(self) {
        let asked = self.asked.get_value().map(Origin::Address);
        let from_folder = matches!(self.origin.get_untracked(), Origin::Folder(_));
        self.origin.set(asked.filter(|_| from_folder).unwrap_or(Origin::Own));
        self.start_worker(self.device_wish());
    }

    /// The device that the visitor has chosen.
    pub fn device_wish(self) -> DeviceWish {
        self.wish.get_value()
    }

    /// Ends the worker there is and starts another on this device, which takes the files anew.
    pub fn start_worker(self, device: DeviceWish) {
        self.wish.set_value(device.clone());
        self.title.set(String::new());
        self.not_kept.set(None);
        self.memory.set(None);
        self.welcome.set(None);
        self.phase.set(Phase::Starting);
        self.files.set(Vec::new());
        self.device.set(None);
        self.self_test.set(None);
        self.failure.set(None);
        self.vanilla.clear();
        self.cc.clear();
        self.connected.set(None);
        self.question.set(None);
        let wish = Rc::new(RefCell::new(Some(device)));
        let on_message = Closure::new(move |message: MessageEvent| {
            let Some(text) = message.data().as_string() else { return };
            match serde_json::from_str(&text) {
                Ok(Event::Booted) => {
                    if let Some(device) = wish.borrow_mut().take() {
                        self.phase.set(Phase::Loading);
                        self.load(device);
                    }
                }
                Ok(event) => self.hear(event),
                Err(error) => self.fail(unreadable(error.to_string())),
            }
        });
        let on_error = Closure::new(move |error: ErrorEvent| {
            error.prevent_default();
            let message = js_sys::Reflect::get(&error, &"message".into()).ok().and_then(|text| text.as_string());
            // Before a device is named, WebGPU is at work if anything may be.
            let on_webgpu = self.device_wish() == DeviceWish::Best
                && self.device.with_untracked(|device| device.as_ref().is_none_or(|device| device.webgpu));
            match self.phase.get_untracked() {
                // The panic hook has already said it better.
                Phase::Dead => {}
                Phase::Starting => self.fail(no_worker(message.unwrap_or_else(unloaded))),
                Phase::Loading | Phase::Testing if on_webgpu => self.go_on_on_the_cpu(message.unwrap_or_default()),
                _ => self.fail(crashed(message.unwrap_or_default())),
            }
        });
        let options = js_sys::Object::new();
        js_sys::Reflect::set(&options, &"type".into(), &"module".into()).ok();
        match Worker::new(WORKER, &options) {
            Ok(worker) => {
                worker.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
                worker.set_onerror(Some(on_error.as_ref().unchecked_ref()));
                self.worker.set_value(Some(Rc::new(RunningWorker {
                    worker,
                    _on_message: on_message,
                    _on_error: on_error,
                })));
            }
            Err(_) => self.fail(no_worker(unloaded())),
        }
    }

    /// Asks both models. Does nothing unless the worker waits for a question.
    pub fn ask(self, prompt: String, connection: Connection) {
        if self.phase.get_untracked() != Phase::Ready || prompt.trim().is_empty() {
            return;
        }
        let id = self.question.get_untracked().map_or(1, |question| question.id + 1);
        let examples = self.examples_untracked();
        let example = examples.iter().find(|example| example.prompt.trim() == prompt.trim()).cloned();
        let english = example.as_ref().map(|example| example.english.clone());
        // An example with a space behind it would be other tokens, and another question.
        let prompt = example.as_ref().map_or(prompt, |example| example.prompt.clone());
        let question = Question { id, lang: language_of(&prompt, &examples), example, connection };
        self.vanilla.clear();
        self.cc.clear();
        self.connected.set(None);
        self.failure.set(None);
        self.question.set(Some(question));
        self.phase.set(Phase::Answering);
        self.send(&Request::Ask { id, prompt, english, connection });
    }

    /// Gives up the models on their way; what the browser has kept of them it keeps.
    pub fn stop_loading(self) {
        if self.phase.get_untracked() < Phase::Ready {
            self.fail(stopped());
        }
    }

    /// Ends the answer at its next token.
    pub fn stop(self) {
        if self.phase.get_untracked() == Phase::Answering {
            self.send(&Request::Stop);
        }
    }

    /// The bundle's examples, for event handlers.
    pub fn examples_untracked(self) -> Vec<ExamplePrompt> {
        self.welcome
            .with_untracked(|welcome| welcome.as_ref().map_or_else(Vec::new, |welcome| welcome.examples.clone()))
    }

    /// This pane's signals.
    pub fn pane(self, pane: Pane) -> PaneState {
        match pane {
            Pane::Vanilla => self.vanilla,
            Pane::CcTuned => self.cc,
        }
    }

    fn load(self, device: DeviceWish) {
        let (bundle, files) = match self.origin.get_untracked() {
            Origin::Own => (BundleSource::Address(self.own.get_value()), Vec::new()),
            Origin::Address(address) => (BundleSource::Address(address), Vec::new()),
            Origin::Folder(folder) => {
                let (paths, files) = folder.files.into_iter().unzip();
                (BundleSource::Folder { name: folder.name, paths }, files)
            }
        };
        self.send_with(&Request::Load { bundle, device }, files);
    }

    fn send(self, request: &Request) {
        self.send_with(request, Vec::new());
    }

    fn send_with(self, request: &Request, files: Vec<JsValue>) {
        let Ok(text) = serde_json::to_string(request) else { return };
        if let Some(running) = self.worker.get_value() {
            let message: js_sys::Array = std::iter::once(JsValue::from(text)).chain(files).collect();
            running.worker.post(&message);
        }
    }

    fn hear(self, event: Event) {
        if self.phase.get_untracked() == Phase::Dead {
            return;
        }
        match event {
            Event::Booted => {}
            Event::Files { title, files } => {
                let fresh = |size| FileState { size, kept: 0, fetched: 0, verified: false, repaired: false };
                self.files.set(files.into_iter().map(fresh).collect());
                self.title.set(title);
            }
            Event::Received { path, kept, fetched } => self.on_file(&path, |file| {
                file.kept = kept;
                file.fetched = fetched;
            }),
            Event::Verified { path, repaired } => self.on_file(&path, |file| {
                file.verified = true;
                file.repaired |= repaired;
            }),
            Event::NotKept(reason) => self.not_kept.set(Some(reason)),
            Event::Device(report) => {
                self.device.set(Some(report));
                // The second device takes every file anew.
                self.phase.set(Phase::Loading);
                self.files.update(|files| files.iter_mut().for_each(|file| file.verified = false));
            }
            Event::Loaded { memory } => {
                self.memory.set(Some(memory));
                self.phase.set(Phase::Testing);
            }
            Event::SelfTest(report) => self.self_test.set(Some(report)),
            Event::Ready(welcome) => {
                self.welcome.set(Some(welcome));
                self.phase.set(Phase::Ready);
            }
            Event::Connected { id, report } if self.is_current(id) => self.connected.set(Some(report)),
            Event::Text { id, pane, text, tokens } if self.is_current(id) => {
                let pane = self.pane(pane);
                pane.text.update(|answer| answer.push_str(&text));
                pane.tokens.set(tokens);
                let length = pane.text.with_untracked(String::len);
                if length >= pane.announced.with_untracked(String::len) + ANNOUNCE_EVERY {
                    pane.announced.set(pane.text.get_untracked());
                }
            }
            Event::Finished { id, pane, report } if self.is_current(id) => {
                let pane = self.pane(pane);
                pane.announced.set(pane.text.get_untracked());
                pane.tokens.set(report.tokens);
                pane.report.set(Some(report));
                let forget = move || {
                    if self.is_current(id) {
                        pane.announced.set(String::new());
                    }
                };
                set_timeout(forget, SPOKEN_AFTER);
            }
            Event::Done { id } if self.is_current(id) => self.phase.set(Phase::Ready),
            // Late words of an answer that another question has ended.
            Event::Connected { .. } | Event::Text { .. } | Event::Finished { .. } | Event::Done { .. } => {}
            Event::Failure(failure) if failure.aftermath == Aftermath::DeadOnWebGpu => {
                self.go_on_on_the_cpu(failure.detail)
            }
            Event::Failure(failure) => self.fail(failure),
        }
    }

    /// After a death on a WebGPU device that had not been proved.
    fn go_on_on_the_cpu(self, detail: String) {
        self.phase.set(Phase::Dead);
        let reason = format!(
            "WebGPU crashed before it had passed the self-test ({detail}). Close what else uses the graphics card's memory, or \
             update the browser or the graphics driver."
        );
        // Not from inside the dying worker's own listener, which this would drop.
        set_timeout(move || self.start_worker(DeviceWish::Cpu(reason)), Duration::ZERO);
    }

    fn fail(self, failure: Failure) {
        let usable = failure.aftermath == Aftermath::Usable;
        self.phase.set(if usable { Phase::Ready } else { Phase::Dead });
        if !usable && let Some(running) = self.worker.get_value() {
            // It would go on fetching, and hold its memory. It is dropped later: this may be its own listener.
            running.worker.terminate();
        }
        self.failure.set(Some(failure));
    }

    fn is_current(self, id: u32) -> bool {
        self.question.with_untracked(|question| question.as_ref().is_some_and(|question| question.id == id))
    }

    fn on_file(self, path: &str, change: impl FnOnce(&mut FileState)) {
        self.files.update(|files| {
            if let Some(file) = files.iter_mut().find(|file| file.size.path == path) {
                change(file);
            }
        });
    }
}

fn unloaded() -> String {
    format!("{WORKER} did not load")
}
