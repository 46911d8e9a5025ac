//! The files of a model's weights: one `model.safetensors`, or shards with an index. In, they are mapped, judged by their
//! headers and then streamed to the device; out, they are streamed from it. Must not know: config, tokenizer, settings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use cctuning::checkpoint::{Checkpoint, DECISION_MAKER, Loading, Storage};
use cctuning::config::ModelConfig;
use cctuning::model::CcModel;
use cctuning::saving::{self, Outgoing};
use serde_json::{Map, Value, json};

use crate::mapped::Mapped;
use crate::progress::Progress;
use crate::run_folder::{file_sha256, read_if_there, stream_file_atomically, write_file_atomically};

pub const SINGLE_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Bytes of a file of weights if nobody says otherwise.
pub const SHARD_BYTES: usize = 4_000_000_000;
/// How a model folder is written.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub storage: Storage,
    /// Largest file of weights; more than one of them get an index.
    pub shard_bytes: usize,
    /// Whether what only CC-Tuning knows goes along: the Decision Maker and `cctuning.json`.
    pub connection: bool,
}

impl Layout {
    /// Everything, in files of the usual size.
    pub fn of(storage: Storage) -> Self {
        Self { storage, shard_bytes: SHARD_BYTES, connection: true }
    }
}

/// What takes less than about a second to load shows no progress.
const WORTH_SHOWING: usize = 256 << 20;

/// Reads the weights of a folder. Whatever is wrong with index, headers, names, shapes and types is found before any
/// weight is read.
pub fn load_weights(path: &Path, config: &ModelConfig, seed: u64, device: &Device) -> Result<CcModel> {
    let index = index(path)?;
    let files: BTreeSet<&str> = match &index {
        Some(index) => index.values().map(String::as_str).collect(),
        None => [SINGLE_FILE].into(),
    };
    let open = |file: &str| -> Result<(String, Mapped)> {
        let mapped = Mapped::open(&path.join(file)).with_context(|| match &index {
            Some(_) => format!("{INDEX_FILE} names {file}; the download or copy is not complete"),
            None => "a model folder holds config.json, tokenizer.json and model.safetensors or its shards".into(),
        })?;
        Ok((path.join(file).display().to_string(), mapped))
    };
    let files = files.into_iter().map(|file| Ok((file, open(file)?))).collect::<Result<Vec<_>>>()?;
    let mut all = Checkpoint::default();
    for (file, (name, mapped)) in &files {
        if let Some(index) = &index {
            let mut one = Checkpoint::default();
            one.add(name, mapped)?;
            agree(index, file, &one.names().collect()).with_context(|| path.join(INDEX_FILE).display().to_string())?;
        }
        all.add(name, mapped)?;
    }
    device.seed(seed);
    let mut loading = Loading::new(CcModel::new(config, device));
    loading.check(&all).with_context(|| path.display().to_string())?;

    let total = files.iter().map(|(_, (_, mapped))| mapped.len()).sum();
    let mut progress = (total >= WORTH_SHOWING).then(|| Progress::new("loading", total, 0));
    let mut done = 0;
    for (_, (name, mapped)) in &files {
        loading.add_telling(name, mapped, &mut |used| {
            mapped.release(used);
            done += used.len();
            if let Some(progress) = &mut progress {
                progress.bytes(done);
            }
        })?;
    }
    if let Some(progress) = &mut progress {
        progress.bytes(total);
    }
    loading.finish().with_context(|| path.display().to_string())
}

/// The file of every tensor, if the folder has an index. Beside a single file it is a leftover, as for `transformers`.
///
/// # Errors
/// It cannot be read, or as [`parse_index`].
fn index(path: &Path) -> Result<Option<BTreeMap<String, String>>> {
    if path.join(SINGLE_FILE).exists() {
        return Ok(None);
    }
    let path = path.join(INDEX_FILE);
    let bytes = read_if_there(&path)?;
    bytes.map(|bytes| parse_index(&bytes).with_context(|| path.display().to_string())).transpose()
}

