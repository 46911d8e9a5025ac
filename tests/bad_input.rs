//! Proves that whatever is wrong with a file, a prompt or a command line becomes one clear sentence that names the
//! place, never a panic; through the library and through the built program.

mod small_model;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::{Device, read_sync};
use cctuning::bundle::{Bundle, Example, FileEntry, Golden, Manifest};
use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::{Checkpoint, Storage, load, save, save_tensors};
use cctuning::config::{Family, ModelConfig};
use cctuning::error::Result;
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use cctuning::transform_matrix::TransformMatrix;
use serde_json::{Value, json};
use trainer::export::{self, Content};
use trainer::model_folder::{ModelFolder, TRANSFORM_FILE};

use small_model::{config, folder, model, tensors, transform_file, write_folder};

type Stored = Vec<(String, Vec<usize>, Vec<f32>)>;

fn stored() -> Stored {
    let model = model(&config(Family::Llama, true), 1);
    tensors(&model).into_iter().map(|(name, (shape, values))| (name, shape, values)).collect()
}

fn load_bytes(bytes: &[u8]) -> Result<CcModel> {
    let mut checkpoint = Checkpoint::default();
    checkpoint.add("model.safetensors", bytes)?;
    load(CcModel::new(&config(Family::Llama, true), &Device::flex()), &checkpoint)
}

fn load_stored(stored: Stored) -> Result<CcModel> {
    load_bytes(&save_tensors(stored, Storage::F32).unwrap())
}

#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
    assert!(!error.contains('\n') && error.len() < 400, "not one sentence: {error}");
}

#[track_caller]
fn assert_error<T>(result: Result<T>, parts: &[&str]) {
    assert_says(&result.map(|_| ()).expect_err("bad input was accepted").to_string(), parts);
}

#[test]
fn a_safetensors_file_cut_anywhere_is_named() {
    let whole = save(&model(&config(Family::Llama, true), 1), Storage::Bf16).unwrap();
    load_bytes(&whole).unwrap();
    for at in (0..12).chain((12..whole.len()).step_by(997)).chain([whole.len() - 1]) {
        assert_error(load_bytes(&whole[..at]), &["model.safetensors", "not a complete safetensors file"]);
    }
    assert_error(load_bytes(b"<!DOCTYPE html><html></html>"), &["model.safetensors"]);
}

