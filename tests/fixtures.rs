//! Proves that our arithmetic is the published one: every number of the fixture folders, which independent code computed.

mod shared_data;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use shared_data::shared;
use trainer::verify::{Report, Within, check};

fn report_of(folder: &Path) -> Report {
    check(folder, &Device::flex()).unwrap_or_else(|error| panic!("{}: {error:#}", folder.display()))
}

fn agrees(case: &str, at_least: usize) {
    let Some(folder) = shared(&format!("fixtures/{case}")) else { return };
    let report = report_of(&folder);
    println!("{report}");
    assert!(report.failed().next().is_none(), "{case} disagrees:\n{report}");
    assert!(report.checks.len() >= at_least, "{case}: only {} quantities were compared", report.checks.len());
}

#[test]
fn every_number_of_the_llama_fixture_is_met() {
    agrees("s1-llama-tiny", 90);
}

#[test]
fn every_number_of_the_qwen2_fixture_is_met() {
    agrees("s2-qwen2-tiny", 90);
}

#[test]
fn bf16_weights_in_shards_give_the_float32_numbers() {
    agrees("s3-llama-tiny-bf16-sharded", 6);
}

#[test]
fn long_rows_and_a_single_key_value_head_are_met() {
    agrees("s4-qwen2-long", 12);
}

#[test]
fn a_wrong_expected_number_fails_and_is_named() {
    let Some(folder) = shared("fixtures/s2-qwen2-tiny") else { return };
    let changed = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        fs::write(changed.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    // A logit off by little more than is allowed, a loss that is no number, another token.
    let file = changed.path().join("expected.safetensors");
    change(&file, "fused.noisy.logits", |b| (f32::from_le_bytes(b) + 3e-4).to_le_bytes());
    change(&file, "traj.cc.loss", |_| f32::NAN.to_le_bytes());
    change(&file, "infer.wt.tokens", |b| (i64::from_le_bytes(b) + 1).to_le_bytes());
    change(&file, "batch.labels", |b| (i64::from_le_bytes(b) + 1).to_le_bytes());
    rename(&file, "grad_vanilla.l2", "grad_vanilla.l1");
    let report = report_of(changed.path());
    let failed: Vec<&str> = report.failed().map(|check| check.quantity.as_str()).collect();
    assert_eq!(
        failed,
        [
            "batch.labels",
            "fused.noisy.logits",
            "traj.cc.loss",
            "grad_vanilla.l2 is missing",
            "infer.wt.tokens",
            "tensors left out: [\"grad_vanilla.l1\"]"
        ]
    );
    assert!(report.to_string().contains("FAIL  fused.noisy.logits"), "{report}");
    assert!(report.to_string().ends_with(" passed, 6 failed"), "{report}");
}

#[test]
fn nothing_equals_nothing_and_no_number_equals_none() {
    let mut report = Report::default();
    report.compare_with("a gradient that is zero", &[0.0], &[0.0], Within::RelativeL2(1e-9));
    report.compare_with("one that should be", &[1e-3], &[0.0], Within::RelativeL2(1e-9));
    report.compare_with("no number", &[f64::NAN], &[0.0], Within::RelativeL2(1e-9));
    assert_eq!(report.checks.iter().map(|check| check.passed()).collect::<Vec<_>>(), [true, false, false]);
}

/// Gives a tensor another name of the same length.
fn rename(file: &Path, tensor: &str, name: &str) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(tensor.len()).position(|found| found == tensor.as_bytes()).unwrap();
    bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
    fs::write(file, bytes).unwrap();
}

/// Rewrites the first number of a tensor.
fn change<const N: usize>(file: &Path, tensor: &str, change: impl Fn([u8; N]) -> [u8; N]) {
    let mut bytes = fs::read(file).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let start = 8 + header_len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    let number = bytes[start..start + N].try_into().unwrap();
    bytes[start..start + N].copy_from_slice(&change(number));
    fs::write(file, bytes).unwrap();
}
