//! Ten thousand damaged configurations, headers, indices and manifests each. A seed gives its input again.

use burn::tensor::Device;
use cctuning::bundle::{FORMAT, FileEntry, Manifest};
use cctuning::checkpoint::{self, Checkpoint, Loading, Storage, save};
use cctuning::config::{Family, ModelConfig};
use cctuning::model::CcModel;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use trainer::weight_files::parse_index;

use crate::small_model::{config, model};

const INPUTS: u64 = 10_000;

/// One to four changes of bytes.
fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len().max(1));
        let to = (at + rng.random_range(1..60)).min(bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 => bytes.truncate(at),
            2 if at < to => drop(bytes.drain(at..to)),
            3 if at < to => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let words: [&[u8]; 8] =
                    [b"99999999999", b"-1", b"1e999", b"null", b"[[[[", b"{\"a\":", b"\"..\"", b"\xff\xfe"];
                let at = at.min(bytes.len());
                bytes.splice(at..at, words[rng.random_range(0..words.len())].iter().copied());
            }
        }
    }
}

/// Puts something unexpected at one place of a JSON value.
fn unsettle(value: &mut Value, rng: &mut ChaCha8Rng) {
    let deeper = rng.random_range(0..8) > 0;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let at = rng.random_range(0..fields.len());
            let (_, inner) = fields.iter_mut().nth(at).unwrap();
            unsettle(inner, rng);
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            unsettle(&mut items[at], rng);
        }
        other => {
            let strange = [
                json!(null),
                json!(0),
                json!(-1),
                json!(1),
                json!(3),
                json!(0.5),
                json!(u64::MAX),
                json!(1u64 << 33),
                json!(1e308),
                json!([]),
                json!({}),
                json!([0, u64::MAX]),
                json!(""),
                json!("../x"),
                json!("model.norm.weight.rows.7"),
                json!(true),
            ];
            *other = strange[rng.random_range(0..strange.len())].clone();
        }
    }
}

/// Every input of one kind: half damaged as bytes, half as JSON. Returns how many were accepted all the same.
fn each(kind: u64, good: &Value, mut read: impl FnMut(&[u8]) -> bool) -> usize {
    assert!(read(good.to_string().as_bytes()), "the undamaged input is accepted");
    let mut accepted = 0;
    for seed in 0..INPUTS {
        let mut rng = ChaCha8Rng::seed_from_u64(kind << 32 | seed);
        let mut json = good.clone();
        if seed % 2 == 0 {
            (0..rng.random_range(1..4)).for_each(|_| unsettle(&mut json, &mut rng));
        }
        let mut bytes = json.to_string().into_bytes();
        if seed % 2 == 1 {
            mutate(&mut bytes, &mut rng);
        }
        accepted += usize::from(read(&bytes));
    }
    assert!(accepted < INPUTS as usize * 9 / 10, "hardly anything was refused");
    accepted
}

#[test]
fn damaged_configurations_are_refused_or_make_a_model() {
    for (kind, family) in [(1, Family::Llama), (2, Family::Qwen2), (3, Family::Mistral)] {
        each(kind, &config(family, true).to_json("float32"), |bytes| match ModelConfig::from_json(bytes) {
            Ok(config) => {
                // What is let through is what a model can be made of, and is written down as it was read.
                CcModel::new(&config, &Device::flex());
                let again = ModelConfig::from_json(config.to_json("float32").to_string().as_bytes()).unwrap();
                assert_eq!(again, config);
                true
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                false
            }
        });
    }
}

#[test]
fn damaged_headers_are_refused_or_read() {
    let made = config(Family::Llama, true);
    for (kind, storage) in [(4, Storage::F32), (5, Storage::Q8)] {
        let whole = save(&model(&made, 1), storage).unwrap();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
        let loading = Loading::new(CcModel::new(&made, &Device::flex()));
        each(kind, &header, |header| {
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header);
            file.extend(&whole[8 + length..]);
            let mut checkpoint = Checkpoint::default();
            let judged = checkpoint.add("a file", &file).and_then(|()| loading.check(&checkpoint));
            // What is let through is read too; it may lack a tensor then, and that is an error.
            if judged.is_ok() {
                checkpoint::load(CcModel::new(&made, &Device::flex()), &checkpoint).ok();
            }
            judged.is_ok()
        });
    }
}

#[test]
fn damaged_lengths_of_headers_are_refused() {
    let whole = save(&model(&config(Family::Llama, true), 1), Storage::F32).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    for seed in 0..INPUTS {
        let mut rng = ChaCha8Rng::seed_from_u64(6 << 32 | seed);
        let mut file = whole.clone();
        let wrong = rng.random::<u64>() >> rng.random_range(0..64);
        file[..8].copy_from_slice(&wrong.to_le_bytes());
        assert!(wrong == length || Checkpoint::default().add("a file", &file).is_err(), "seed {seed}");
    }
}

#[test]
fn damaged_indices_are_refused_or_name_plain_files() {
    let names = ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"];
    let map: Value = names.iter().map(|name| (name.to_string(), json!("model-00001-of-00002.safetensors"))).collect();
    each(7, &json!({ "metadata": { "total_size": 7 }, "weight_map": map }), |bytes| match parse_index(bytes) {
        Ok(files) => {
            assert!(!files.is_empty() && files.values().all(|file| !file.contains(['/', '\\'])));
            true
        }
        Err(_) => false,
    });
}

#[test]
fn damaged_manifests_are_refused_or_stay_in_their_folder() {
    let files = ["a.safetensors", "b.safetensors", "c.safetensors", "t.json", "e.json", "g.json"];
    let entries: Vec<FileEntry> = files.iter().map(|file| FileEntry::of(file, b"1")).collect();
    let good = json!({
        "format": FORMAT, "title": "t", "origin": "o", "config": config(Family::Llama, true).to_json("float32"),
        "template": "plain", "anchor": "last_prompt",
        "connection": serde_json::to_value(cctuning::generate::ConnectionOptions::default()).unwrap(),
        "max_new_tokens": 3, "languages": [{ "code": "es", "name": "Español" }],
        "parts": { "vanilla": ["a.safetensors"], "cc": ["a.safetensors", "b.safetensors"],
                   "transform": ["c.safetensors"], "tokenizer": "t.json", "examples": "e.json", "golden": "g.json" },
        "files": entries,
    });
    each(8, &good, |bytes| match Manifest::parse(bytes) {
        Ok(manifest) => {
            let plain = |path: &str| !path.starts_with('/') && path.split('/').all(|part| part != "..");
            assert!(manifest.files.iter().all(|file| plain(&file.path)));
            manifest.config().is_ok()
        }
        Err(_) => false,
    });
}
