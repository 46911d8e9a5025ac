//! The switch of the CC-Tuned pane: what is injected, and whose layer.

use crate::client::Client;
use web::protocol::{Connection, ConnectionSource};
use leptos::prelude::*;

const SOURCES: [(ConnectionSource, &str, &str, &str); 3] = [
    (ConnectionSource::Off, "off", "Off", "Nothing is injected"),
    (ConnectionSource::Transform, "transform", "W_T", "The prompt's own activations, carried towards English by the Transform Matrix"),
    (ConnectionSource::Identity, "identity", "Identity", "The prompt's own activations as they are: the control"),
];

#[component]
pub fn ConnectionSwitch(client: Client, connection: RwSignal<Connection>) -> impl IntoView {
    let n_layers = Memo::new(move |_| client.welcome.get().map_or(0, |welcome| welcome.n_layers));
    let source = move |(source, value, name, meaning): (ConnectionSource, &'static str, &'static str, &'static str)| {
        view! {
            <label class="segment" title=meaning>
                <input
                    type="radio"
                    name="source"
                    value=value
                    prop:checked=move || connection.get().source == source
                    on:change=move |_| connection.update(|connection| connection.source = source)
                />
                <span>{source_name(source, name)}</span>
            </label>
        }
    };
    let on_layer = move |event| {
        let layer = event_target_value(&event).parse().ok();
        connection.update(|connection| connection.layer = layer);
    };
    let option = |layer: usize| view! { <option value=layer>{format!("layer {}", layer + 1)}</option> };
    view! {
        <div class="switch">
            <fieldset class="segments">
                <legend>"Connection"</legend>
                <div>{SOURCES.map(source).collect_view()}</div>
            </fieldset>
            <label class="layer">
                <span>"From"</span>
                <select
                    id="layer"
                    disabled=move || connection.get().source == ConnectionSource::Off
                    on:change=on_layer
                >
                    <option value="">"Decision Maker's choice"</option>
                    {move || (0..n_layers.get()).map(option).collect_view()}
                </select>
            </label>
        </div>
    }
}

/// How the page writes a source: the matrix has a subscript.
pub fn source_name(source: ConnectionSource, name: &'static str) -> AnyView {
    match source {
        ConnectionSource::Transform => view! { <i>"W"</i><sub>"T"</sub> }.into_any(),
        _ => name.into_any(),
    }
}
