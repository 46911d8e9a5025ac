//! Tensor by tensor out, file by file in.

use burn::tensor::Device;
use cctuning::checkpoint::{Checkpoint, Loading, Storage, load, save};
use cctuning::config::Family;
use cctuning::error::Error;
use cctuning::model::CcModel;
use cctuning::saving::{self, Outgoing, file_bytes, outgoing, shards};

use crate::small_model::{config, model, tensors};

fn bytes(tensors: &[Outgoing], storage: Storage) -> Vec<u8> {
    let mut bytes = Vec::new();
    saving::write(tensors, storage, &mut bytes).unwrap();
    assert_eq!(bytes.len(), file_bytes(tensors, storage), "the length is known before writing");
    bytes
}

/// A model in files of at most `limit` bytes, large tensors cut into rows.
fn sliced(model: &CcModel, storage: Storage, limit: usize) -> Vec<Vec<u8>> {
    let slices = outgoing(model).into_iter().flat_map(|tensor| tensor.slices(storage, limit / 2)).collect();
    shards(slices, storage, limit).iter().map(|shard| bytes(shard, storage)).collect()
}

fn fresh(family: Family) -> CcModel {
    CcModel::new(&config(family, false), &Device::flex())
}

#[test]
fn a_model_in_slices_over_many_files_is_the_model() {
    for family in [Family::Llama, Family::Qwen2, Family::Mistral] {
        let original = model(&config(family, false), 1);
        for storage in [Storage::F32, Storage::Bf16, Storage::Q8] {
            let mut checkpoint = Checkpoint::default();
            let whole = save(&original, storage).unwrap();
            checkpoint.add("whole", &whole).unwrap();
            let expected = tensors(&load(fresh(family), &checkpoint).unwrap());
            let mut files = sliced(&original, storage, 3000);
            assert!(files.len() > 5 && files.iter().all(|file| file.len() <= 3000));
            // Any order does.
            files.reverse();
            let mut loading = Loading::new(fresh(family));
            for (number, file) in files.iter().enumerate() {
                loading.add(&number.to_string(), file).unwrap();
            }
            assert_eq!(tensors(&loading.finish().unwrap()), expected, "{family:?} {storage:?}");
        }
    }
}

#[test]
fn every_byte_of_a_tensor_is_told_to_be_used() {
    let file = save(&model(&config(Family::Llama, true), 1), Storage::Bf16).unwrap();
    let mut used = 0;
    let mut loading = Loading::new(CcModel::new(&config(Family::Llama, true), &Device::flex()));
    loading.add_telling("a file", &file, &mut |bytes| used += bytes.len()).unwrap();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(used, file.len() - header);
}

#[test]
fn rows_that_are_missing_or_come_twice_are_named() {
    let files = sliced(&model(&config(Family::Llama, false), 1), Storage::Q8, 3000);
    for left_out in 0..files.len() {
        let mut loading = Loading::new(fresh(Family::Llama));
        let rest = files.iter().enumerate().filter(|(number, _)| *number != left_out);
        rest.for_each(|(number, file)| loading.add(&number.to_string(), file).unwrap());
        let Err(error) = loading.finish() else { panic!("file {left_out} was not missed") };
        assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
    }
    let mut loading = Loading::new(fresh(Family::Llama));
    loading.add("0", &files[0]).unwrap();
    let error = loading.add("0 again", &files[0]).unwrap_err();
    assert!(matches!(&error, Error::Repeated { .. }), "{error}");
    assert!(error.to_string().contains("`model.") && error.to_string().contains("rows 0 to"), "{error}");
}

#[test]
fn a_slice_beyond_the_last_row_is_refused() {
    for name in ["model.norm.weight.rows.1", "model.embed_tokens.weight.rows.18446744073709551615"] {
        let shape = if name.contains("norm") { vec![32] } else { vec![1, 32] };
        let file = bytes(&[Outgoing::new(name, shape, vec![0.0; 32])], Storage::F32);
        let error = Loading::new(fresh(Family::Llama)).add("a file", &file).unwrap_err();
        assert!(matches!(&error, Error::Shape { name: found, .. } if found == name), "{error}");
    }
}

#[test]
fn the_tensor_that_a_header_is_wrong_about_is_named() {
    let file = save(&model(&config(Family::Llama, false), 1), Storage::F32).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let faults: [(&str, serde_json::Value, &str); 5] = [
        ("shape", serde_json::json!([32, 33]), "needs 4224 bytes"),
        ("shape", serde_json::json!([1u64 << 40, 1u64 << 40]), "cannot be"),
        ("dtype", serde_json::json!("F9"), "F9"),
        ("data_offsets", serde_json::json!([0, 1u64 << 40]), "lies at bytes"),
        ("data_offsets", serde_json::Value::Null, "data_offsets"),
    ];
    for (key, value, expected) in faults {
        let mut changed = header.clone();
        changed["model.layers.1.self_attn.q_proj.weight"][key] = value;
        let changed = changed.to_string();
        let mut damaged = (changed.len() as u64).to_le_bytes().to_vec();
        damaged.extend(changed.bytes());
        damaged.extend(&file[8 + length..]);
        let error = Checkpoint::default().add("a.safetensors", &damaged).unwrap_err().to_string();
        for part in ["a.safetensors", "`model.layers.1.self_attn.q_proj.weight`", expected] {
            assert!(error.contains(part), "expected {part} in: {error}");
        }
    }
}