#[test]
fn a_safetensors_header_changed_anywhere_never_panics() {
    let whole = save(&model(&config(Family::Llama, true), 1), Storage::Q8).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in (0..header).step_by(11) {
        for byte in [0, b'9', b'"', 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let _ = load_bytes(&bytes);
        }
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for name in ["model.norm.weight", "model.layers.2.mlp.down_proj.weight", "model.embed_tokens.weight"] {
        let mut stored = stored();
        stored.retain(|(stored, ..)| stored != name);
        assert_error(load_stored(stored), &[name, "missing"]);
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let mut stored = stored();
    let at = stored.iter().position(|(name, ..)| name == "model.layers.1.mlp.up_proj.weight").unwrap();
    stored[at].1 = vec![32, 48];
    assert_error(load_stored(stored), &["model.layers.1.mlp.up_proj.weight", "[48, 32]", "[32, 48]"]);
}

#[test]
fn a_tensor_without_a_place_is_named() {
    let mut stored = stored();
    stored.push(("model.layers.3.mlp.up_proj.weight".into(), vec![1], vec![0.0]));
    assert_error(load_stored(stored), &["unexpected tensor", "model.layers.3.mlp.up_proj.weight"]);
    let qwen = save(&model(&config(Family::Qwen2, true), 1), Storage::F32).unwrap();
    assert_error(load_bytes(&qwen), &["unexpected tensor", "bias"]);
}

#[test]
fn quantized_weights_without_their_scales_are_named() {
    let bytes = save(&model(&config(Family::Llama, true), 1), Storage::Q8).unwrap();
    let text = String::from_utf8_lossy(&bytes[..8192]).into_owned();
    assert!(text.contains("embed_tokens.weight.scale"));
    let at = text.find("embed_tokens.weight.scale").unwrap();
    let mut renamed = bytes.clone();
    renamed[at + "embed_tokens.weight.".len()] = b'S';
    assert_error(load_bytes(&renamed), &["model.embed_tokens.weight.scale", "missing"]);
}

#[test]
fn an_architecture_or_option_that_is_not_computed_is_named() {
    let good = config(Family::Llama, true).to_json("float32");
    let read = |json: &Value| ModelConfig::from_json(json.to_string().as_bytes());
    read(&good).unwrap();
    let faults = [
        ("architectures", json!(["GemmaForCausalLM"]), "LlamaForCausalLM, Qwen2ForCausalLM, MistralForCausalLM"),
        ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_attention"),
        ("partial_rotary_factor", json!(0.5), "0.5"),
        ("rope_theta", json!(-1), "more than 0"),
        ("rope_scaling", json!("yarn"), "llama3"),
        ("rope_scaling", json!({"factor": 4.0}), "rope_type"),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4.0}), "dynamic"),
        ("hidden_act", json!("gelu"), "silu"),
        ("mlp_bias", json!(true), "false"),
        ("attention_bias", json!(true), "false but for Qwen2"),
        ("use_sliding_window", json!(true), "false"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "llama3"),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 4.0}), "low_freq_factor"),
        ("num_key_value_heads", json!(3), "not a multiple"),
        ("head_dim", json!(7), "even"),
        ("hidden_size", json!(0), "expected 1 to"),
        ("vocab_size", json!(1_u64 << 40), "expected 1 to"),
        ("num_attention_heads", json!(0), "expected 1 to"),
        ("num_hidden_layers", json!("three"), "invalid type"),
        ("intermediate_size", json!(-1), "invalid value"),
        ("rms_norm_eps", Value::Null, "null"),
        ("max_position_embeddings", json!(0), "expected 1 to"),
    ];
    for (key, value, expected) in faults {
        let mut json = good.clone();
        json[key] = value;
        let parts: &[&str] =
            if expected.starts_with("invalid") || expected == "null" { &[expected] } else { &[key, expected] };
        assert_error(read(&json), &[&["config.json"], parts].concat());
    }
    let mut json = good.clone();
    for key in ["architectures", "mlp_bias", "attention_bias", "use_sliding_window", "head_dim", "sliding_window"] {
        json[key] = Value::Null;
    }
    assert_eq!(read(&json).unwrap(), read(&good).unwrap());
    let mut json = good.clone();
    json.as_object_mut().unwrap().remove("hidden_size");
    assert_error(read(&json), &["config.json", "hidden_size"]);
    assert_error(ModelConfig::from_json(b"{"), &["config.json"]);
}

