//! What the connection did: the Decision Maker's probabilities per layer, what was taken, the size of the injected vector.

use crate::client::Client;
use leptos::prelude::*;
use web::choice::taken;
use web::protocol::{ConnectionReport, ConnectionSource, Welcome};

#[component]
pub fn ConnectionPanel(client: Client) -> impl IntoView {
    let off = move || client.question.get().is_some_and(|question| question.connection.source == ConnectionSource::Off);
    let body = move || {
        match client.connected.get().zip(client.welcome.get()) {
        Some((report, welcome)) => {
            let forced = client.question.get().is_some_and(|question| question.connection.layer.is_some());
            drawn(report, &welcome, forced)
        }
        None if off() => view! { <p class="waiting">"The connection was off: nothing was injected into the second model."</p> }.into_any(),
        None => view! {
            <p class="waiting">
                "Ask something, and this shows which layer's thought was carried over, how sure the Decision Maker was, and how strong the injected vector is."
            </p>
        }
        .into_any(),
    }
    };
    view! {
        <section
            id="connection"
            class="card connection"
            aria-labelledby="heading-connection"
            data-layer=move || client.connected.get().and_then(|report| report.layer)
        >
            <h2 id="heading-connection">"What the connection did"</h2>
            {body}
        </section>
    }
}

fn drawn(report: ConnectionReport, welcome: &Welcome, forced: bool) -> AnyView {
    let chosen = report.layer;
    let taken = taken((!forced).then_some(welcome.choice), chosen, welcome.n_layers);
    let joins_after = welcome.joins_after + 1;
    let share = if report.stream_norm > 0.0 { report.vector_norm / report.stream_norm } else { 0.0 };
    let largest = report.vector_norm.max(report.stream_norm).max(f32::MIN_POSITIVE);
    let norm = move |name: &'static str, class: &'static str, norm: f32| {
        view! {
            <tr class=class>
                <th scope="row">{name}</th>
                <td class="bar" aria-hidden="true"><span style:width=percent(norm / largest)></span></td>
                <td>{format!("{norm:.2}")}</td>
            </tr>
        }
    };
    let layer = move |(layer, probability): (usize, f32)| {
        let is_chosen = chosen == Some(layer);
        view! {
            <tr class:chosen=is_chosen data-probability=probability>
                <th scope="row">{format!("layer {}", layer + 1)}</th>
                <td class="bar" aria-hidden="true"><span style:width=percent(probability)></span></td>
                <td>{format!("{:.1} %", probability * 100.0)}<span class="heard">{is_chosen.then_some(", chosen")}</span></td>
            </tr>
        }
    };
    view! {
        <p>{taken} {format!(" The vector is {:.0} % as long as the stream that it joins after layer {joins_after}.", share * 100.0)}</p>
        <div class="drawings">
            <table class="bars">
                <caption>"The Decision Maker's probability of each layer"</caption>
                <tbody>{report.probabilities.into_iter().enumerate().map(layer).collect_view()}</tbody>
            </table>
            <div>
                <table class="bars">
                    <caption>"Length (Euclidean norm)"</caption>
                    <tbody>{norm("injected vector", "chosen", report.vector_norm)} {norm("stream", "", report.stream_norm)}</tbody>
                </table>
                <p class="aside">
                    "The vector is added once, at the position whose activations were read. Everything else about the second answer is ordinary decoding."
                </p>
            </div>
        </div>
    }
    .into_any()
}

fn percent(share: f32) -> String {
    format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0)
}
