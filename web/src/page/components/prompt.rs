//! The prompt box with its examples, the connection switch, and Ask / Stop.

use crate::client::Client;
use crate::components::examples::Examples;
use crate::components::switch::{ConnectionSwitch, meaning};
use crate::state::Phase;
use leptos::ev::{KeyboardEvent, SubmitEvent};
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web::protocol::Connection;
use web::text::language_of;
use web_sys::HtmlElement;

#[component]
pub fn PromptCard(client: Client, connection: RwSignal<Connection>) -> impl IntoView {
    let text = RwSignal::new(String::new());
    let ask = move || {
        client.ask(text.get_untracked(), connection.get_untracked());
        // On a phone the answers are below the box; whoever asks wants to see them.
        let panes = document().get_element_by_id("panes").and_then(|panes| panes.dyn_into::<HtmlElement>().ok());
        if let Some(panes) = panes.filter(is_below) {
            panes.scroll_into_view_with_bool(false);
        }
    };
    let on_submit = move |event: SubmitEvent| {
        event.prevent_default();
        ask();
    };
    let on_key = move |event: KeyboardEvent| {
        if event.key() == "Enter" && (event.ctrl_key() || event.meta_key()) {
            event.prevent_default();
            ask();
        }
    };
    let on_choose = move |prompt: String| {
        if client.phase.get_untracked() == Phase::Ready {
            text.set(prompt);
            ask();
        }
    };
    let examples = move || client.welcome.get().map_or_else(Vec::new, |welcome| welcome.examples);
    let lang = move || language_of(&text.get(), &examples());
    let has_twin = Signal::derive(move || examples().iter().any(|example| example.prompt.trim() == text.get().trim()));
    let answering = move || client.phase.get() == Phase::Answering;
    let cannot_ask = move || client.phase.get() != Phase::Ready || text.with(|text| text.trim().is_empty());
    // A button that went out of use under the finger that pressed it would lose the focus; so it only says that it is.
    view! {
        <form class="card prompt" on:submit=on_submit>
            <Examples client on_choose/>
            <label for="prompt">"Your question"</label>
            <textarea
                id="prompt"
                dir="auto"
                lang=lang
                rows="2"
                autocomplete="off"
                spellcheck="false"
                placeholder="Choose an example, or type a short question in any of these languages"
                prop:value=move || text.get()
                on:input=move |event| text.set(event_target_value(&event))
                on:keydown=on_key
            ></textarea>
            <div class="actions">
                <ConnectionSwitch client connection has_twin/>
                <div class="buttons">
                    <span class="keys" aria-hidden="true"><kbd>"Ctrl"</kbd>" + "<kbd>"Enter"</kbd></span>
                    <button type="button" id="stop" aria-keyshortcuts="Escape" aria-disabled=move || (!answering()).to_string() on:click=move |_| client.stop()>
                        "Stop"
                    </button>
                    <button type="submit" id="ask" class="primary" aria-keyshortcuts="Control+Enter" aria-disabled=move || cannot_ask().to_string()>"Ask both"</button>
                </div>
            </div>
            <small>{move || meaning(connection.get().source)}</small>
        </form>
    }
}

fn is_below(element: &HtmlElement) -> bool {
    let (top, height) =
        (window().scroll_y().unwrap_or_default(), window().inner_height().ok().and_then(|height| height.as_f64()));
    f64::from(element.offset_top() + element.offset_height()) > top + height.unwrap_or_default()
}