/// A whole small bundle: its manifest and files.
fn bundle() -> (Value, BTreeMap<String, Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let [vanilla, cc] = [1, 2].map(|seed| folder(config(Family::Llama, true), ChatTemplate::PLAIN, seed));
    let example = |lang: &str, prompt: &str| Example {
        lang: lang.into(),
        prompt: prompt.into(),
        english: "What?".into(),
        gold: "That.".into(),
    };
    let content = Content {
        title: "Two small models",
        origin: "a test",
        vanilla: &vanilla,
        cc: &cc,
        transform: &TransformMatrix::from_values(vec![0.1; 32 * 32], None, 32, &Device::flex()).unwrap(),
        examples: &[example("es", "¿Qué?"), example("ar", "ماذا؟")],
        max_new_tokens: 4,
    };
    export::bundle(&content, dir.path()).unwrap();
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let names = manifest["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_string());
    let files = names.map(|name| (name.clone(), read(&name))).collect();
    (manifest, files)
}

fn load_bundle(manifest: &Value, files: &BTreeMap<String, Vec<u8>>) -> Result<Bundle> {
    Bundle::load(Manifest::parse(manifest.to_string().as_bytes())?, files, &Device::flex())
}

#[test]
fn a_self_test_that_finds_another_logit_token_or_layer_does_not_pass() {
    let (manifest, files) = bundle();
    let passes = |change: fn(&mut Golden)| {
        let mut bundle = load_bundle(&manifest, &files).unwrap();
        change(&mut bundle.golden[1]);
        read_sync(bundle.self_test(usize::MAX)).unwrap().passed
    };
    assert!(passes(|_| ()));
    assert!(!passes(|golden| golden.vanilla.logits[3] += 0.01));
    assert!(!passes(|golden| golden.cc.logits[3] = f32::NAN));
    assert!(!passes(|golden| golden.cc.logits.truncate(5)));
    assert!(!passes(|golden| golden.vanilla.tokens[0] ^= 1));
    assert!(!passes(|golden| golden.cc.layer = golden.cc.layer.map(|layer| layer ^ 1)));
}

#[test]
fn a_manifest_that_is_not_one_or_leaves_its_folder_is_refused() {
    let (good, files) = bundle();
    load_bundle(&good, &files).unwrap();
    for bytes in [&b"{"[..], b"[]", b"null", b"{\"format\":\"cctuning-bundle/2\"}", b"\xff"] {
        assert_error(Manifest::parse(bytes), &["manifest.json"]);
    }
    let with = |change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        Manifest::parse(json.to_string().as_bytes())
    };
    assert_error(with(&|m| m["format"] = "cctuning-bundle/1".into()), &["cctuning-bundle/1", "cctuning-bundle/2"]);
    assert_error(with(&|m| m["files"][0]["bytes"] = json!(1u64 << 40)), &["manifest.json", "at most 33554432"]);
    assert_error(with(&|m| m["files"][0] = m["files"][1].clone()), &["manifest.json", "listed twice"]);
    for path in [
        "../cc.safetensors",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "https://x/y",
        "",
        "a//b",
        ".hidden",
        "a?b",
        "%2e%2e/b",
    ] {
        assert_error(with(&|m| m["files"][0]["path"] = path.into()), &["manifest.json", &format!("{path:?}")]);
    }
    assert_error(with(&|m| m["parts"]["cc"][0] = "other.safetensors".into()), &["other.safetensors", "`files`"]);
    assert_error(with(&|m| m["template"] = "gemma".into()), &["manifest.json", "gemma", "mistral"]);
    // A template that is not built in travels whole.
    let own = ChatTemplate { before: "<|user|>Q: ".into(), ..ChatTemplate::PLAIN };
    let custom = with(&|m| m["template"] = serde_json::to_value(&own).unwrap()).unwrap();
    let prompt = Bundle::load(custom, &files, &Device::flex()).unwrap().prompt("why?").unwrap();
    assert_eq!(small_model::tokenizer().decode(&prompt.ids).unwrap(), "Q: why?");
}

#[test]
fn every_bundle_file_that_is_corrupted_cut_or_missing_is_named() {
    let (manifest, files) = bundle();
    assert_eq!(files.len(), 6);
    for name in files.keys() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut files = files.clone();
            change(files.get_mut(name).unwrap());
            load_bundle(&manifest, &files)
        };
        assert_error(with(&|bytes| *bytes.last_mut().unwrap() ^= 1), &[name, "sha256"]);
        assert_error(with(&|bytes| bytes.truncate(bytes.len() - 1)), &[name, "bytes"]);
        let mut files = files.clone();
        files.remove(name);
        assert_error(load_bundle(&manifest, &files), &[name, "missing"]);
    }
}

