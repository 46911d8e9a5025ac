//! The two models on one device: proving it against the golden answers, and answering in lock-step.
//!
//! Must not know: where files come from, what the page looks like.

use crate::device::{Candidate, cpu, cpu_bytes};
use crate::files::Files;
use crate::scope::{WebGpu, elapsed_s, give_way, memory, post, set_webgpu};
use burn::tensor::Device;
use cctuning::bundle::{Bundle, BundleLoading, GOLDEN_PROMPTS};
use cctuning::chat::Prompt;
use cctuning::connection::Choice;
use cctuning::decision_maker::Pool;
use cctuning::generate::{Decoding, GenerateOptions, Source};
use cctuning::model::CcModel;
use cctuning::tokenizer::TextStream;
use cctuning::{Error, Result};
use std::cell::Cell;
use web::protocol::{
    AnswerEnd, Connection, ConnectionReport, ConnectionSource, Event, ExamplePrompt, LanguageName, LayerChoice, Pane,
    PaneReport, SelfTestReport, Welcome,
};

/// Most bytes of weights that the CPU takes: 4 GB is all that a 32-bit address reaches, and answering needs some of it.
const CPU_LIMIT: u64 = 3_500_000_000;

/// Both models, proved on the device they are on.
pub struct Engine {
    bundle: Bundle,
    /// The answer that may still go on; 0 is none. `Ask` and `Stop` set it while an answer runs.
    current: Cell<u32>,
}

impl Engine {
    /// Puts the models on the device and proves it; if WebGPU computes wrongly, does the same on the CPU.
    ///
    /// # Errors
    /// The bundle cannot be read, or even the CPU does not reproduce its golden answers.
    pub async fn start(files: &Files, candidate: Candidate) -> std::result::Result<Engine, Unproved> {
        let webgpu = candidate.report.webgpu;
        let attempt = Engine::prove(files, candidate).await;
        set_webgpu(if webgpu && attempt.is_ok() { WebGpu::InUse } else { WebGpu::Unused });
        match attempt {
            Err(Unproved::Device(reason)) if webgpu => {
                let reason =
                    format!("WebGPU did not pass the self-test ({reason}). Update the browser or the graphics driver.");
                let config = files.config().map_err(Unproved::Bundle)?;
                Engine::prove(files, cpu(reason, &config)).await
            }
            other => other,
        }
    }

    async fn prove(files: &Files, candidate: Candidate) -> std::result::Result<Engine, Unproved> {
        let Candidate { device, report } = candidate;
        let webgpu = report.webgpu;
        post(&Event::Device(report));
        if !webgpu {
            let bytes = cpu_bytes(&files.config().map_err(Unproved::Bundle)?);
            if bytes > CPU_LIMIT {
                return Err(Unproved::TooLarge(format!(
                    "the weights take {:.1} GB as 32-bit numbers, and a tab may have 4 GB. These models need WebGPU, and as \
                     much graphics memory.",
                    bytes as f64 / 1e9
                )));
            }
        }
        let mut bundle = load(files, &device).await.map_err(Unproved::Bundle)?;
        post(&Event::Loaded { memory: memory() });
        give_way().await;
        let started_s = elapsed_s();
        let test = bundle.self_test(GOLDEN_PROMPTS).await.map_err(|error| {
            let unproved = if survives(&error) { Unproved::Bundle } else { Unproved::Device };
            unproved(error.to_string())
        })?;
        post(&Event::SelfTest(SelfTestReport {
            webgpu,
            prompts: test.prompts,
            max_logit_error: test.max_logit_error,
            tolerance: test.tolerance,
            tokens_equal: test.tokens_equal,
            passed: test.passed,
            elapsed_s: elapsed_s() - started_s,
        }));
        if test.passed {
            // Nobody asks for them again, and they are as long as the vocabulary.
            bundle.golden = Vec::new();
            return Ok(Engine { bundle, current: Cell::new(0) });
        }
        let tokens = if test.tokens_equal { "the same tokens" } else { "other tokens" };
        Err(Unproved::Device(format!(
            "logits are off by {:.2e}, {:.0e} is allowed; {tokens}",
            test.max_logit_error, test.tolerance
        )))
    }

    /// What the page shows before the first question.
    pub fn welcome(&self) -> Welcome {
        let Bundle { manifest, config, examples, .. } = &self.bundle;
        let languages = manifest
            .languages
            .iter()
            .map(|language| LanguageName { code: language.code.clone(), name: language.name.clone() });
        let examples = examples.iter().map(|example| ExamplePrompt {
            lang: example.lang.clone(),
            prompt: example.prompt.clone(),
            english: example.english.clone(),
            gold: example.gold.clone(),
        });
        let connection = &manifest.connection;
        let choice = match (connection.pool, connection.choice) {
            (Pool::DecisionMaker, Choice::Expectation) => LayerChoice::Proportion,
            (Pool::DecisionMaker, _) => LayerChoice::DecisionMaker,
            (Pool::Mean, _) => LayerChoice::Mean,
            (Pool::Random, _) => LayerChoice::Random,
            (Pool::Fixed(layer), _) => LayerChoice::Fixed(layer),
        };
        Welcome {
            n_layers: config.n_layers,
            choice,
            joins_after: connection.layer,
            languages: languages.collect(),
            examples: examples.collect(),
        }
    }

    /// Ends the answer that runs, at its next token.
    pub fn stop(&self) {
        self.current.set(0);
    }

