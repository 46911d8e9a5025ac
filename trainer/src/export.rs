//! The web bundle: both models in 8-bit blocks, the Transform Matrix, tokenizer, examples and golden answers, each file
//! named by a manifest with its size and sha256.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use cctuning::bundle::{
    Bundle, BundleLoading, Example, FORMAT, FileEntry, GOLDEN_PROMPTS, Golden, LARGEST_FILE, Language, Manifest, Parts,
    hex,
};
use cctuning::generate::Source;
use cctuning::saving::{self, Outgoing, Storage, outgoing};
use cctuning::transform_matrix::{TRANSFORM_TENSOR, TransformMatrix};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::corpus::LANGUAGES;
use crate::data::Row;
use crate::model_folder::ModelFolder;
use crate::run_folder::{stream_file_atomically, write_file_atomically};
use crate::weight_files::remove;

const MANIFEST_FILE: &str = "manifest.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const EXAMPLES_FILE: &str = "examples.json";
/// Prompts per language that the page offers.
const EXAMPLES_PER_LANGUAGE: usize = 6;
const GOLDEN_FILE: &str = "golden.json";
/// What a shard's header may take of it.
const HEADER_BYTES: usize = 1 << 16;

/// What a bundle is made of.
pub struct Content<'a> {
    pub title: &'a str,
    /// The command and seed that made the models.
    pub origin: &'a str,
    pub vanilla: &'a ModelFolder,
    pub cc: &'a ModelFolder,
    pub transform: &'a TransformMatrix,
    pub examples: &'a [Example],
    pub max_new_tokens: usize,
}

