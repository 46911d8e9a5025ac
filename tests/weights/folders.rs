//! Folders of weights on the disk.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::{Checkpoint, DECISION_MAKER, Storage, save_tensors};
use cctuning::config::{Family, ModelConfig};
use cctuning::generate::Stop;
use cctuning::transform_matrix::TRANSFORM_TENSOR;
use serde_json::{Value, json};
use trainer::model_folder::{Layout, ModelFolder, TRANSFORM_FILE};

use crate::small_model::{config, folder, tensors};

const INDEX: &str = "model.safetensors.index.json";
const SHARDED: Layout = Layout { storage: Storage::F32, shard_bytes: 40_000, connection: true };

fn load(path: &Path) -> anyhow::Result<ModelFolder> {
    ModelFolder::load(path, None, 0, &Device::flex())
}

fn files(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("model"));
    names.sort();
    names
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_folder_in_shards_is_the_folder_in_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Qwen2, false), ChatTemplate::PLAIN, 1);
    made.save_as(&made.model, dir.path(), SHARDED).unwrap();
    let sharded = files(dir.path());
    assert!(sharded.len() > 3 && sharded.contains(&INDEX.to_string()), "{sharded:?}");
    let mut bytes = 0;
    for shard in sharded.iter().filter(|name| *name != INDEX) {
        assert!(shard.ends_with(&format!("-of-{:05}.safetensors", sharded.len() - 1)), "{shard}");
        let size = fs::metadata(dir.path().join(shard)).unwrap().len();
        assert!(size <= 40_000, "{shard} has {size} bytes");
        bytes += size;
    }
    let index = json_of(&dir.path().join(INDEX));
    let total = index["metadata"]["total_size"].as_u64().unwrap();
    assert!(total < bytes && total > bytes * 9 / 10, "{total} of {bytes}");
    assert_eq!(tensors(&load(dir.path()).unwrap().model), tensors(&made.model));
    // What stood there before is not taken for a part of what is written next.
    made.save_model(&made.model, dir.path(), Storage::F32).unwrap();
    assert_eq!(files(dir.path()), ["model.safetensors"]);
    assert_eq!(tensors(&load(dir.path()).unwrap().model), tensors(&made.model));
}

#[test]
fn beside_a_single_file_an_index_is_a_leftover_as_for_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = [1, 2].map(|seed| folder(config(Family::Qwen2, false), ChatTemplate::PLAIN, seed));
    old.save_as(&old.model, dir.path(), SHARDED).unwrap();
    let single = tempfile::tempdir().unwrap();
    new.save_model(&new.model, single.path(), Storage::F32).unwrap();
    fs::copy(single.path().join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert_eq!(tensors(&load(dir.path()).unwrap().model), tensors(&new.model));
}

#[test]
fn a_plain_folder_holds_nothing_that_other_programs_do_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Llama, false), ChatTemplate::PLAIN, 1);
    made.save_model(&made.model, dir.path(), Storage::F32).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "of a model that stood here before").unwrap();
    made.save_as(&made.model, dir.path(), Layout { connection: false, ..Layout::of(Storage::F32) }).unwrap();
    assert!(!dir.path().join("cctuning.json").exists() && !dir.path().join("chat_template.jinja").exists());
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let mut stored = Checkpoint::default();
    stored.add("model.safetensors", &bytes).unwrap();
    let mut expected = tensors(&made.model);
    expected.remove(DECISION_MAKER).expect("the model has one");
    assert!(stored.names().eq(expected.keys()), "{:?}", stored.names().collect::<Vec<_>>());
    let again = load(dir.path()).unwrap();
    assert_eq!(again.settings.template, ChatTemplate::PLAIN, "derived from what is written for transformers");
    assert_eq!(json_of(&dir.path().join("config.json"))["rope_scaling"]["original_max_position_embeddings"], json!(64));
}

#[test]
fn what_a_source_says_of_text_and_of_generating_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    let stop = made.settings.template.stop_ids(&made.tokenizer).unwrap()[0];
    made.save_as(&made.model, dir.path(), Layout { connection: false, ..Layout::of(Storage::F32) }).unwrap();
    let jinja = format!("{{# a comment of its own #}}{}", ChatTemplate::PLAIN.to_jinja());
    fs::write(path("chat_template.jinja"), &jinja).unwrap();
    let text = json!({ "tokenizer_class": "Of", "pad_token": "<|user|>", "eos_token": { "content": "<|user|>" } });
    fs::write(path("tokenizer_config.json"), text.to_string()).unwrap();
    let generation = json!({ "eos_token_id": [9, stop], "pad_token_id": 7, "do_sample": true, "temperature": 0.7 });
    fs::write(path("generation_config.json"), generation.to_string()).unwrap();
    let read = load(dir.path()).unwrap();
    // Twice: what was written is a source as well.
    let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    read.save_model(&read.model, once.path(), Storage::F32).unwrap();
    let again = load(once.path()).unwrap();
    again.save_model(&again.model, twice.path(), Storage::F32).unwrap();
    for written in [once.path(), twice.path()] {
        let text = json_of(&written.join("tokenizer_config.json"));
        assert_eq!((&text["tokenizer_class"], &text["pad_token"]), (&json!("Of"), &json!("<|user|>")));
        assert_eq!((&text["eos_token"], &text["chat_template"]), (&json!("<|end|>"), &json!(jinja)));
        assert_eq!(text["model_input_names"], json!(["input_ids", "attention_mask"]));
        let expected = json!({ "eos_token_id": [stop, 9], "pad_token_id": 7, "do_sample": false });
        assert_eq!(json_of(&written.join("generation_config.json")), expected);
    }
    // Another template than the folder's has no text but ours.
    let named = ModelFolder::load(dir.path(), Some(ChatTemplate::PLAIN), 0, &Device::flex()).unwrap();
    named.save_model(&named.model, once.path(), Storage::F32).unwrap();
    let text = json_of(&once.path().join("tokenizer_config.json"));
    assert_eq!(text["chat_template"], json!(ChatTemplate::PLAIN.to_jinja()));
}

