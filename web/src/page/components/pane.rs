//! One of the two answers as it grows, with its speed.

use crate::client::Client;
use crate::components::switch::source_name;
use crate::state::Phase;
use leptos::prelude::*;
use web::protocol::{AnswerEnd, ConnectionSource, Pane};
use web::text::is_answer;

#[component]
pub fn PaneCard(client: Client, pane: Pane) -> impl IntoView {
    let state = client.pane(pane);
    let (id, heading) = match pane {
        Pane::Vanilla => ("vanilla", "Vanilla"),
        Pane::CcTuned => ("cc", "CC-Tuned"),
    };
    let running = move || client.phase.get() == Phase::Answering && state.report.get().is_none();
    let state_name = move || match state.report.get().map(|report| report.end) {
        Some(AnswerEnd::Complete) => "complete",
        Some(AnswerEnd::Stopped) => "stopped",
        None if running() => "running",
        None => "idle",
    };
    let ids =
        move || state.report.get().map(|report| report.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    let lang = move || client.question.get().and_then(|question| question.lang);
    let gold = move || client.question.get().and_then(|question| question.example).map(|example| example.gold);
    let right = move || {
        // Half an answer is neither.
        let whole = state.report.get().is_some_and(|report| report.end == AnswerEnd::Complete);
        let gold = gold().filter(|_| whole)?;
        Some(state.text.with(|text| is_answer(text, &gold)))
    };
    let subtitle = move || match (pane, client.question.get().map(|question| question.connection)) {
        (Pane::Vanilla, _) => "fine-tuned, no connection".into_any(),
        (Pane::CcTuned, None) => "fine-tuned with the connection".into_any(),
        (Pane::CcTuned, Some(connection)) => match connection.source {
            ConnectionSource::Off => "connection off".into_any(),
            source => view! { "connection: " {source_name(source)} }.into_any(),
        },
    };
    let empty = move || state.text.with(String::is_empty);
    let waiting_words = move || match () {
        () if running() => "reading the question …",
        () if state.report.get().is_some() => "The model ended its answer at once.",
        () => "The answer appears here.",
    };
    let mark = move || {
        let words = if right()? { "the expected answer" } else { "not the expected answer" };
        Some(view! { <span class="heard">{heading} ": "</span> {words} })
    };
    view! {
        <section
            id=format!("pane-{id}")
            class=format!("card pane {id}")
            aria-labelledby=format!("heading-{id}")
            data-state=state_name
            data-tokens=move || state.tokens.get()
            data-ids=ids
        >
            <header>
                <h2 id=format!("heading-{id}")>{heading}</h2>
                <p>{subtitle}</p>
                <span class="verdict" role="status" class:right=move || right() == Some(true)>{mark}</span>
            </header>
            <p class="answer" dir="auto" lang=lang class:running=running>{move || state.text.with(|text| text.trim_start().to_owned())}</p>
            <p class="waiting" hidden=move || !empty()>{waiting_words}</p>
            <p class="heard" aria-live="polite" lang=lang>{move || state.announced.get()}</p>
            <dl class="speed">
                <div><dt>"tokens/s"</dt><dd>{move || speed(state.report.get().and_then(|report| report.tokens_per_second))}</dd></div>
                <div><dt>"first token"</dt><dd>{move || delay(state.report.get().map(|report| report.first_token_s))}</dd></div>
                <div><dt>{move || if state.tokens.get() == 1 { "token" } else { "tokens" }}</dt><dd>{move || state.tokens.get()}</dd></div>
            </dl>
        </section>
    }
}

fn speed(tokens_per_second: Option<f64>) -> String {
    tokens_per_second
        .map_or_else(|| "–".into(), |speed| if speed < 10.0 { format!("{speed:.1}") } else { format!("{speed:.0}") })
}

fn delay(first_token_s: Option<f64>) -> String {
    first_token_s.map_or_else(
        || "–".into(),
        |delay| if delay < 1.0 { format!("{:.0} ms", delay * 1e3) } else { format!("{delay:.1} s") },
    )
}
