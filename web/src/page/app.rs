//! The page from top to bottom, and what its address may ask for.
//!
//! # Address
//! `?device=cpu` computes on the CPU; `?bundle=URL` opens another bundle: a path on this server, or an `https://` address
//! whose server lets this page read it.
//!
//! # Handles for tests (they keep their names)
//! - `main[data-phase]`: `starting loading testing ready answering dead`
//! - `#prompt` `#ask` `#stop`; `[data-lang=CODE]` chooses a language, `[data-example=N]` asks its N-th example
//! - `input[name=source][value=off|transform|identity|parallel]`, `select#layer` (empty: Decision Maker, else counted from 0)
//! - `#pane-vanilla` `#pane-cc`: `data-state=idle|running|complete|stopped`, `data-tokens`, `data-ids` (comma-separated, when
//!   complete), the text in `.answer`; `#gold` the expected answer
//! - `#connection[data-layer]`, its rows `[data-probability]`
//! - `#files[data-verified][data-total][data-kept][data-fetched][data-repaired]` (bytes that were here, bytes fetched, files),
//!   `[data-memory]` (most bytes the worker held while loading), `#not-kept`; `#models`, `input#folder`, `#own-models`
//! - `#stop-loading`
//! - `#device[data-webgpu]`, `#device-note`, `#self-test[data-passed]`
//! - `#failure[data-aftermath]` with `#failure-detail`; `#restart`, `#restart-cpu`

use crate::client::Client;
use crate::components::connection::ConnectionPanel;
use crate::components::failure::FailurePanel;
use crate::components::models::Models;
use crate::components::pane::PaneCard;
use crate::components::prompt::PromptCard;
use crate::components::status::{Loading, Status};
use crate::failures::bad_address;
use crate::state::{DEFAULT_CONNECTION, Phase};
use leptos::ev;
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web::protocol::{DeviceWish, ExamplePrompt, Pane};
use web_sys::{HtmlElement, Url};

/// Draws the page in place of its loading message.
pub fn mount() {
    let Some(place) = document().get_element_by_id("app").and_then(|element| element.dyn_into::<HtmlElement>().ok())
    else {
        return;
    };
    place.set_text_content(None);
    mount_to(place, App).forget();
}

#[component]
fn App() -> impl IntoView {
    let address = Address::read();
    let client = Client::start(address.own, address.asked, address.device);
    if let Some(refused) = address.refused {
        client.failure.set(Some(bad_address(&refused)));
    }
    let connection = RwSignal::new(DEFAULT_CONNECTION);
    window_event_listener(ev::keydown, move |event| {
        // An input method of its own uses the key to give up a word.
        if event.key() == "Escape" && !event.is_composing() {
            client.stop();
        }
    });
    view! {
        <header class="top">
            <img src="icon.svg" alt="" width="40" height="40"/>
            <h1>"Same question, two fine-tunings"</h1>
            <p class="lead">
                "One small multilingual model, fine-tuned twice on the same data. The second was " <strong>"CC-Tuned"</strong>
                ": while it learned to answer in other languages, it could lean on what one of its own layers makes of the question \
                 in English. Both run in your browser; nothing you type leaves it."
            </p>
        </header>
        <main tabindex="-1" data-phase=move || phase_name(client.phase.get())>
            <FailurePanel client/>
            <Loading client/>
            <PromptCard client connection/>
            <div id="panes" class="panes">
                <PaneCard client pane=Pane::Vanilla/>
                <PaneCard client pane=Pane::CcTuned/>
            </div>
            <Gold client/>
            <ConnectionPanel client/>
            <Status client/>
            <Models client/>
        </main>
        <footer>
            "The method: " <cite>"CC-Tuning"</cite> ", "
            <a href="https://arxiv.org/abs/2506.00875" rel="noreferrer">"arXiv 2506.00875"</a>
            ". Built in Rust with Leptos and Burn."
        </footer>
    }
}

/// The question in English and the right answer, once both panes have given theirs.
#[component]
fn Gold(client: Client) -> impl IntoView {
    let example = move || {
        let both = client.vanilla.report.get().is_some() && client.cc.report.get().is_some();
        both.then(|| client.question.get()?.example).flatten()
    };
    move || {
        example().map(|ExamplePrompt { lang, english, gold, .. }| {
            let question = (lang != "en").then(|| view! { <q lang="en">{english}</q> " " });
            view! { <p class="gold">{question} "Expected answer: " <bdi id="gold" dir="auto" lang=lang>{gold}</bdi></p> }
        })
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Loading => "loading",
        Phase::Testing => "testing",
        Phase::Ready => "ready",
        Phase::Answering => "answering",
        Phase::Dead => "dead",
    }
}

/// What the page's address asks for.
struct Address {
    /// The page's own bundle.
    own: String,
    /// Another bundle.
    asked: Option<String>,
    /// What was asked for and cannot be a bundle's address.
    refused: Option<String>,
    device: DeviceWish,
}

impl Address {
    fn read() -> Self {
        let here = document().base_uri().ok().flatten().unwrap_or_default();
        let page = window().location().href().ok().and_then(|href| Url::new(&href).ok());
        let wish = |name: &str| page.as_ref().and_then(|page| page.search_params().get(name));
        let device = match wish("device").as_deref() {
            Some("cpu") => DeviceWish::Cpu("the address asks for it. Remove device=cpu from it to use WebGPU.".into()),
            _ => DeviceWish::Best,
        };
        let folder = |path: &str| {
            let url = Url::new_with_base(path, &here)
                .ok()
                .filter(|url| ["http:", "https:"].contains(&url.protocol().as_str()))?;
            // A manifest is named as easily as its folder.
            let href = url.href();
            let href = href.strip_suffix("manifest.json").unwrap_or(&href);
            Some(if href.ends_with('/') { href.to_owned() } else { format!("{href}/") })
        };
        let wished = wish("bundle").filter(|path| !path.is_empty());
        let asked = wished.as_deref().and_then(folder);
        let refused = wished.filter(|_| asked.is_none());
        Address { own: folder("bundle/").unwrap_or_default(), asked, refused, device }
    }
}
