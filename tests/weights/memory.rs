//! What loading holds: hardly more than what is loaded.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::Storage;
use cctuning::config::{Family, ModelConfig};
use trainer::model_folder::{Layout, ModelFolder};

use crate::small_model::{config, folder, model, tensors};

/// Names the folder to the process of its own in which memory is measured.
const FOLDER: &str = "CCTUNING_TEST_LOADED_FOLDER";

#[test]
fn the_numbers_of_a_model_are_counted_beyond_32_bits() {
    for (family, tied) in [(Family::Llama, true), (Family::Qwen2, false), (Family::Mistral, false)] {
        let shape = config(family, tied);
        let counted: usize = tensors(&model(&shape, 1)).values().map(|(_, values)| values.len()).sum();
        assert_eq!(shape.parameters(), counted as u64, "{family:?}");
    }
    let llama3 = ModelConfig { d_model: 4096, d_ff: 14_336, n_layers: 32, n_heads: 32, n_kv_heads: 8, ..published() };
    assert_eq!(ModelConfig { vocab_size: 128_256, ..llama3 }.parameters(), 8_030_261_248 + 32 * 4096);
    let llama2 = ModelConfig { d_model: 5120, d_ff: 13_824, n_layers: 40, n_heads: 40, n_kv_heads: 40, ..published() };
    assert_eq!(ModelConfig { vocab_size: 32_000, ..llama2 }.parameters(), 13_015_864_320 + 40 * 5120);
}

fn published() -> ModelConfig {
    ModelConfig { head_dim: 128, ..config(Family::Llama, false) }
}

fn kilobytes(of: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(of)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn loading_peaks_at_115_percent_of_what_is_loaded() {
    if !Path::new("/proc/self/status").exists() {
        eprintln!("skipped: memory is read from Linux's /proc");
        return;
    }
    if let Some(folder) = std::env::var_os(FOLDER) {
        // Asked for once, so that the pool of threads and the tables of the device are there before.
        let before = kilobytes("VmRSS");
        let loaded = ModelFolder::load(Path::new(&folder), None, 0, &Device::flex()).unwrap();
        println!("grown by {} kB", kilobytes("VmHWM") - before);
        drop(loaded);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shape =
        ModelConfig { d_model: 512, d_ff: 2048, vocab_size: 16_000, n_layers: 8, ..config(Family::Llama, true) };
    let made = folder(shape, ChatTemplate::PLAIN, 1);
    made.save_as(&made.model, dir.path(), Layout { shard_bytes: 30_000_000, ..Layout::of(Storage::Bf16) }).unwrap();
    let stored = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let stored = stored.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "safetensors"));
    // bf16 there, f32 here.
    let loaded: u64 = stored.map(|entry| entry.metadata().unwrap().len() * 2 / 1024).sum();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::loading_peaks_at_115_percent_of_what_is_loaded", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let grown = text.split("grown by ").nth(1).and_then(|rest| rest.split(' ').next()).expect("what it grew by");
    let grown: u64 = grown.parse().unwrap();
    assert!(grown * 10 > loaded * 9, "{grown} kB of {loaded} kB: not all was loaded");
    assert!(grown * 100 <= loaded * 115, "{grown} kB for {loaded} kB of weights");
}
