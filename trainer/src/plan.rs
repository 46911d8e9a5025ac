//! The memory a training run will need, part by part, from config and recipe alone: before anything is loaded.
//!
//! Large tensors are counted exactly; what lives for a moment inside a pass is estimated from the shapes that Burn's
//! graph keeps, and compared with what a run then took (`train` says both).

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cctuning::config::ModelConfig;
use clap::Args;

use crate::answers::CHUNK;
use crate::backward::LANE_TOKENS;
use crate::batches::micro_batches;
use crate::cli::RecipeArgs;
use crate::model_folder::{load_config, shipped, speech};
use crate::optim::PIECE;
use crate::precision::Precision;
use crate::recipe::{EnglishGrad, Place, Recipe};
use crate::sample::Sample;
use crate::step::MethodName;
use crate::{hub, inputs, memory};

/// Program and rows.
const PROGRAM: f64 = 55e6;
/// What the allocator keeps for each thread of passes that run side by side.
const THREAD: f64 = 15e6;
/// What a tokenizer holds of each word of its vocabulary.
const WORD: f64 = 430.0;
/// Tensors of a piece's size that live at once while the optimizer updates it.
const UPDATE: f64 = 4.0;
/// Tensors of the logits' size that live at once.
const LOGITS: f64 = 4.0;
/// Bytes of a number that is not rounded.
const F32: f64 = 4.0;

/// Which run to plan for.
#[derive(Args)]
pub struct PlanArgs {
    #[arg(long, value_enum, default_value = "cc")]
    method: MethodName,
    /// A config.json, instead of the model that the recipe names
    #[arg(long)]
    config: Option<PathBuf>,
    /// Memory of the device in GiB, if it is not this machine's
    #[arg(long)]
    memory: Option<f64>,
    /// Plan for a GPU: micro-batches one after the other
    #[arg(long)]
    gpu: bool,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    recipe: RecipeArgs,
}

/// One part of the memory, in bytes.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Part {
    pub name: &'static str,
    pub bytes: f64,
    pub why: String,
}

/// The parts of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    pub parameters: f64,
    /// What stands all the time.
    pub standing: Vec<Part>,
    /// What comes and goes; the largest of these decides.
    pub passing: Vec<Part>,
    /// Standing and the largest passing part.
    pub peak_bytes: f64,
    /// One checkpoint on the disk.
    pub checkpoint_bytes: f64,
    /// What could still be set for a smaller one.
    pub to_try: Vec<&'static str>,
}

/// The largest micro-batch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Padded.
    pub tokens: usize,
    pub longest_row: usize,
    pub answer_tokens: usize,
    /// Whether a step may have more than one.
    pub several: bool,
}

impl Largest {
    /// That the recipe lets through: as long as it may be, and every token of it an answer's.
    pub fn allowed(config: &ModelConfig, recipe: &Recipe) -> Self {
        let longest_row = recipe.data.cutoff.min(config.max_positions);
        let tokens = recipe.optim.micro_tokens.max(longest_row);
        let several = recipe.optim.batch_size * longest_row > recipe.optim.micro_tokens;
        Self { tokens, longest_row, answer_tokens: tokens, several }
    }

    /// Of some rows, whichever come together.
    pub fn of(samples: &[Sample], recipe: &Recipe) -> Self {
        let lengths: Vec<usize> = samples.iter().map(Sample::len).collect();
        let mut longest = lengths.clone();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        longest.truncate(recipe.optim.batch_size);
        let longest_row = lengths.iter().copied().max().unwrap_or(1);
        let twin = samples.iter().map(|sample| sample.english.ids.len()).max().unwrap_or(1);
        let batches = micro_batches(&lengths, recipe.optim.micro_tokens);
        let padded = |rows: &Vec<usize>| rows.len() * lengths[rows[0]];
        let answers = |rows: &Vec<usize>| rows.iter().map(|&row| samples[row].answer.len()).sum::<usize>();
        Self {
            tokens: batches.iter().map(padded).max().unwrap_or(1).max(twin),
            longest_row,
            answer_tokens: batches.iter().map(answers).max().unwrap_or(1),
            several: micro_batches(&longest, recipe.optim.micro_tokens).len() > 1,
        }
    }
}