    /// Answers in both panes, one token each in turn, until both end or the visitor stops them.
    ///
    /// # Errors
    /// The prompt cannot be used, or the device stopped computing.
    pub async fn answer(&self, id: u32, text: &str, english: Option<&str>, connection: Connection) -> Result<()> {
        self.current.set(id);
        let bundle = &self.bundle;
        let prompt = bundle.prompt(text)?;
        let english = english.map(|text| bundle.prompt(text)).transpose()?;
        let english = english.iter().collect::<Vec<_>>();
        let source = match connection.source {
            ConnectionSource::Off => Source::None,
            ConnectionSource::Transform => Source::Transform,
            ConnectionSource::Identity => Source::Identity,
            ConnectionSource::Parallel => Source::Parallel,
        };
        let mut connected = bundle.options(source)?;
        if let Some(layer) = connection.layer {
            connected.connection.pool = Pool::Fixed(layer);
        }

        let of_all = connected.connection.pool == Pool::Mean;
        let mut vanilla =
            self.begin(id, Pane::Vanilla, &bundle.vanilla, &prompt, &[], bundle.options(Source::None)?)?;
        vanilla.step().await?;
        give_way().await;
        if self.current.get() != id {
            vanilla.close(AnswerEnd::Stopped);
            post(&Event::Done { id });
            return Ok(());
        }
        let mut cc = self.begin(id, Pane::CcTuned, &bundle.cc, &prompt, &english, connected)?;
        cc.step().await?;
        if let Some(made) = cc.decoding.connections().await?.and_then(|rows| rows.into_iter().next()) {
            let report = ConnectionReport {
                layer: (!of_all).then_some(made.layer),
                probabilities: made.probabilities,
                vector_norm: made.vector_norm,
                stream_norm: made.stream_norm,
            };
            if !report.is_finite() {
                return Err(Error::Device("the connection is not made of finite numbers".into()));
            }
            post(&Event::Connected { id, report });
        }
        while self.current.get() == id && (vanilla.running() || cc.running()) {
            give_way().await;
            for turn in [&mut vanilla, &mut cc] {
                if self.current.get() == id {
                    turn.step().await?;
                }
            }
        }
        vanilla.close(AnswerEnd::Stopped);
        cc.close(AnswerEnd::Stopped);
        post(&Event::Done { id });
        Ok(())
    }

    fn begin<'e>(
        &'e self,
        id: u32,
        pane: Pane,
        model: &'e CcModel,
        prompt: &Prompt,
        english: &[&Prompt],
        options: GenerateOptions,
    ) -> Result<Turn<'e>> {
        let started_s = elapsed_s();
        let Bundle { config, transform, tokenizer, .. } = &self.bundle;
        let decoding = Decoding::start(model, config, Some(transform), &[prompt], english, options)?;
        let text = Some(TextStream::new(tokenizer));
        Ok(Turn { id, pane, decoding, text, ids: Vec::new(), first_token_s: elapsed_s() - started_s, decode_s: 0.0 })
    }
}

/// Puts the files on the device, one at a time, so that no more than one is in memory.
async fn load(files: &Files, device: &Device) -> std::result::Result<Bundle, String> {
    let mut loading = BundleLoading::new(files.manifest.clone(), device).map_err(|error| error.to_string())?;
    let mut buffer = Vec::new();
    for entry in &files.manifest.files {
        files.take(entry, &mut buffer).await?;
        loading.add(&entry.path, &buffer).map_err(|error| error.to_string())?;
        give_way().await;
    }
    // What is built at the end needs the room.
    drop(buffer);
    loading.finish().map_err(|error| error.to_string())
}

/// Why a device was not accepted.
pub enum Unproved {
    /// Another device may do better.
    Device(String),
    /// The CPU cannot hold these models; WebGPU may.
    TooLarge(String),
    /// No device will do better.
    Bundle(String),
}

/// One pane's answer and its own clock.
struct Turn<'e> {
    id: u32,
    pane: Pane,
    decoding: Decoding<'e>,
    /// Present until the answer ends.
    text: Option<TextStream<'e>>,
    ids: Vec<u32>,
    first_token_s: f64,
    decode_s: f64,
}

impl Turn<'_> {
    fn running(&self) -> bool {
        self.text.is_some()
    }

    /// One token, or the end.
    async fn step(&mut self) -> Result<()> {
        let Some(text) = &mut self.text else { return Ok(()) };
        let started_s = elapsed_s();
        let token = self.decoding.next_tokens().await?.and_then(|row| row.into_iter().flatten().next());
        let took_s = elapsed_s() - started_s;
        if self.ids.is_empty() {
            self.first_token_s += took_s;
        } else {
            self.decode_s += took_s;
        }
        let Some(token) = token else {
            self.close(AnswerEnd::Complete);
            return Ok(());
        };
        self.ids.push(token);
        if let Some(piece) = text.push(token)? {
            self.say(piece);
        }
        Ok(())
    }

    /// Ends the answer if it has not ended yet.
    fn close(&mut self, end: AnswerEnd) {
        let Some(text) = self.text.take() else { return };
        let rest = text.finish();
        if !rest.is_empty() {
            self.say(rest);
        }
        let decoded = self.ids.len().saturating_sub(1);
        let tokens_per_second = (decoded > 0 && self.decode_s > 0.0).then(|| decoded as f64 / self.decode_s);
        let ids = std::mem::take(&mut self.ids);
        let report = PaneReport { tokens: ids.len(), ids, first_token_s: self.first_token_s, tokens_per_second, end };
        post(&Event::Finished { id: self.id, pane: self.pane, report });
    }

    fn say(&self, text: String) {
        post(&Event::Text { id: self.id, pane: self.pane, text, tokens: self.ids.len() });
    }
}

/// Whether an error leaves the device usable: what is wrong with a prompt is, a failed device is not.
pub fn survives(error: &Error) -> bool {
    !matches!(error, Error::Device(_))
}
