//! How the models came here: progress while they load, then what was checked and what they run on.

use crate::client::{Client, FileState, Phase};
use leptos::prelude::*;
use web::protocol::{DeviceWish, SelfTestReport};

/// Progress, until the first question can be asked.
#[component]
pub fn Loading(client: Client) -> impl IntoView {
    let waiting = Memo::new(move |_| client.phase.get() < Phase::Ready);
    let words = move || match client.phase.get() {
        Phase::Starting => "Starting the program that runs the models …",
        Phase::Loading => "Fetching the models",
        _ => "Testing the models on this device against known answers …",
    };
    // Apart from the words, which a screen reader speaks whenever they change.
    let amount = move || {
        let (received, total) = client.files.with(|files| sums(files));
        (client.phase.get() == Phase::Loading && total > 0)
            .then(|| format!(": {} of {}", megabytes(received), megabytes(total)))
    };
    // A bar without a value shows that something goes on, but not how far.
    let value = move || {
        let (received, total) = client.files.with(|files| sums(files));
        (client.phase.get() == Phase::Loading && total > 0).then(|| received as f64 / total as f64)
    };
    let card = move || {
        view! {
            <section class="card loading" aria-label="Loading">
                <p><span id="loading-words" role="status">{words}</span> <span aria-hidden="true">{amount}</span></p>
                <progress aria-labelledby="loading-words" value=value></progress>
            </section>
        }
    };
    view! { <Show when=move || waiting.get()>{card()}</Show> }
}

/// What was checked, and what the models run on.
#[component]
pub fn Status(client: Client) -> impl IntoView {
    let counts = move || client.files.with(|files| (files.iter().filter(|file| file.verified).count(), files.len()));
    let sum = move || client.files.with(|files| sums(files).1);
    let rows = move || client.files.get().into_iter().map(file_row).collect_view();
    let device = move || client.device.get();
    let device_words = move || match device() {
        Some(report) if report.webgpu => format!("WebGPU, {}", report.name),
        Some(_) => "CPU".into(),
        None => "not chosen yet".into(),
    };
    let note = move || {
        device()
            .and_then(|report| report.note)
            .map(|note| view! { <p id="device-note" class="notice">"Running on the CPU: " {note}</p> })
    };
    let other_device = move || {
        let (words, wish) = match device() {
            Some(report) if !report.webgpu => ("Try WebGPU", DeviceWish::Best),
            _ => ("Use the CPU", DeviceWish::Cpu("you chose it.".into())),
        };
        view! {
            <button type="button" id="other-device" class="quiet" on:click=move |_| client.start_worker(wish.clone())>{words}</button>
        }
    };
    let passed = move || client.self_test.get().map(|test| test.passed.to_string());
    view! {
        {note}
        <section class="status" aria-label="Checks">
            <details id="files" data-verified=move || counts().0 data-total=move || counts().1>
                <summary>
                    <Mark good=Signal::derive(move || counts().1 > 0 && counts().0 == counts().1)/>
                    {move || format!("{}/{} files verified", counts().0, counts().1)}
                    <small>{move || format!(" SHA-256, {}", megabytes(sum()))}</small>
                </summary>
                <table>
                    <thead><tr><th scope="col">"File"</th><th scope="col">"Size"</th><th scope="col">"Hash"</th></tr></thead>
                    <tbody>{rows}</tbody>
                </table>
            </details>
            <p id="self-test" data-passed=passed>
                <Mark good=Signal::derive(move || client.self_test.get().is_some_and(|test| test.passed))/>
                {move || client.self_test.get().map_or_else(|| "Self-test not run yet".to_owned(), |test| verdict(&test))}
                <small>{move || client.self_test.get().map(|test| evidence(&test))}</small>
            </p>
            <p id="device" data-webgpu=move || device().map(|report| report.webgpu.to_string())>
                <Mark good=Signal::derive(move || device().is_some())/>
                "Runs on " {device_words} " " {other_device}
            </p>
        </section>
    }
}

/// A tick, or a ring while it has not been earned.
#[component]
fn Mark(good: Signal<bool>) -> impl IntoView {
    view! { <span class="mark" class:good=good aria-hidden="true"></span> }
}

fn file_row(file: FileState) -> impl IntoView {
    let hash = if file.verified { "verified" } else { "waiting" };
    view! {
        <tr>
            <th scope="row">{file.size.path}</th>
            <td>{megabytes(file.size.bytes)}</td>
            <td>{hash}</td>
        </tr>
    }
}

fn verdict(test: &SelfTestReport) -> String {
    format!(
        "Self-test {} on {}",
        if test.passed { "passed" } else { "failed" },
        if test.webgpu { "WebGPU" } else { "the CPU" }
    )
}

fn evidence(test: &SelfTestReport) -> String {
    let tokens = if test.tokens_equal { "same tokens" } else { "other tokens" };
    let (error, tolerance, prompts, took) = (test.max_logit_error, test.tolerance, test.prompts, test.elapsed_s);
    format!(" largest logit error {error:.1e}, {tolerance:.0e} allowed; {tokens} on {prompts} prompts; {took:.1} s")
}

fn sums(files: &[FileState]) -> (u64, u64) {
    files.iter().fold((0, 0), |(received, total), file| (received + file.received, total + file.size.bytes))
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