/// Prints the plan, and whether it fits.
pub fn run(args: &PlanArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    let config = match (&args.config, &recipe.model.path) {
        (Some(path), _) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            ModelConfig::from_json(&bytes).with_context(|| path.display().to_string())?
        }
        (None, Place::Builtin) => load_config(&shipped("base"))?,
        (None, Place::Path(path)) => load_config(&hub::resolve_part(path, hub::Part::Config)?)?,
    };
    let threads = if args.gpu { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let largest = match rows(args, &recipe)? {
        Some(samples) => Largest::of(&samples, &recipe),
        None => Largest::allowed(&config, &recipe),
    };
    let plan = plan(&config, &recipe, args.method == MethodName::Cc, threads, largest);
    // How much a GPU has, only its owner knows.
    let here = memory::available().filter(|_| !args.gpu).map(|bytes| bytes as f64);
    let available = args.memory.map(|gib| gib * (1u64 << 30) as f64).or(here);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        println!("{}", plan.table(available));
    }
    Ok(())
}

/// The rows that the recipe trains on, in the model's tokens, where it names both or neither.
fn rows(args: &PlanArgs, recipe: &Recipe) -> Result<Option<Vec<Sample>>> {
    let model = match (&recipe.model.path, &recipe.data.train) {
        _ if args.config.is_some() => return Ok(None),
        (Place::Builtin, _) => shipped("base"),
        (Place::Path(path), Place::Path(_)) => path.clone(),
        (Place::Path(_), Place::Builtin) => return Ok(None),
    };
    let mut speech = speech(&model, recipe.model.template.named())?;
    speech.settings.anchor = recipe.cc.anchor;
    let renderer = inputs::renderer(recipe, &speech.tokenizer, &speech.settings);
    inputs::training_samples(recipe, &renderer, &speech.tokenizer_json).map(Some)
}