#[test]
fn a_bundle_file_with_a_right_hash_and_wrong_content_is_named() {
    let (manifest, files) = bundle();
    let with = |name: &str, content: &[u8]| {
        let (mut manifest, mut files) = (manifest.clone(), files.clone());
        let entries = manifest["files"].as_array_mut().unwrap();
        let entry = entries.iter_mut().find(|entry| entry["path"] == name).unwrap();
        *entry = serde_json::to_value(FileEntry::of(name, content)).unwrap();
        files.insert(name.into(), content.to_vec());
        load_bundle(&manifest, &files)
    };
    assert_error(with("golden.json", b"{}"), &["golden.json"]);
    assert_error(with("examples.json", b"[{}]"), &["examples.json"]);
    assert_error(with("tokenizer.json", b"{}"), &["tokenizer.json"]);
    let first = |part: &str| manifest["parts"][part][0].as_str().unwrap();
    let (cc, transform) = (first("cc"), first("transform"));
    assert_error(with(cc, b"xxxxxxxxxxxx"), &[cc]);
    assert_error(with(transform, &transform_file(&[0.0; 9], 3)), &["transform matrix", "32 x 32", "9"]);
    let mut nan = vec![0.0; 32 * 32];
    nan[35] = f32::NAN;
    assert_error(with(transform, &transform_file(&nan, 32)), &["transform matrix", "row 1 column 3", "NaN"]);
}

#[test]
fn what_is_wrong_with_a_model_folder_is_said_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let load = || match ModelFolder::load(&path, None, 0, &Device::flex()) {
        Ok(_) => panic!("a bad folder was accepted"),
        Err(error) => format!("{error:#}"),
    };
    assert_says(&load(), &["model", "no such folder"]);
    fs::create_dir(&path).unwrap();
    assert_says(&load(), &["model/config.json", "cannot read"]);
    let change = |name: &str, content: &[u8]| {
        write_folder(&path, 1);
        fs::write(path.join(name), content).unwrap();
        load()
    };
    assert_says(&change("tokenizer.json", b"{}"), &["model", "tokenizer.json"]);
    assert_says(&change("cctuning.json", b"{\"template\":\"plain\"}"), &["cctuning.json", "anchor"]);
    let mut narrow = config(Family::Llama, true);
    narrow.vocab_size = 200;
    let narrow = narrow.to_json("float32").to_string();
    assert_says(&change("config.json", narrow.as_bytes()), &["model", "269 tokens", "vocab_size 200"]);
    assert_says(&change("model.safetensors", b"1234"), &["model/model.safetensors", "not a complete safetensors file"]);
    let index = path.join("model.safetensors.index.json");
    fs::remove_file(path.join("model.safetensors")).unwrap();
    fs::write(&index, "{}").unwrap();
    assert_says(&load(), &["model.safetensors.index.json", "weight_map"]);
    fs::remove_file(index).unwrap();
    let small = transform_file(&[0.0; 4], 2);
    assert_says(&change(TRANSFORM_FILE, &small), &["model", TRANSFORM_FILE, "32 x 32", "4"]);
}

#[test]
fn a_tokenizer_that_is_cut_anywhere_never_panics() {
    let whole = small_model::tokenizer_json().to_string().into_bytes();
    Tokenizer::from_json(&whole).unwrap();
    for at in (0..whole.len()).step_by(23) {
        assert_error(Tokenizer::from_json(&whole[..at]), &["tokenizer.json"]);
    }
    assert!(small_model::tokenizer().decode(&[70_000]).is_ok_and(|text| text.is_empty()));
}

/// Runs the built program in `dir`; returns what it says on stderr after asserting that it failed in one line.
#[track_caller]
fn refused(dir: &Path, arguments: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_trainer");
    let output = Command::new(program).args(arguments).current_dir(dir).env("BURN_DEVICE", "flex").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
    stderr
}

const ROW: &str =
    r#"{"id":"r1","task":"qa","lang":"es","instruction":"¿Qué?","instruction_en":"What?","output":"Eso"}"#;

