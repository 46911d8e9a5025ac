//! Web bundles: shards named by what is in them, what is equal stored once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use cctuning::bundle::{Example, LARGEST_FILE, Manifest};
use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::{Checkpoint, DECISION_MAKER, Storage, load, save_tensors};
use cctuning::config::Family;
use cctuning::model::CcModel;
use cctuning::transform_matrix::TransformMatrix;
use trainer::export::{self, Content};
use trainer::model_folder::ModelFolder;

use crate::small_model::{config, folder, tensors};

fn export(vanilla: &ModelFolder, cc: &ModelFolder, out: &Path) -> Manifest {
    let example = |lang: &str| Example { lang: lang.into(), prompt: "?".into(), english: "?".into(), gold: "!".into() };
    let content = Content {
        title: "Two small models",
        origin: "a test",
        vanilla,
        cc,
        transform: &TransformMatrix::identity(32, &Device::flex()),
        examples: &[example("es")],
        max_new_tokens: 3,
    };
    let bytes = export::bundle(&content, out).unwrap();
    let manifest = Manifest::parse(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    assert!(bytes > manifest.files.iter().map(|file| file.bytes).sum());
    manifest
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