/// Writes the bundle into `out`, reads it back as the page would, and returns its size in bytes.
pub fn bundle(content: &Content, out: &Path) -> Result<u64> {
    let Content { vanilla, cc, .. } = content;
    if vanilla.config != cc.config || vanilla.tokenizer_json != cc.tokenizer_json {
        bail!("the two models of a bundle must share config.json and tokenizer.json; train both from the same base");
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let former = fs::read(out.join(MANIFEST_FILE)).unwrap_or_default();
    let (mut both, mut only_vanilla, mut only_cc) = (Vec::new(), Vec::new(), Vec::new());
    for (of_vanilla, of_cc) in outgoing(&vanilla.model).into_iter().zip(outgoing(&cc.model)) {
        if of_vanilla.equals(&of_cc) {
            both.push(of_cc);
        } else {
            only_vanilla.push(of_vanilla);
            only_cc.push(of_cc);
        }
    }
    let transform = content.transform.to_tensors().into_iter().map(|(name, _, values)| {
        // Matrices one below the other, so that a file may end between any two rows.
        let d_model = cc.config.d_model;
        let is_matrix = name == TRANSFORM_TENSOR;
        let shape = if is_matrix { vec![values.len() / d_model, d_model] } else { vec![values.len()] };
        Outgoing::new(&name, shape, values)
    });
    let shards = |tensors: Vec<Outgoing>, storage| write_shards(tensors, storage, out);
    let both = shards(both, Storage::Q8)?;
    let parts = [shards(only_vanilla, Storage::Q8)?, shards(only_cc, Storage::Q8)?]
        .map(|own| both.iter().cloned().chain(own).collect::<Vec<FileEntry>>());
    let weights = Weights { parts, transform: shards(transform.collect(), Storage::F32)? };

    let mut small: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    small.insert(TOKENIZER_FILE, vanilla.tokenizer_json.clone());
    small.insert(EXAMPLES_FILE, serde_json::to_vec(content.examples)?);
    small.insert(GOLDEN_FILE, b"[]".to_vec());
    // The golden answers are those of the quantized models, so they are computed from the bundle itself.
    let device = Device::flex();
    let unproven = fill(manifest(content, &weights, &small), &device, |entry| match small.get(entry.path.as_str()) {
        Some(bytes) => Ok(bytes.clone()),
        None => read(out, &entry.path),
    })?;
    small.insert(GOLDEN_FILE, golden(&unproven)?);
    drop(unproven);
    let manifest = manifest(content, &weights, &small);
    for (path, bytes) in &small {
        write_file_atomically(&out.join(path), bytes)?;
    }
    let manifest_json = serde_json::to_vec_pretty(&manifest)?;
    write_file_atomically(&out.join(MANIFEST_FILE), &manifest_json)?;
    remove_former(&former, &manifest, out)?;

    let written = load(out, &device)?;
    let test = burn::tensor::read_sync(written.self_test(usize::MAX))?;
    if !test.passed {
        bail!("{}: the bundle read back does not pass its own self-test: {test:?}", out.display());
    }
    Ok(manifest.files.iter().map(|file| file.bytes).sum::<u64>() + manifest_json.len() as u64)
}

/// Loads a bundle from a folder, one file at a time.
pub fn load(folder: &Path, device: &Device) -> Result<Bundle> {
    let manifest = Manifest::parse(&read(folder, MANIFEST_FILE)?).with_context(|| folder.display().to_string())?;
    fill(manifest, device, |entry| read(folder, &entry.path)).with_context(|| folder.display().to_string())
}

fn fill(manifest: Manifest, device: &Device, read: impl Fn(&FileEntry) -> Result<Vec<u8>>) -> Result<Bundle> {
    let mut loading = BundleLoading::new(manifest, device)?;
    for entry in loading.files() {
        let bytes = read(&entry)?;
        entry.verify(&bytes)?;
        loading.add(&entry.path, &bytes)?;
    }
    Ok(loading.finish()?)
}

fn read(folder: &Path, path: &str) -> Result<Vec<u8>> {
    fs::read(folder.join(path)).with_context(|| format!("cannot read {}", folder.join(path).display()))
}

/// Shards of the models and of the Transform Matrix.
struct Weights {
    /// Vanilla and CC-Tuned.
    parts: [Vec<FileEntry>; 2],
    transform: Vec<FileEntry>,
}

/// Streams tensors into files that are named by what is in them.
fn write_shards(tensors: Vec<Outgoing>, storage: Storage, out: &Path) -> Result<Vec<FileEntry>> {
    let limit = LARGEST_FILE as usize;
    let slices = tensors.into_iter().flat_map(|tensor| tensor.slices(storage, limit - HEADER_BYTES)).collect();
    let mut entries = Vec::new();
    for shard in saving::shards(slices, storage, limit) {
        let unnamed = out.join("shard.safetensors");
        let mut hash = Sha256::new();
        stream_file_atomically(&unnamed, |file| saving::write(&shard, storage, &mut Tee { file, hash: &mut hash }))?;
        let (sha256, bytes) = (hex(&hash.finalize()), fs::metadata(&unnamed)?.len());
        let path = format!("{sha256}.safetensors");
        fs::rename(&unnamed, out.join(&path)).with_context(|| format!("cannot write {}", out.join(&path).display()))?;
        entries.push(FileEntry { path, bytes, sha256 });
    }
    Ok(entries)
}

/// Writes and hashes.
struct Tee<'a> {
    file: &'a mut dyn Write,
    hash: &'a mut Sha256,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Removes what only the bundle that stood here before was made of.
fn remove_former(former: &[u8], manifest: &Manifest, out: &Path) -> Result<()> {
    let former: Value = serde_json::from_slice(former).unwrap_or_default();
    let paths = former["files"].as_array().into_iter().flatten().filter_map(|file| file["path"].as_str());
    for path in paths.filter(|path| !path.contains(['/', '\\']) && !path.starts_with('.')) {
        if manifest.files.iter().all(|file| file.path != path) {
            remove(&out.join(path))?;
        }
    }
    Ok(())
}

fn manifest(content: &Content, weights: &Weights, small: &BTreeMap<&str, Vec<u8>>) -> Manifest {
    let settings = content.cc.settings.clone();
    let mut languages: Vec<Language> = Vec::new();
    for example in content.examples {
        if !languages.iter().any(|language| language.code == example.lang) {
            let known = LANGUAGES.iter().find(|language| language.code == example.lang);
            let name = known.map_or(example.lang.as_str(), |language| language.endonym);
            languages.push(Language { code: example.lang.clone(), name: name.into() });
        }
    }
    let paths = |entries: &[FileEntry]| entries.iter().map(|entry| entry.path.clone()).collect();
    let Weights { parts: [vanilla, cc], transform } = weights;
    let mut files: Vec<FileEntry> = small.iter().map(|(path, bytes)| FileEntry::of(path, bytes)).collect();
    for entry in [transform, vanilla, cc].into_iter().flatten() {
        if !files.contains(entry) {
            files.push(entry.clone());
        }
    }
    Manifest {
        format: FORMAT.into(),
        title: content.title.into(),
        origin: content.origin.into(),
        config: content.cc.config.to_json("float32"),
        template: settings.template,
        anchor: settings.anchor,
        connection: settings.connection,
        max_new_tokens: content.max_new_tokens,
        languages,
        parts: Parts {
            vanilla: paths(vanilla),
            cc: paths(cc),
            transform: paths(transform),
            tokenizer: TOKENIZER_FILE.into(),
            examples: EXAMPLES_FILE.into(),
            golden: GOLDEN_FILE.into(),
        },
        files,
    }
}

/// What the page offers to ask: per language one row of each task, then a second of each.
pub fn examples(rows: &[Row]) -> Vec<Example> {
    let mut asked: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut turns: Vec<(usize, &Row)> = Vec::new();
    for row in rows {
        let turn = asked.entry((&row.lang, &row.task)).or_default();
        *turn += 1;
        turns.push((*turn, row));
    }
    turns.sort_by_key(|&(turn, _)| turn);
    let mut taken: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    let mut languages: Vec<&str> = Vec::new();
    for (_, row) in turns {
        let of_language = taken.entry(&row.lang).or_default();
        if of_language.is_empty() {
            languages.push(&row.lang);
        }
        if of_language.len() < EXAMPLES_PER_LANGUAGE {
            of_language.push(row);
        }
    }
    let example = |row: &Row| Example {
        lang: row.lang.clone(),
        prompt: row.instruction.clone(),
        english: row.instruction_en.clone(),
        gold: row.output.clone(),
    };
    languages.iter().flat_map(|lang| taken[lang].iter().map(|row| example(row))).collect()
}

/// The golden answers: to the first example of each direction of writing, or to two of the only one there is.
fn golden(bundle: &Bundle) -> Result<Vec<u8>> {
    let mut asked = [0; 2];
    let mut turns: Vec<(usize, &Example)> = Vec::new();
    for example in &bundle.examples {
        let is_right_to_left = example.prompt.chars().any(|c| ('\u{0590}'..='\u{08ff}').contains(&c));
        let turn = &mut asked[usize::from(is_right_to_left)];
        *turn += 1;
        turns.push((*turn, example));
    }
    turns.sort_by_key(|&(turn, _)| turn);
    let mut golden = Vec::new();
    for (_, Example { lang, prompt: text, .. }) in turns.into_iter().take(GOLDEN_PROMPTS) {
        let prompt = bundle.prompt(text)?;
        let answer = |source| burn::tensor::read_sync(bundle.golden_answer(&prompt, source));
        let (mut vanilla, mut cc) = (answer(Source::None)?, answer(Source::Transform)?);
        for logit in vanilla.logits.iter_mut().chain(&mut cc.logits) {
            // Four decimals are far below the tolerance and halve the file.
            *logit = (f64::from(*logit) * 1e4).round() as f32 / 1e4;
        }
        golden.push(Golden { lang: lang.clone(), prompt: text.clone(), vanilla, cc });
    }
    Ok(serde_json::to_vec(&golden)?)
}

/// A number of bytes as a person writes it.
///
/// # Errors
/// There is no unit, or no whole number above 0 before it.
pub fn shard_size(text: &str) -> Result<usize, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[number.len()..].to_ascii_uppercase().as_str() {
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("expected a number and KB, MB or GB, as in 500MB or 4GB".into()),
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| format!("{number:?} is no whole number above 0"))
}
