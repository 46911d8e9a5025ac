//! What a file keeps of a model, and what a cut keeps of a prompt.

use burn::tensor::Device;
use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::checkpoint::{BLOCK, Checkpoint, DECISION_MAKER, Loading, Storage, load, save, save_tensors};
use cctuning::config::{Family, ModelConfig};
use cctuning::error::Error;
use cctuning::model::{CcModel, TokenBatch};

use crate::small_model::{config, model, random_ids, tensors, tokenizer, values};

fn reload(config: &ModelConfig, bytes: &[u8]) -> CcModel {
    let mut checkpoint = Checkpoint::default();
    checkpoint.add("model.safetensors", bytes).unwrap();
    load(CcModel::new(config, &Device::flex()), &checkpoint).unwrap()
}

#[test]
fn names_and_shapes_on_disk_are_those_of_hugging_face() {
    for (family, tied) in [(Family::Llama, false), (Family::Qwen2, true)] {
        let config = config(family, tied);
        let mut expected = vec![
            ("model.embed_tokens.weight".to_string(), vec![272, 32]),
            ("model.norm.weight".into(), vec![32]),
            (DECISION_MAKER.into(), vec![3, 32]),
        ];
        if !tied {
            expected.push(("lm_head.weight".into(), vec![272, 32]));
        }
        for layer in 0..3 {
            let mut add = |name: &str, shape: &[usize]| {
                expected.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            for (name, out) in [("q_proj", 32), ("k_proj", 16), ("v_proj", 16)] {
                add(&format!("self_attn.{name}.weight"), &[out, 32]);
                if family == Family::Qwen2 {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            add("self_attn.o_proj.weight", &[32, 32]);
            add("mlp.gate_proj.weight", &[48, 32]);
            add("mlp.up_proj.weight", &[48, 32]);
            add("mlp.down_proj.weight", &[32, 48]);
            add("input_layernorm.weight", &[32]);
            add("post_attention_layernorm.weight", &[32]);
        }
        expected.sort();
        let found: Vec<_> = tensors(&model(&config, 1)).into_iter().map(|(name, (shape, _))| (name, shape)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn f32_is_exact_and_half_precisions_round_to_nearest_once() {
    for (family, tied) in [(Family::Llama, false), (Family::Qwen2, true)] {
        let config = config(family, tied);
        let original = model(&config, 2);
        let expected = tensors(&original);
        for (storage, relative) in [(Storage::F32, 0.0), (Storage::Bf16, 1.0 / 256.0), (Storage::F16, 1.0 / 2048.0)] {
            let bytes = save(&original, storage).unwrap();
            let again = reload(&config, &bytes);
            for (name, (_, found)) in tensors(&again) {
                for (found, expected) in found.iter().zip(&expected[&name].1) {
                    // Below 2^-14 half precision has fixed steps of 2^-24.
                    let allowed = relative * expected.abs() + if relative > 0.0 { 3e-8 } else { 0.0 };
                    assert!((found - expected).abs() <= allowed, "{name} {storage:?}: {expected} became {found}");
                }
            }
            assert_eq!(save(&again, storage).unwrap(), bytes, "{storage:?} changes when it is saved again");
        }
    }
}

#[test]
fn eight_bit_blocks_are_off_by_half_a_step_at_most_and_keep_small_tensors_whole() {
    let config = config(Family::Qwen2, false);
    let original = model(&config, 3);
    let expected = tensors(&original);
    let bytes = save(&original, Storage::Q8).unwrap();
    assert!(bytes.len() < save(&original, Storage::F32).unwrap().len() / 2);
    let again = reload(&config, &bytes);
    let mut changed = 0;
    for (name, (shape, found)) in tensors(&again) {
        let expected = &expected[&name].1;
        if shape.len() == 1 || shape[1] % BLOCK != 0 || name == DECISION_MAKER {
            assert_eq!(&found, expected, "{name}");
            continue;
        }
        for (found, expected) in found.chunks(BLOCK).zip(expected.chunks(BLOCK)) {
            let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            // Half a step of 1/127, and the scale's own rounding to half precision.
            let bound = largest * (0.5 / 127.0 + 1.0 / 2048.0) * 1.001;
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= bound, "{name}: {expected} became {found}, {bound} is allowed");
                changed += usize::from(found != expected);
            }
        }
    }
    assert!(changed > 10_000, "nothing was quantized");
    let batch = TokenBatch::new(&[random_ids(12, 0..256, 1)], &Device::flex());
    let [a, b] = [&original, &again].map(|model| values(&model.logits(model.forward(&batch, None).squeeze_dim(0))));
    let error = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let size = a.iter().map(|a| a * a).sum::<f32>().sqrt();
    assert!(error < 0.05 * size, "quantizing moves the logits by {error} of {size}");
}

#[test]
fn a_model_filled_file_by_file_is_the_stored_one_and_names_what_never_came() {
    // Wide enough that the embedding and the feed-forward network are made f32 in several pieces.
    let config =
        ModelConfig { d_model: 512, d_ff: 8_704, n_layers: 1, vocab_size: 9_000, ..config(Family::Llama, true) };
    let bytes = save(&model(&config, 5), Storage::Q8).unwrap();
    let mut stored = Checkpoint::default();
    stored.add("model.safetensors", &bytes).unwrap();
    let files = stored.names().map(|name| {
        let (shape, values) = stored.read(name).unwrap();
        (name.to_string(), save_tensors(vec![(name.to_string(), shape, values)], Storage::Q8).unwrap())
    });
    let files: Vec<(String, Vec<u8>)> = files.collect();
    let fill = |without: &str| {
        let mut loading = Loading::new(CcModel::new(&config, &Device::flex()));
        for (name, bytes) in files.iter().rev().filter(|(name, _)| name != without) {
            loading.add(name, bytes).unwrap();
        }
        loading.finish()
    };
    let found = tensors(&fill("").unwrap());
    for name in stored.names() {
        assert!(found[name] == stored.read(name).unwrap(), "{name} has other values");
    }
    let missing = "model.layers.0.mlp.down_proj.weight";
    match fill(missing) {
        Err(Error::MissingTensor { name, .. }) => assert_eq!(name, missing),
        other => {
            panic!("a model without {missing} was {}", if other.is_ok() { "accepted" } else { "refused otherwise" })
        }
    }
}

#[test]
fn a_plain_checkpoint_without_a_decision_maker_keeps_the_fresh_one() {
    let config = config(Family::Llama, true);
    let mut stored: Vec<_> = tensors(&model(&config, 4)).into_iter().map(|(n, (s, v))| (n, s, v)).collect();
    stored.retain(|(name, ..)| name != DECISION_MAKER);
    // Tied checkpoints of some exporters repeat the head, old ones the rotary tables.
    stored.push(("lm_head.weight".into(), vec![272, 32], vec![0.0; 272 * 32]));
    stored.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![4], vec![0.0; 4]));
    let bytes = cctuning::checkpoint::save_tensors(stored.clone(), Storage::F32).unwrap();
    let mut checkpoint = Checkpoint::default();
    checkpoint.add("model.safetensors", &bytes).unwrap();
    let fresh = model(&config, 5);
    let loaded = tensors(&load(fresh.clone(), &checkpoint).unwrap());
    assert_eq!(loaded[DECISION_MAKER], tensors(&fresh)[DECISION_MAKER]);
    assert_eq!(loaded["model.norm.weight"].1, stored.iter().find(|s| s.0 == "model.norm.weight").unwrap().2);
}

#[test]
fn anchors_and_templates_survive_truncation_under_every_template_and_rule() {
    let tokenizer = tokenizer();
    let text = "क्या भालू उड़ता है? ".repeat(6);
    for (name, template) in ChatTemplate::BUILT_IN {
        for rule in [AnchorRule::LastPrompt, AnchorRule::RoleToken, AnchorRule::BeforeAnswerTag] {
            let whole = template.render(&tokenizer, &text, rule).unwrap();
            let back = whole.ids.len() - whole.anchor;
            // The byte tokenizer spells the answer tags of Llama and Qwen in 13 and 11 tokens, Plain's in one.
            let expected = match (name, rule) {
                (_, AnchorRule::LastPrompt) => 1,
                ("qwen2" | "mistral", AnchorRule::RoleToken) => 2,
                (_, AnchorRule::RoleToken) => 1,
                ("llama3", _) => 14,
                ("qwen2", _) => 12,
                ("plain", _) => 2,
                (_, _) => 1,
            };
            assert_eq!(back, expected);
            let (head, tail) = (&whole.ids[..whole.content.start], &whole.ids[whole.content.end..]);
            assert_eq!(tokenizer.decode(&whole.ids[whole.content.clone()]).unwrap(), text);
            let fixed = head.len() + tail.len();
            for limit in fixed + 1..=whole.ids.len() + 1 {
                let mut cut = whole.clone();
                assert_eq!(cut.truncate(limit).unwrap(), limit < whole.ids.len());
                assert_eq!(cut.ids.len(), limit.min(whole.ids.len()));
                assert_eq!(cut.anchor, cut.ids.len() - back);
                assert!(cut.ids.starts_with(head) && cut.ids.ends_with(tail), "the template was cut");
                assert_eq!(cut.content, head.len()..cut.ids.len() - tail.len());
                assert_eq!(cut.ids[cut.content.clone()], whole.ids[whole.content.start..][..cut.content.len()]);
            }
            for limit in [0, 1, fixed] {
                let error = whole.clone().truncate(limit).unwrap_err();
                assert!(matches!(error, Error::PromptTooLong { limit: l, .. } if l == limit), "{error}");
            }
        }
    }
}

#[test]
fn rotary_settings_are_read_from_either_spelling_of_transformers() {
    let written = config(Family::Llama, true);
    let old = written.to_json("float32");
    let mut new = old.clone();
    let fields = new.as_object_mut().unwrap();
    let (theta, mut rope) = (fields.remove("rope_theta").unwrap(), fields.remove("rope_scaling").unwrap());
    rope["rope_theta"] = theta;
    fields.insert("rope_parameters".into(), rope);
    for json in [&old, &new] {
        assert_eq!(ModelConfig::from_json(json.to_string().as_bytes()).unwrap(), written);
    }
    new["rope_parameters"] = serde_json::json!({ "rope_type": "default", "rope_theta": 5e5 });
    let read = ModelConfig::from_json(new.to_string().as_bytes()).unwrap();
    assert_eq!((read.rope_theta, read.rope_scaling), (5e5, None));
}
