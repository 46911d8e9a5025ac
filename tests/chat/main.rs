//! Proves that templates say what the published ones say, that a model's own Jinja becomes the same data, and that no
//! mutated tokenizer or template does harm.

#[path = "../bounded.rs"]
mod bounded;
#[path = "../shared_data.rs"]
mod shared_data;
#[path = "../small_model.rs"]
mod small_model;

mod golden;
mod jinja;
mod mutations;

use std::io::Read;

use cctuning::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// A real tokenizer, or none and a sentence that says why.
fn real(folder: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_json(&real_json(folder)?).unwrap())
}

fn real_json(folder: &str) -> Option<Vec<u8>> {
    let path = shared_data::shared(&format!("data/models/{folder}/tokenizer.json.gz"))?;
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut json).unwrap();
    Some(json)
}

/// Built as Mistral's v3 tokenizer: spaces are `▁`, one before the first word; what is no piece falls into bytes.
fn mistral_json() -> Value {
    let control = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"];
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ('a'..='z').chain('A'..='Z').chain(['▁', '?', 'ก', 'न']).map(String::from);
    let words = ["▁t", "▁th", "▁the", "▁▁", "in"].map(String::from);
    let pieces: Vec<String> = control.map(String::from).into_iter().chain(bytes).chain(letters).chain(words).collect();
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), id.into())).collect();
    let added: Vec<Value> = control
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": [["▁", "t"], ["▁t", "h"], ["▁th", "e"], ["▁", "▁"], ["i", "n"]]}
    })
}

fn mistral() -> Tokenizer {
    Tokenizer::from_json(mistral_json().to_string().as_bytes()).unwrap()
}
