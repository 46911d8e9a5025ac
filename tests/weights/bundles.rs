//! Web bundles: shards named by what is in them, what is equal stored once, parts of one model, and a proof that JSON carries.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, read_sync};
use cctuning::bundle::{BundleLoading, Example, GoldenAnswer, LARGEST_FILE, Manifest, SelfTest};
use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::{Checkpoint, DECISION_MAKER, Storage, load, save_tensors};
use cctuning::config::{Family, ModelConfig};
use cctuning::model::CcModel;
use cctuning::transform_matrix::TransformMatrix;
use trainer::export::{self, Content};
use trainer::model_folder::ModelFolder;

use crate::small_model::{config, folder, tensors};

fn export(vanilla: &ModelFolder, cc: &ModelFolder, out: &Path) -> Manifest {
    export_with(vanilla, cc, &TransformMatrix::identity(32, &Device::flex()), &["¿?"], out).unwrap()
}

fn export_with(
    vanilla: &ModelFolder,
    cc: &ModelFolder,
    transform: &TransformMatrix,
    prompts: &[&str],
    out: &Path,
) -> anyhow::Result<Manifest> {
    let example = |prompt: &&str| Example {
        lang: "xx".into(),
        prompt: prompt.to_string(),
        english: "?".into(),
        gold: "!".into(),
    };
    let content = Content {
        title: "Two small models",
        origin: "a test",
        vanilla,
        cc,
        transform,
        examples: &prompts.iter().map(example).collect::<Vec<_>>(),
        max_new_tokens: 3,
    };
    let bytes = export::bundle(&content, out)?;
    let manifest = Manifest::parse(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    assert!(bytes > manifest.files.iter().map(|file| file.bytes).sum());
    Ok(manifest)
}

#[test]
fn shards_are_named_by_their_hash_and_what_both_models_have_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let vanilla = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    let mut stored: Vec<_> = tensors(&vanilla.model).into_iter().map(|(n, (s, v))| (n, s, v)).collect();
    stored.iter_mut().find(|(name, ..)| name == DECISION_MAKER).unwrap().2[0] += 1.0;
    let bytes = save_tensors(stored, Storage::F32).unwrap();
    let mut checkpoint = Checkpoint::default();
    checkpoint.add("changed", &bytes).unwrap();
    let changed = load(CcModel::new(&vanilla.config, &Device::flex()), &checkpoint).unwrap();
    let cc = vanilla.with_model(changed).unwrap();
    let manifest = export(&vanilla, &cc, dir.path());
    let (of_vanilla, of_cc): (BTreeSet<_>, BTreeSet<_>) =
        (manifest.parts.vanilla.iter().collect(), manifest.parts.cc.iter().collect());
    let shared: Vec<_> = of_vanilla.intersection(&of_cc).collect();
    assert_eq!((of_vanilla.len(), of_cc.len(), shared.len()), (2, 2, 1));
    for file in &manifest.files {
        assert!(file.bytes <= LARGEST_FILE);
        file.verify(&fs::read(dir.path().join(&file.path)).unwrap()).unwrap();
        if file.path.ends_with(".safetensors") {
            assert_eq!(file.path, format!("{}.safetensors", file.sha256));
        }
    }
    let bytes = |path: &str| manifest.files.iter().find(|file| file.path == path).unwrap().bytes;
    let own = of_cc.iter().find(|path| !of_vanilla.contains(**path)).unwrap();
    assert!(bytes(own) < bytes(shared[0]) / 10, "only the Decision Maker differs");
    let loaded = export::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(tensors(&loaded.cc)[DECISION_MAKER], tensors(&cc.model)[DECISION_MAKER]);
    assert_eq!(tensors(&loaded.vanilla)[DECISION_MAKER], tensors(&vanilla.model)[DECISION_MAKER]);
}

#[test]
fn a_bundle_takes_the_place_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [1, 2, 3].map(|seed| folder(config(Family::Qwen2, false), ChatTemplate::PLAIN, seed));
    fs::write(dir.path().join("notes.safetensors"), "not ours").unwrap();
    export(&a, &b, dir.path());
    let manifest = export(&a, &c, dir.path());
    let mut expected: BTreeSet<String> = manifest.files.iter().map(|file| file.path.clone()).collect();
    expected.extend(["manifest.json", "notes.safetensors"].map(String::from));
    let found: BTreeSet<String> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_device_that_computes_no_numbers_fails_by_a_number_that_json_carries() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    export(&made, &made, dir.path());
    let changes: [fn(&mut GoldenAnswer); 3] = [
        |answer| answer.logits[7] = f32::NAN,
        |answer| answer.logits[0] = f32::NEG_INFINITY,
        |answer| answer.logits.truncate(5),
    ];
    for change in changes {
        let mut bundle = export::load(dir.path(), &Device::flex()).unwrap();
        change(&mut bundle.golden[0].cc);
        let test = read_sync(bundle.self_test(usize::MAX)).unwrap();
        assert!(!test.passed && test.max_logit_error == f32::MAX, "{test:?}");
        let text = serde_json::to_string(&test).unwrap();
        assert_eq!(serde_json::from_str::<SelfTest>(&text).unwrap(), test);
    }
}

#[test]
fn the_golden_prompts_are_of_both_directions_of_writing_where_there_are_both() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    let identity = TransformMatrix::identity(32, &Device::flex());
    let cases: [(&[&str], &[&str]); 4] = [
        (&["¿Qué?", "Was?", "ماذا؟", "کیا؟"], &["¿Qué?", "ماذا؟"]),
        (&["ماذا؟", "کیا؟", "¿Qué?"], &["ماذا؟", "¿Qué?"]),
        (&["¿Qué?", "Was?", "何？"], &["¿Qué?", "Was?"]),
        (&["¿Qué?"], &["¿Qué?"]),
    ];
    for (prompts, expected) in cases {
        export_with(&made, &made, &identity, prompts, dir.path()).unwrap();
        let golden = export::load(dir.path(), &Device::flex()).unwrap().golden;
        assert_eq!(golden.iter().map(|golden| golden.prompt.as_str()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn parts_of_different_models_are_refused_and_rows_that_come_twice() {
    let dir = tempfile::tempdir().unwrap();
    let made = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    let matrices = |n: usize| TransformMatrix::from_values(vec![0.1; n * 32 * 32], None, 32, &Device::flex()).unwrap();
    let with = |made: &ModelFolder, n| export_with(made, made, &matrices(n), &["¿?"], dir.path());
    let says = |result: anyhow::Result<Manifest>, part: &str| {
        let error = format!("{:#}", result.expect_err("a bundle of two models was made"));
        assert!(error.contains(part), "{error}");
    };
    says(with(&made, 2), "expected one matrix, or one for each of 3 layers, found 2");
    let narrow = ModelConfig { vocab_size: 200, ..config(Family::Llama, true) };
    says(
        with(&folder(narrow, ChatTemplate::PLAIN, 1), 1),
        "tokenizer.json: has 269 tokens and the models' vocab_size is 200",
    );
    let manifest = with(&made, 3).unwrap();
    let path = manifest.parts.transform[0].clone();
    let mut loading = BundleLoading::new(manifest, &Device::flex()).unwrap();
    let bytes = fs::read(dir.path().join(&path)).unwrap();
    loading.add(&path, &bytes).unwrap();
    let error = loading.add(&path, &bytes).unwrap_err().to_string();
    assert_eq!(error, "`transform_matrix`: its rows 0 to 96 come a second time; every row belongs in one file");
}