/// What training `config` by `recipe` needs where `threads` micro-batches, none larger than `largest`, run side by side.
pub fn plan(config: &ModelConfig, recipe: &Recipe, cc: bool, threads: usize, largest: Largest) -> Plan {
    let ModelConfig { d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, .. } = *config;
    let [d, ff, layers, heads, kv, width, vocab] =
        [d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab_size].map(|n| n as f64);
    let optim = &recipe.optim;
    let block = d * heads * width * 2.0 + d * kv * width * 2.0 + 3.0 * d * ff + 2.0 * d;
    let bias = if config.attention_bias { (heads + 2.0 * kv) * width } else { 0.0 };
    let table = vocab * d;
    let trained = layers * (block + bias) + table * if config.tie_word_embeddings { 1.0 } else { 2.0 } + d;
    let decision = d * layers;
    let gradients = trained + if cc { decision } else { 0.0 };
    let side_by_side = if optim.recompute { 1 } else { threads };
    // Beside their sum micro-batches have gradients of their own.
    let sets = if optim.recompute { 1 } else { side_by_side + 1 };
    // The twins are read by threads of their own.
    let pass_threads = if side_by_side > 1 { side_by_side as f64 * if cc { 2.0 } else { 1.0 } } else { 0.0 };
    let moment = if optim.moments == Precision::Bf16 { 2.0 } else { F32 };
    let part = |name, bytes, why: String| Part { name, bytes, why };
    let billions = |n: f64| format!("{:.3} B", n / 1e9);
    let standing = vec![
        part(
            "weights",
            F32 * (trained + decision),
            format!("{} in f32, their own master", billions(trained + decision)),
        ),
        part("gradients", F32 * gradients * sets as f64, format!("f32, {sets} at once")),
        part("moments", 2.0 * moment * gradients, format!("two, {} bytes each", moment)),
        part("program", PROGRAM + WORD * vocab + THREAD * pass_threads, "code, rows, tokenizer, threads".into()),
    ];

    let [tokens, seq, answers] = [largest.tokens, largest.longest_row, largest.answer_tokens].map(|n| n as f64);
    let of_layer = tokens * (10.0 * d + 6.0 * heads * width + 5.0 * ff) + 3.0 * tokens * seq * heads;
    // The English pass has a graph only where gradients flow through it.
    let passes = if cc && recipe.cc.english_grad == EnglishGrad::Full { 2.0 } else { 1.0 };
    let rounded_block = if optim.precision == Precision::Bf16 { block / 2.0 } else { 0.0 };
    let inputs = passes * layers * tokens * d;
    let graph = passes * ((layers + 1.0) * of_layer + layers * rounded_block);
    // What is kept for the way back, and that with what the way back itself holds.
    let (open, kept) = if optim.recompute {
        let lanes = if threads > 1 { (tokens / LANE_TOKENS as f64).ceil() } else { 1.0 };
        // Those that are computed, and one whose gradients wait to be added.
        let held = lanes.min(threads as f64 + 1.0);
        (inputs, inputs + 2.0 * of_layer * held / lanes + rounded_block * held + block * (held - 1.0))
    } else {
        (graph, graph)
    };
    let rows = (CHUNK as f64 / vocab).max(1.0).min(answers);
    let rounded = if optim.precision == Precision::Bf16 { table / 2.0 } else { 0.0 };
    // Burn's CPU backend makes a product's room twice and keeps one. The logits have gone by then, all but their gradient.
    let twice = if threads > 1 { table } else { 0.0 };
    let momentary = (LOGITS * rows * vocab).max(rows * vocab + twice) + rounded;
    // Of passes side by side, one is where it holds most. How far the others are then was measured: three quarters of the
    // way where they began together, half of it where they had read twins of different lengths before.
    let at_once = 1.0 + (side_by_side - 1) as f64 * if cc { 0.5 } else { 0.75 };
    // The head goes back first, in the room of gradients that are not there yet, unless it adds to those of micro-batches
    // before.
    let not_yet = match (optim.recompute, largest.several) {
        (true, true) => 0.0,
        (true, false) => F32 * (gradients - table),
        (false, _) => F32 * gradients * side_by_side as f64,
    };
    let biggest = table.max(d * ff);
    let spent = F32 * gradients * (sets - 1) as f64;
    let passing = vec![
        part(
            "a pass and its way back",
            F32 * kept * side_by_side as f64,
            format!(
                "{tokens} tokens at once, rows of up to {seq}, {}",
                if optim.recompute { "layer by layer" } else { "the whole graph" }
            ),
        ),
        part(
            "logits and the head",
            (F32 * ((table + open) * side_by_side as f64 + momentary * at_once) - not_yet).max(0.0),
            format!("{rows:.0} answer tokens at once, beyond the room of gradients still to come"),
        ),
        part(
            "an update",
            match threads > 1 {
                // Parts that fit into caches, in place.
                true => 0.0,
                false => (F32
                    * (UPDATE * biggest.min(PIECE as f64) + if biggest > PIECE as f64 { biggest } else { 0.0 })
                    - spent)
                    .max(0.0),
            },
            "old, new and between, beyond the room of gradients that are summed up".into(),
        ),
    ];
    let to_try = [
        (!optim.recompute, "--set optim.recompute=true"),
        (optim.moments == Precision::F32, "--set optim.moments=bf16"),
        (true, "a smaller optim.micro_tokens or data.cutoff"),
    ];
    let to_try = to_try.into_iter().filter_map(|(left, what)| left.then_some(what)).collect();
    let sum: f64 = standing.iter().map(|part| part.bytes).sum();
    let largest = passing.iter().map(|part| part.bytes).fold(0.0, f64::max);
    Plan {
        parameters: trained,
        standing,
        passing,
        peak_bytes: sum + largest,
        checkpoint_bytes: F32 * (trained + decision) + 2.0 * moment * gradients,
        to_try,
    }
}

impl Plan {
    /// For a person.
    pub fn table(&self, available: Option<f64>) -> String {
        let mut text = format!("{:.3} B parameters\n", self.parameters / 1e9);
        let mut line = |name: &str, bytes: f64, why: &str| {
            let _ = writeln!(text, "  {name:<28}{:>9}  {why}", size(bytes));
        };
        for part in &self.standing {
            line(part.name, part.bytes, &part.why);
        }
        let largest = self.passing.iter().map(|part| part.bytes).fold(0.0, f64::max);
        for part in &self.passing {
            let why = if part.bytes == largest { part.why.clone() } else { format!("({}; another time)", part.why) };
            line(part.name, part.bytes, &why);
        }
        line("peak", self.peak_bytes, "");
        line("a checkpoint on disk", self.checkpoint_bytes, "");
        if let Some(available) = available {
            let verdict = if self.peak_bytes <= available { "fits into" } else { "does NOT fit into" };
            let _ = writeln!(text, "{verdict} {} of memory", size(available));
            if self.peak_bytes > available {
                let _ = writeln!(text, "try {}", self.to_try.join(", "));
            }
        }
        text
    }
}

/// In the unit that GPUs are sold in.
pub fn size(bytes: f64) -> String {
    let gib = bytes / (1u64 << 30) as f64;
    if gib >= 1.0 { format!("{gib:.2} GiB") } else { format!("{:.1} MiB", gib * 1024.0) }
}
