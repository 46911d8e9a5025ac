//! How the models came here: progress while they load, then what was checked and what they run on.

use crate::client::Client;
use crate::components::focus_main;
use crate::state::{FileState, Phase};
use leptos::prelude::*;
use web::protocol::{DeviceWish, SelfTestReport};

/// Progress, until the first question can be asked.
#[component]
pub fn Loading(client: Client) -> impl IntoView {
    let waiting = Memo::new(move |_| client.phase.get() < Phase::Ready);
    // As a memo it is spoken when it changes, and not after every answer.
    let words = Memo::new(move |_| match client.phase.get() {
        Phase::Starting => "Starting the program that runs the models …",
        Phase::Loading => "Fetching the models",
        Phase::Testing => "Testing the models on this device against known answers …",
        Phase::Ready | Phase::Answering => "The models are ready.",
        // An alert says why.
        Phase::Dead => "",
    });
    // Apart from the words, which a screen reader speaks whenever they change.
    let amount = move || {
        let sums = client.files.with(|files| Sums::of(files));
        (client.phase.get() == Phase::Loading && sums.total > 0)
            .then(|| format!(": {} of {}{}", megabytes(sums.here), megabytes(sums.total), sums.origins()))
    };
    // A bar without a value shows that something goes on, but not how far.
    let value = move || {
        let sums = client.files.with(|files| Sums::of(files));
        (client.phase.get() == Phase::Loading && sums.total > 0).then(|| sums.here as f64 / sums.total as f64)
    };
    let on_stop = move |_| {
        client.stop_loading();
        focus_main();
    };
    let card = move || {
        view! {
            <section class="card loading" aria-label="Loading">
                <p aria-hidden="true">{words} {amount}</p>
                <progress aria-labelledby="loading-words" value=value></progress>
                <button type="button" id="stop-loading" class="quiet" on:click=on_stop>"Stop loading"</button>
            </section>
        }
    };
    view! {
        // Always there: a region that comes or goes with its words is not spoken.
        <p id="loading-words" class="heard" role="status">{words}</p>
        <Show when=move || waiting.get()>{card()}</Show>
    }
}

/// What was checked, and what the models run on.
#[component]
pub fn Status(client: Client) -> impl IntoView {
    let sums = Memo::new(move |_| client.files.with(|files| Sums::of(files)));
    let counts = move || client.files.with(|files| (files.iter().filter(|file| file.verified).count(), files.len()));
    let origins = move || sums.get().origins();
    let memory = move || {
        client
            .memory
            .get()
            .map(|bytes| format!(" This tab's program held at most {} while it loaded.", megabytes(bytes)))
    };
    let not_kept = move || {
        client.not_kept.get().map(|reason| {
            view! {
                <p id="not-kept" class="notice">"The models are fetched again at the next visit: " {reason} "."</p>
            }
        })
    };
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
        {not_kept}
        <section class="status" aria-label="Checks">
            <details id="files"
                data-verified=move || counts().0
                data-total=move || counts().1
                data-kept=move || sums.get().kept
                data-fetched=move || sums.get().fetched
                data-repaired=move || sums.get().repaired
                data-memory=move || client.memory.get()
            >
                <summary>
                    <Mark good=Signal::derive(move || counts().1 > 0 && counts().0 == counts().1)/>
                    {move || format!("{}/{} files verified", counts().0, counts().1)}
                    <small>{move || format!(" SHA-256, {}", megabytes(sums.get().total))} {origins}</small>
                </summary>
                <table>
                    <thead><tr><th scope="col">"File"</th><th scope="col">"Size"</th><th scope="col">"Hash"</th></tr></thead>
                    <tbody>{rows}</tbody>
                </table>
                <p class="aside">{memory}</p>
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
    let hash = match (file.verified, file.repaired) {
        (false, _) => "waiting",
        (true, false) => "verified",
        (true, true) => "verified after a repair",
    };
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

/// What is here of all files, in bytes, and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
struct Sums {
    here: u64,
    total: u64,
    kept: u64,
    fetched: u64,
    /// Files.
    repaired: usize,
}

impl Sums {
    fn of(files: &[FileState]) -> Sums {
        files.iter().fold(Sums::default(), |sums, file| Sums {
            // What was fetched twice is here once.
            here: sums.here + (file.kept + file.fetched).min(file.size.bytes),
            total: sums.total + file.size.bytes,
            kept: sums.kept + file.kept,
            fetched: sums.fetched + file.fetched,
            repaired: sums.repaired + usize::from(file.repaired),
        })
    }

    fn origins(self) -> String {
        match (self.kept, self.fetched) {
            (0, 0) => String::new(),
            (0, _) => "; from the network".into(),
            (_, 0) => "; from this computer".into(),
            (kept, fetched) => {
                format!("; {} from this computer, {} from the network", megabytes(kept), megabytes(fetched))
            }
        }
    }
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