#[test]
fn what_is_wrong_with_an_index_is_said_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Llama, false), ChatTemplate::PLAIN, 1);
    made.save_as(&made.model, dir.path(), SHARDED).unwrap();
    let good = json_of(&dir.path().join(INDEX));
    let refused = |index: &str, parts: &[&str]| {
        fs::write(dir.path().join(INDEX), index).unwrap();
        let error = format!("{:#}", load(dir.path()).map(|_| ()).expect_err("a wrong index was accepted"));
        for part in parts {
            assert!(error.contains(part), "expected {part} in: {error}");
        }
    };
    let with = |tensor: &str, file: Value, parts: &[&str]| {
        let mut index = good.clone();
        match file {
            Value::Null => drop(index["weight_map"].as_object_mut().unwrap().remove(tensor)),
            file => index["weight_map"][tensor] = file,
        }
        refused(&index.to_string(), &[parts, &[INDEX]].concat());
    };
    let shards = files(dir.path());
    let norm = "model.norm.weight";
    let home = good["weight_map"][norm].as_str().unwrap();
    let other = shards.iter().find(|name| *name != home && *name != INDEX).unwrap();
    refused("{", &[INDEX]);
    refused("{}", &[INDEX, "weight_map"]);
    refused(r#"{"weight_map": {}}"#, &[INDEX, "empty"]);
    with(norm, json!("../model.safetensors"), &[norm, "beside the index"]);
    with(norm, json!(7), &[norm, "7"]);
    with(norm, json!("model-00009-of-00009.safetensors"), &["model-00009-of-00009.safetensors"]);
    with(norm, json!(other), &[norm, other]);
    with(norm, Value::Null, &[norm, home, "does not name"]);
    with("model.extra.weight", json!(home), &["model.extra.weight", home, "does not hold it"]);
    fs::write(dir.path().join(INDEX), good.to_string()).unwrap();
    load(dir.path()).unwrap();
    fs::remove_file(dir.path().join(other)).unwrap();
    refused(&good.to_string(), &[other]);
}

#[test]
fn a_matrix_for_some_of_the_layers_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    made.save_model(&made.model, dir.path(), Storage::F32).unwrap();
    let with = |matrices: usize| {
        let values = vec![0.1; matrices * 32 * 32];
        let tensor = (TRANSFORM_TENSOR.to_string(), vec![matrices, 32, 32], values);
        fs::write(dir.path().join(TRANSFORM_FILE), save_tensors(vec![tensor], Storage::F32).unwrap()).unwrap();
        load(dir.path())
    };
    for matrices in [1, 3] {
        assert_eq!(with(matrices).unwrap().transform.unwrap().matrices(), matrices);
    }
    let error = format!("{:#}", with(2).map(|_| ()).expect_err("two matrices were accepted for three layers"));
    assert!(error.contains(TRANSFORM_FILE) && error.contains("one for each of 3 layers, found 2"), "{error}");
}

#[test]
fn a_configuration_keeps_what_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Qwen2, true), ChatTemplate::PLAIN, 1);
    made.save_model(&made.model, dir.path(), Storage::F32).unwrap();
    let path = dir.path().join("config.json");
    let mut source = json_of(&path);
    for (key, value) in [("initializer_range", json!(0.02)), ("bos_token_id", json!(3)), ("eos_token_id", json!(9))] {
        source[key] = value;
    }
    fs::write(&path, source.to_string()).unwrap();
    let again = load(dir.path()).unwrap();
    again.save_model(&again.model, dir.path(), Storage::Bf16).unwrap();
    let written = json_of(&path);
    assert_eq!((&written["initializer_range"], &written["bos_token_id"]), (&json!(0.02), &json!(3)));
    assert_eq!(written["torch_dtype"], "bfloat16");
    let stop = made.settings.template.stop_ids(&made.tokenizer).unwrap();
    assert_eq!(written["eos_token_id"], json!([9]));
    assert_eq!(Stop::Both.ids(&stop, &load(dir.path()).unwrap().config), [&stop[..], &[9]].concat());
    assert_eq!(json_of(&dir.path().join("generation_config.json"))["eos_token_id"], json!(stop));
}

#[test]
fn a_sliding_window_is_refused_where_it_would_hide_something() {
    let read = |json: &Value| ModelConfig::from_json(json.to_string().as_bytes());
    let mut mistral = config(Family::Mistral, false).to_json("float32");
    assert_eq!(read(&mistral).unwrap().family, Family::Mistral);
    mistral["sliding_window"] = json!(128);
    let error = read(&mistral).unwrap_err().to_string();
    assert!(error.contains("`sliding_window` is") && error.contains("128"), "{error}");
    mistral["sliding_window"] = json!(4096);
    read(&mistral).expect("a window as wide as the context hides nothing");
    let mut qwen = config(Family::Qwen2, false).to_json("float32");
    qwen["sliding_window"] = json!(128);
    read(&qwen).expect("Qwen2 has a switch for it, which is off");
}
