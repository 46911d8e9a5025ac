//! Everything that page and worker say to each other, as JSON text through `postMessage`.
//!
//! No tensors, no DOM: only what both sides can hold.

use serde::{Deserialize, Serialize};

/// What the page asks of the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Fetch the bundle, choose a device, prove it. The first request, once per worker.
    Load {
        /// Where its files come from.
        bundle: BundleSource,
        /// Where to compute.
        device: DeviceWish,
    },
    /// Answer one prompt in both panes. The page asks again only after [`Event::Done`].
    Ask {
        /// Chosen by the page, never 0; every event of this answer carries it.
        id: u32,
        /// The visitor's text.
        prompt: String,
        /// The same question in English, for [`ConnectionSource::Parallel`].
        english: Option<String>,
        /// What the CC-Tuned pane does.
        connection: Connection,
    },
    /// End the answer that is running, at most one token later.
    Stop,
}

/// Where a bundle's files come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum BundleSource {
    /// Absolute address of its folder, with a trailing slash.
    Address(String),
    /// A folder of the visitor's. Its files travel beside this text, in the order of their paths inside the bundle.
    Folder { name: String, paths: Vec<String> },
}

/// Which device the page wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeviceWish {
    /// WebGPU where there is an adapter that passes the self-test, else the CPU.
    Best,
    /// The CPU, and why, in words for the visitor.
    Cpu(String),
}

/// The switch of the CC-Tuned pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// What is injected.
    pub source: ConnectionSource,
    /// Whose activation is injected: this layer's (counted from 0), or the Decision Maker's choice.
    pub layer: Option<usize>,
}

/// Where the injected vector comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionSource {
    /// Nothing is injected.
    Off,
    /// The prompt's own activations times the Transform Matrix.
    Transform,
    /// The prompt's own activations as they are.
    Identity,
    /// The activations of the same question in English: what training saw and the Transform Matrix imitates.
    Parallel,
}

/// One of the two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pane {
    Vanilla,
    CcTuned,
}

/// What the worker reports to the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The program is compiled and listens.
    Booted,
    /// The manifest is read; these files follow.
    Files { title: String, files: Vec<FileSize> },
    /// So many bytes of a file are here: some were, some came over the network.
    Received { path: String, kept: u64, fetched: u64 },
    /// A file's bytes have the hash that the manifest names; `repaired` if a wrong copy had to be fetched again.
    Verified { path: String, repaired: bool },
    /// The files will not be here at the next visit, and why.
    NotKept(String),
    /// The device that the self-test will run on, and why, if it is not the one wished for.
    Device(DeviceReport),
    /// All files are on the device; it will be tested. `memory` is the most bytes this program has held.
    Loaded { memory: u64 },
    /// The bundle's golden answers were computed again on this device.
    SelfTest(SelfTestReport),
    /// Questions may come.
    Ready(Welcome),
    /// What the connection did in the prefill of the CC-Tuned pane.
    Connected { id: u32, report: ConnectionReport },
    /// Whole characters that follow the ones before; `tokens` so far.
    Text { id: u32, pane: Pane, text: String, tokens: usize },
    /// This pane is complete.
    Finished { id: u32, pane: Pane, report: PaneReport },
    /// Both panes are complete or stopped.
    Done { id: u32 },
    /// Something went wrong; see [`Failure`].
    Failure(Failure),
}

/// A file that the manifest names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileSize {
    pub path: String,
    pub bytes: u64,
}

/// What the worker computes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    pub webgpu: bool,
    /// The adapter's own name, or "CPU".
    pub name: String,
    /// Why it is not WebGPU and what the visitor can do about it.
    pub note: Option<String>,
}

/// Golden answers against this device's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTestReport {
    pub webgpu: bool,
    pub prompts: usize,
    pub max_logit_error: f32,
    pub tolerance: f32,
    pub tokens_equal: bool,
    pub passed: bool,
    pub elapsed_s: f64,
}

