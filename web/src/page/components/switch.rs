//! The switch of the CC-Tuned pane: what is injected, and whose layer.

use crate::client::Client;
use leptos::prelude::*;
use web::choice::offered;
use web::protocol::{Connection, ConnectionSource, LayerChoice};

const SOURCES: [(ConnectionSource, &str, &str); 4] = [
    (ConnectionSource::Off, "off", "Nothing is injected."),
    (
        ConnectionSource::Transform,
        "transform",
        "The prompt's own activations, carried towards English by the Transform Matrix.",
    ),
    (ConnectionSource::Identity, "identity", "The prompt's own activations as they are: the control."),
    (
        ConnectionSource::Parallel,
        "parallel",
        "The activations of the same question in English, as in training; known for the examples.",
    ),
];

/// # Props
/// - `has_twin`: whether the question's English twin is known.
#[component]
pub fn ConnectionSwitch(client: Client, connection: RwSignal<Connection>, has_twin: Signal<bool>) -> impl IntoView {
    let n_layers = Memo::new(move |_| client.welcome.get().map_or(0, |welcome| welcome.n_layers));
    let source = move |(source, value, meaning): (ConnectionSource, &'static str, &'static str)| {
        view! {
            <label class="segment" title=meaning>
                <input
                    type="radio"
                    name="source"
                    value=value
                    aria-description=meaning
                    disabled=move || source == ConnectionSource::Parallel && !has_twin.get()
                    prop:checked=move || connection.get().source == source
                    on:change=move |_| connection.update(|connection| connection.source = source)
                />
                <span>{source_name(source)}</span>
            </label>
        }
    };
    // A layer is one of the models that it was chosen for.
    Effect::new(move || {
        if client.welcome.with(Option::is_none) {
            connection.update(|connection| connection.layer = None);
        }
    });
    // A question of the visitor's own has no twin; what imitates it steps in.
    Effect::new(move || {
        let known = client.welcome.with(Option::is_some);
        if known && !has_twin.get() && connection.get().source == ConnectionSource::Parallel {
            connection.update(|connection| connection.source = ConnectionSource::Transform);
        }
    });
    let on_layer = move |event| {
        let layer = event_target_value(&event).parse().ok();
        connection.update(|connection| connection.layer = layer);
    };
    let choice =
        move || client.welcome.with(|welcome| welcome.as_ref().map_or(LayerChoice::DecisionMaker, |of| of.choice));
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
                    <option value="">{move || offered(choice())}</option>
                    {move || (0..n_layers.get()).map(option).collect_view()}
                </select>
            </label>
        </div>
    }
}

/// What a source means, in a sentence.
pub fn meaning(source: ConnectionSource) -> Option<&'static str> {
    SOURCES.into_iter().find(|(of, ..)| *of == source).map(|(.., meaning)| meaning)
}

/// How the page writes a source: the matrix has a subscript.
pub fn source_name(source: ConnectionSource) -> AnyView {
    match source {
        ConnectionSource::Off => "Off".into_any(),
        ConnectionSource::Transform => view! { <i>"W"</i><sub>"T"</sub> }.into_any(),
        ConnectionSource::Identity => "Identity".into_any(),
        ConnectionSource::Parallel => "English twin".into_any(),
    }
}
