//! Proves that a bundle larger than what the page may hold in memory is streamed to the graphics device, shard by shard.
//! Its weights are noise: what is exercised is loading.

use crate::demo::{Demo, serve};
use crate::webdriver::{Browser, WITH_WEBGPU};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::site::Site;
use xtask::steps::{root, target_dir};
use xtask::suite;

/// What the page may hold at most while it loads, in bytes.
const MOST_MEMORY: u64 = 200_000_000;
/// Big tables and wide layers, few of them: much to load, little to compute.
const VOCAB: usize = 60_000;
const WIDTH: usize = 512;
const INNER: usize = 22_016;
const LAYERS: usize = 2;

pub fn a_large_bundle_is_streamed() {
    let bundle = large_bundle();
    let place = Site::open(&bundle, 0).unwrap_or_else(|error| panic!("{error:#}"));
    place.make_public();
    let demo = Demo { site: serve(), browser: Browser::chromium(WITH_WEBGPU) };
    for visit in ["first", "second"] {
        demo.load(&format!("?bundle={}", place.address()));
        // Not for its self-test: two cores that play a graphics card need minutes for it.
        let loaded = "document.querySelector('#files')?.dataset.memory || document.querySelector('#failure')";
        demo.browser.wait_for("all files are on the device", loaded, 300);
        assert_eq!(demo.visible_text("#failure"), None, "the page reports an error");
        assert!(demo.is_on_webgpu(), "{:?}", demo.visible_text("#device-note"));
        let (total, memory) = (demo.files("kept") + demo.files("fetched"), demo.files("memory"));
        println!("measured: {visit} visit, a bundle of {total} bytes, the worker held at most {memory}");
        assert!(total > MOST_MEMORY, "{total} bytes prove nothing");
        assert!(memory < MOST_MEMORY, "the worker held {memory} bytes");
    }
    assert_eq!(demo.files("fetched"), 0, "the second visit fetches nothing");
}

/// Made once; what it is made of is part of the folder's name.
fn large_bundle() -> PathBuf {
    let folder = target_dir().join(format!("tmp/large-bundle-2-{VOCAB}-{WIDTH}-{INNER}-{LAYERS}"));
    if folder.join("manifest.json").is_file() {
        return folder;
    }
    let work = target_dir().join("tmp/large-bundle-in-the-making");
    let (vanilla, cc) = (work.join("vanilla"), work.join("cc"));
    write_model(&vanilla, 1);
    write_model(&cc, 2);
    let identity: Vec<f32> = (0..WIDTH * WIDTH).map(|i| f32::from(u8::from(i / WIDTH == i % WIDTH))).collect();
    let identity = identity.iter().flat_map(|value| value.to_le_bytes()).collect();
    let matrix =
        vec![Stored { name: "transform_matrix".into(), dtype: "F32", shape: vec![WIDTH, WIDTH], bytes: identity }];
    write(&cc.join("transform_matrix.safetensors"), &safetensors(&matrix));
    let row = json!({ "id": "1", "task": "sum", "lang": "en", "instruction": "1 + 1 = ?", "instruction_en": "1 + 1 = ?", "output": "2" });
    write(&work.join("rows.jsonl"), format!("{row}\n").as_bytes());
    let output = Command::new(suite::trainer())
        .args(["export", "bundle", "--max-new-tokens", "2", "--vanilla"])
        .arg(&vanilla)
        .arg("--cc")
        .arg(&cc)
        .arg("--data")
        .arg(work.join("rows.jsonl"))
        .arg("--out")
        .arg(work.join("bundle"))
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", suite::trainer().display()));
    assert!(output.status.success(), "`trainer export` failed: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(work.join("bundle"), &folder).expect("the finished bundle can be put in its place");
    fs::remove_dir_all(&work).expect("what it was made of can be removed");
    folder
}

fn write_model(folder: &Path, seed: u32) {
    let base = root().join("assets/base");
    fs::create_dir_all(folder).expect("a folder can be made");
    for file in ["tokenizer.json", "tokenizer_config.json", "cctuning.json"] {
        fs::copy(base.join(file), folder.join(file)).expect("the shipped base has it");
    }
    let config = fs::read(base.join("config.json")).expect("the shipped base has a config.json");
    let mut config: Value = serde_json::from_slice(&config).expect("it is JSON");
    for (key, value) in
        [("vocab_size", VOCAB), ("hidden_size", WIDTH), ("intermediate_size", INNER), ("num_hidden_layers", LAYERS)]
    {
        config[key] = value.into();
    }
    write(&folder.join("config.json"), config.to_string().as_bytes());
    let attention = config["num_attention_heads"].as_u64().expect("a number") as usize * 32;
    let shared = config["num_key_value_heads"].as_u64().expect("a number") as usize * 32;
    let mut noise = seed;
    let mut tensor = |name: String, shape: &[usize]| {
        let is_norm = shape.len() == 1;
        let mut value = || {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            // In bf16: 1, or something between a 128th and a 64th of either sign.
            if is_norm { 0x3f80 } else { noise as u16 & 0x807f | 0x3c00 }
        };
        let bytes = (0..shape.iter().product()).flat_map(|_: usize| value().to_le_bytes()).collect();
        Stored { name, dtype: "BF16", shape: shape.to_vec(), bytes }
    };
    let mut tensors = vec![
        tensor("model.embed_tokens.weight".into(), &[VOCAB, WIDTH]),
        tensor("model.norm.weight".into(), &[WIDTH]),
        tensor("model.source_select.weight".into(), &[LAYERS, WIDTH]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", &[WIDTH][..]),
            ("post_attention_layernorm", &[WIDTH]),
            ("self_attn.q_proj", &[attention, WIDTH]),
            ("self_attn.k_proj", &[shared, WIDTH]),
            ("self_attn.v_proj", &[shared, WIDTH]),
            ("self_attn.o_proj", &[WIDTH, attention]),
            ("mlp.gate_proj", &[INNER, WIDTH]),
            ("mlp.up_proj", &[INNER, WIDTH]),
            ("mlp.down_proj", &[WIDTH, INNER]),
        ] {
            tensors.push(tensor(format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    write(&folder.join("model.safetensors"), &safetensors(&tensors));
}

/// A tensor as it lies in a file.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for Stored { name, dtype, shape, bytes } in tensors {
        let start = end;
        end += bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|tensor| file.extend_from_slice(&tensor.bytes));
    file
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
