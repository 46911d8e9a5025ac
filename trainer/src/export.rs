//! The web bundle: both models in 8-bit blocks, the Transform Matrix, tokenizer, examples and golden answers, each file
//! named by a manifest with its size and sha256.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use cctuning::bundle::{Bundle, Example, FORMAT, FileEntry, Golden, Language, Manifest, Parts};
use cctuning::checkpoint::{Storage, save, save_tensors};
use cctuning::generate::Source;
use cctuning::transform_matrix::TransformMatrix;

use crate::corpus::LANGUAGES;
use crate::model_folder::{ModelFolder, TRANSFORM_FILE};
use crate::run_folder::write_file_atomically;

/// Golden prompts per language: enough to catch a device that computes wrongly, few enough to start quickly.
const GOLDEN_PER_LANGUAGE: usize = 1;

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
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    files.insert("vanilla.safetensors".into(), save(&vanilla.model, Storage::Q8)?);
    files.insert("cc.safetensors".into(), save(&cc.model, Storage::Q8)?);
    files.insert(TRANSFORM_FILE.into(), save_tensors(content.transform.to_tensors(), Storage::F32)?);
    files.insert("tokenizer.json".into(), vanilla.tokenizer_json.clone());
    files.insert("examples.json".into(), serde_json::to_vec(content.examples)?);
    files.insert("golden.json".into(), b"[]".to_vec());

    // The golden answers are those of the quantized models, so they are computed from the bundle itself.
    let device = Device::flex();
    let unproven = Bundle::load(manifest(content, &files), &files, &device)?;
    files.insert("golden.json".into(), serde_json::to_vec(&golden(&unproven)?)?);
    let manifest = manifest(content, &files);
    for (path, bytes) in &files {
        write_file_atomically(&out.join(path), bytes)?;
    }
    let manifest_json = serde_json::to_vec_pretty(&manifest)?;
    write_file_atomically(&out.join("manifest.json"), &manifest_json)?;

    let written = load(out, &device)?;
    let test = burn::tensor::read_sync(written.self_test(usize::MAX))?;
    if !test.passed {
        bail!("{}: the bundle read back does not pass its own self-test: {test:?}", out.display());
    }
    Ok(files.values().map(|bytes| bytes.len() as u64).sum::<u64>() + manifest_json.len() as u64)
}

/// Loads a bundle from a folder.
pub fn load(folder: &Path, device: &Device) -> Result<Bundle> {
    let read = |path: &str| {
        std::fs::read(folder.join(path)).with_context(|| format!("cannot read {}", folder.join(path).display()))
    };
    let manifest = Manifest::parse(&read("manifest.json")?).with_context(|| folder.display().to_string())?;
    let files =
        manifest.files.iter().map(|entry| Ok((entry.path.clone(), read(&entry.path)?))).collect::<Result<_>>()?;
    Bundle::load(manifest, &files, device).with_context(|| folder.display().to_string())
}

fn manifest(content: &Content, files: &BTreeMap<String, Vec<u8>>) -> Manifest {
    let settings = content.cc.settings.clone();
    let mut languages: Vec<Language> = Vec::new();
    for example in content.examples {
        if !languages.iter().any(|language| language.code == example.lang) {
            let known = LANGUAGES.iter().find(|language| language.code == example.lang);
            let name = known.map_or(example.lang.as_str(), |language| language.endonym);
            languages.push(Language { code: example.lang.clone(), name: name.into() });
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
            vanilla: vec!["vanilla.safetensors".into()],
            cc: vec!["cc.safetensors".into()],
            transform: TRANSFORM_FILE.into(),
            tokenizer: "tokenizer.json".into(),
            examples: "examples.json".into(),
            golden: "golden.json".into(),
        },
        files: files.iter().map(|(path, bytes)| FileEntry::of(path, bytes)).collect(),
    }
}

fn golden(bundle: &Bundle) -> Result<Vec<Golden>> {
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    let mut golden = Vec::new();
    for Example { lang, prompt: text, .. } in &bundle.examples {
        let taken = taken.entry(lang).or_default();
        if *taken == GOLDEN_PER_LANGUAGE {
            continue;
        }
        *taken += 1;
        let prompt = bundle.prompt(text)?;
        let answer = |source| burn::tensor::read_sync(bundle.golden_answer(&prompt, source));
        let (mut vanilla, mut cc) = (answer(Source::None)?, answer(Source::Transform)?);
        for logit in vanilla.logits.iter_mut().chain(&mut cc.logits) {
            // Four decimals are far below the tolerance and halve the file.
            *logit = (f64::from(*logit) * 1e4).round() as f32 / 1e4;
        }
        golden.push(Golden { lang: lang.clone(), prompt: text.clone(), vanilla, cc });
    }
    Ok(golden)
}