/// What the page needs to know of the bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub n_layers: usize,
    /// What the connection does where the visitor chooses no layer.
    pub choice: LayerChoice,
    /// The layer behind which the vector is added, counted from 0.
    pub joins_after: usize,
    pub languages: Vec<LanguageName>,
    pub examples: Vec<ExamplePrompt>,
}

/// How the models were trained to take a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerChoice {
    /// The one that the Decision Maker finds most probable.
    DecisionMaker,
    /// All of them, each by its probability.
    Proportion,
    /// All of them alike.
    Mean,
    /// One that is drawn.
    Random,
    /// Always this one, counted from 0.
    Fixed(usize),
}

/// A language that the models speak.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LanguageName {
    /// ISO 639-1.
    pub code: String,
    /// Its name in itself.
    pub name: String,
}

/// A held-out prompt with the answer it should get.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExamplePrompt {
    pub lang: String,
    pub prompt: String,
    /// The same question in English.
    pub english: String,
    pub gold: String,
}

/// Which layer was taken and how strong the injected vector is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// The one with the largest part in it, counted from 0; none where all have the same.
    pub layer: Option<usize>,
    /// The Decision Maker's, one per layer, summing to 1.
    pub probabilities: Vec<f32>,
    /// Euclidean norm of the vector that was added.
    pub vector_norm: f32,
    /// Euclidean norm of the stream it was added to.
    pub stream_norm: f32,
}

impl ConnectionReport {
    /// Whether it can be sent: JSON has no other numbers, and a sound device computes none.
    pub fn is_finite(&self) -> bool {
        self.probabilities.iter().chain([&self.vector_norm, &self.stream_norm]).all(|number| number.is_finite())
    }
}

/// How an answer went. Times count this pane's own computing, not the other pane's turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PaneReport {
    pub tokens: usize,
    pub ids: Vec<u32>,
    pub first_token_s: f64,
    pub tokens_per_second: Option<f64>,
    pub end: AnswerEnd,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerEnd {
    /// The model said so, or the length limit did.
    Complete,
    /// The visitor pressed Stop.
    Stopped,
}

/// The one shape of every error that a visitor sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened, one line.
    pub title: String,
    /// What the visitor can do.
    pub advice: String,
    /// The words of the part that failed.
    pub detail: String,
    /// What is left of the worker.
    pub aftermath: Aftermath,
}

/// What still works after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aftermath {
    /// The next question can be asked.
    Usable,
    /// This worker is dead; a new one may do better.
    Dead,
    /// This worker is dead, and it died on WebGPU before it was proved there: a new one belongs on the CPU.
    DeadOnWebGpu,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_way_to_the_worker() {
        let connection = Connection { source: ConnectionSource::Transform, layer: Some(3) };
        let request =
            Request::Ask { id: 7, prompt: "ما هي عاصمة فرنسا؟".into(), english: None, connection };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }

    #[test]
    fn an_event_survives_the_way_to_the_page() {
        arrives(Event::Connected { id: 7, report: report() });
    }

    #[test]
    fn the_verdict_on_a_device_that_computes_no_numbers_survives_the_way_to_the_page() {
        arrives(Event::SelfTest(SelfTestReport {
            webgpu: true,
            prompts: 2,
            max_logit_error: f32::MAX,
            tolerance: 2e-3,
            tokens_equal: false,
            passed: false,
            elapsed_s: 0.5,
        }));
        assert!(report().is_finite());
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(!ConnectionReport { stream_norm: wrong, ..report() }.is_finite());
            assert!(!ConnectionReport { probabilities: vec![0.5, wrong], ..report() }.is_finite());
        }
    }

    fn report() -> ConnectionReport {
        ConnectionReport { layer: Some(0), probabilities: vec![0.75, 0.25], vector_norm: 1.5, stream_norm: 9.0 }
    }

    fn arrives(event: Event) {
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
