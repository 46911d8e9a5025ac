//! Which models the page shows, and how a visitor gives it others: a folder, chosen or dropped anywhere on the page.

use crate::client::Client;
use crate::components::focus_main;
use crate::folder::Folder;
use crate::state::Origin;
use leptos::attr::custom::custom_attribute;
use leptos::ev;
use leptos::prelude::*;
use leptos::task::spawn_local;
use wasm_bindgen::JsValue;
use web::folder::quoted;

#[component]
pub fn Models(client: Client) -> impl IntoView {
    let dragged = RwSignal::new(false);
    let open = move |folder: Folder| {
        client.open_folder(folder);
        // The progress is at the top.
        window().scroll_to_with_x_and_y(0.0, 0.0);
    };
    window_event_listener(ev::dragover, move |event| {
        if Folder::is_dragged(&event) {
            // Without this the browser would open what is dropped in place of the page.
            event.prevent_default();
            dragged.set(true);
        }
    });
    // The pointer has left the window, and not only passed from one element to the next.
    window_event_listener(ev::dragleave, move |event| {
        if event.related_target().is_none() {
            dragged.set(false);
        }
    });
    window_event_listener(ev::drop, move |event| {
        dragged.set(false);
        if Folder::is_dragged(&event) {
            event.prevent_default();
            let folder = Folder::dropped(&event);
            spawn_local(async move {
                match folder.await {
                    Ok(folder) => open(folder),
                    Err(reason) => client.refuse_folder(reason),
                }
            });
        }
    });
    let on_choice = move |event: ev::Event| {
        let input = event.target().map_or(JsValue::NULL, JsValue::from);
        if let Some(folder) = Folder::chosen(&input) {
            open(folder);
        }
        // The same folder may be chosen again after it was mended.
        js_sys::Reflect::set(&input, &"value".into(), &"".into()).ok();
    };
    let place = move || match client.origin.get() {
        Origin::Own => "the ones of this page".to_owned(),
        Origin::Address(host) => format!("from {host}"),
        Origin::Folder(folder) => format!("from your folder {}", quoted(&folder.name)),
    };
    let given = move || client.origin.get() != Origin::Own;
    let on_own = move |_| {
        client.open_own();
        focus_main();
    };
    let title = move || client.title.get();
    let whole_folders = custom_attribute("webkitdirectory", "");
    view! {
        <section class="models" aria-label="Models">
            <p id="models">
                "Models: " <bdi dir="auto">{title}</bdi> <small>" " {place}</small>
            </p>
            <div class="buttons">
                <label class="button quiet">
                    <input type="file" id="folder" multiple on:change=move |event| on_choice(event) {..whole_folders}/>
                    "Open a bundle from a folder …"
                </label>
                <Show when=given>
                    <button type="button" id="own-models" class="quiet" on:click=on_own>
                        "Back to the page's models"
                    </button>
                </Show>
                <small class="hint">"or drop the folder anywhere on this page; it stays on your computer"</small>
            </div>
        </section>
        <div class="drop" class:shown=move || dragged.get() aria-hidden="true"><p>"Drop the bundle's folder"</p></div>
    }
}