/// The files of weights that a folder's index names, or the one there is without an index.
///
/// # Errors
/// As [`index`].
pub fn names(path: &Path) -> Result<BTreeSet<String>> {
    Ok(index(path)?.map_or_else(|| [SINGLE_FILE.to_string()].into(), |files| files.into_values().collect()))
}

/// Whether two folders hold the same weights, file by file.
///
/// # Errors
/// A file that is there cannot be read.
pub fn same(one: &Path, other: &Path) -> Result<bool> {
    let files = names(one)?;
    if files != names(other)? {
        return Ok(false);
    }
    for file in files {
        let [one, other] = [one, other].map(|folder| folder.join(&file));
        if !one.exists() || !other.exists() || file_sha256(&one)? != file_sha256(&other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads `model.safetensors.index.json`: the file of every tensor.
///
/// # Errors
/// It is not JSON, has no `weight_map` from names to files beside it, or an empty one.
pub fn parse_index(bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let index: Value = serde_json::from_slice(bytes)?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        bail!("expected an object `weight_map` from tensor names to files, found none; fetch it again");
    };
    ensure!(!map.is_empty(), "`weight_map` is empty; fetch it again");
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let plain = file.as_str().filter(|file| {
            file.ends_with(".safetensors") && !file.starts_with('.') && !file.contains(['/', '\\', ':', '\0'])
        });
        let Some(plain) = plain else {
            bail!(
                "`weight_map` puts `{tensor}` into {file}, expected the name of a .safetensors file beside the index"
            );
        };
        files.insert(tensor.clone(), plain.to_string());
    }
    Ok(files)
}

/// Whether a shard holds what the index says, no more and no less.
fn agree(index: &BTreeMap<String, String>, file: &str, found: &BTreeSet<&str>) -> Result<()> {
    for (tensor, home) in index.iter().filter(|(_, home)| *home == file) {
        ensure!(found.contains(tensor.as_str()), "`weight_map` puts `{tensor}` into {home}, which does not hold it");
    }
    for tensor in found {
        match index.get(*tensor) {
            Some(home) if home == file => {}
            Some(home) => bail!("`weight_map` puts `{tensor}` into {home}, and {file} holds it"),
            None => bail!("{file} holds `{tensor}`, which `weight_map` does not name"),
        }
    }
    Ok(())
}

/// Writes weights as one file, or as shards of at most `shard_bytes` with an index. What stood there before is gone.
pub fn save_weights(model: &CcModel, path: &Path, layout: Layout) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    let Layout { storage, shard_bytes, connection } = layout;
    let mut tensors = saving::outgoing(model);
    tensors.retain(|tensor| connection || tensor.name != DECISION_MAKER);
    let shards = saving::shards(tensors, storage, shard_bytes);
    let names: Vec<String> = match shards.len() {
        1 => vec![SINGLE_FILE.into()],
        n => (1..=n).map(|shard| format!("model-{shard:05}-of-{n:05}.safetensors")).collect(),
    };
    // The index goes first: shards without one are no model, an old index with new shards would be a wrong one.
    remove(&path.join(INDEX_FILE))?;
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_weights = name.starts_with("model") && name.ends_with(".safetensors");
        if is_weights && !names.contains(&name) {
            remove(&path.join(name))?;
        }
    }
    let mut map = Map::new();
    let mut bytes = 0;
    for (name, shard) in names.iter().zip(&shards) {
        stream_file_atomically(&path.join(name), |out| saving::write(shard, storage, out))?;
        bytes += shard.iter().map(|tensor| tensor.bytes(storage)).sum::<usize>();
        map.extend(shard.iter().map(|Outgoing { name: tensor, .. }| (tensor.clone(), json!(name))));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": map });
        write_file_atomically(&path.join(INDEX_FILE), format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