#[test]
fn the_program_refuses_bad_prompts_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let generate = |prompt: &str, more: &[&str]| {
        let error = refused(dir.path(), &[&["generate", "--folder", "model", "--prompt", prompt], more].concat());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    assert_says(generate("", &[]).trim_end(), &["the prompt is empty"]);
    assert_says(generate(" \n\t", &[]).trim_end(), &["the prompt is empty"]);
    assert_says(generate("¿Qué?", &["--temperature=-3"]).trim_end(), &["--temperature -3", "0 ", "or more"]);
    assert_says(generate("¿Qué?", &["--temperature", "1", "--top-p", "2"]).trim_end(), &["--top-p 2", "at most 1"]);
    let long = "palabra ".repeat(40);
    assert_says(generate(&long, &[]).trim_end(), &["the prompt has 322 tokens", "at most 152"]);
    assert_says(generate("¿Qué?", &["--max-new-tokens", "4000"]).trim_end(), &["the prompt has", "at most 0"]);
    let parallel = ["--source", "parallel", "--english", &long];
    assert_says(generate("¿Qué?", &parallel).trim_end(), &["322 tokens"]);
    assert_says(generate("¿Qué?", &["--source", "parallel"]).trim_end(), &["English twin"]);
    assert_says(generate("¿Qué?", &["--source", "transform"]).trim_end(), &["transform matrix", "trainer fit"]);
    assert_says(
        generate("¿Qué?", &["--source", "identity", "--layer", "4"]).trim_end(),
        &["--layer 4", "layers 1 to 3"],
    );
}

#[test]
fn the_program_refuses_bad_recipes_and_rows_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let rows = [ROW, "{\"id\":\"r2\" oops}", &ROW.replace("\"instruction_en\":\"What?\",", "").replace("r1", "r3")];
    fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    fs::write(dir.path().join("good.jsonl"), ROW).unwrap();
    fs::write(dir.path().join("recipe.toml"), "[optim]\nlr = 1e-3\nbatchsize = 4\n").unwrap();
    let train = |more: &[&str]| {
        let fixed = ["train", "--method", "cc", "--set", "model.path=model", "--set", "run.out=out"];
        refused(dir.path(), &[&fixed, more].concat())
    };
    let error = train(&["--recipe", "recipe.toml"]);
    assert!(
        error.contains("recipe.toml:3:1: unknown key `optim.batchsize`; did you mean `optim.batch_size`?"),
        "{error}"
    );
    let error = train(&["--set", "optim.learning_rate=1"]);
    assert!(error.contains("--set optim.learning_rate=1: unknown key"), "{error}");

    let error = train(&["--set", "data.train=rows.jsonl"]);
    assert!(error.contains("rows.jsonl:2:12: expected one JSON object"), "{error}");
    assert!(error.contains("rows.jsonl:3:1: `instruction_en`: expected the English twin"), "{error}");
    assert!(train(&["--set", "data.train=none.jsonl"]).contains("none.jsonl"));
    let error = train(&["--set", "data.train=good.jsonl", "--set", "data.cutoff=4"]);
    assert!(error.contains("no row fits into data.cutoff = 4") && error.contains("row \"r1\""), "{error}");
    assert!(!dir.path().join("out").exists(), "a refused run left files");

    let error = train(&["--set", "data.train=good.jsonl", "--set", "model.path=nowhere"]);
    assert!(error.contains("\"nowhere\": there is no such folder"), "{error}");
    let error = train(&["--set", "data.train=good.jsonl", "--set", "cc.pool=fixed(3)"]);
    assert!(error.contains("[cc]") && error.contains("fixed(3)") && error.contains("layers 0 to 2"), "{error}");

    fs::write(dir.path().join("long.jsonl"), ROW.replace("¿Qué?", &"palabra ".repeat(40))).unwrap();
    let error = train(&["--set", "data.train=long.jsonl", "--set", "data.cutoff=1000"]);
    assert!(error.contains("data.cutoff") && error.contains("192"), "{error}");
    let error = refused(dir.path(), &["fit", "model", "--set", "data.train=good.jsonl"]);
    assert!(error.contains("transform.holdout"), "{error}");
}
