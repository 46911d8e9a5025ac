//! One pass: it computes what plain loops compute, the probe reads, the injection writes, and neither does more.

use burn::tensor::{Int, Tensor, TensorData};
use cctuning::anchor::Anchor;
use cctuning::cache::KvCache;
use cctuning::config::{Family, ModelConfig};
use cctuning::model::{CcModel, InputEmbedding, TokenBatch};
use cctuning::tap::{Injection, Site, Taps};

use crate::by_hand::{ByHand, Trace};
use crate::small_model::{assert_close, config, model, random_ids, values};

/// Llama with scaled frequencies and a head of its own, Qwen2 with biases and a tied head, and the other two.
fn cases() -> [(ModelConfig, CcModel); 4] {
    [(Family::Llama, false), (Family::Qwen2, true), (Family::Llama, true), (Family::Qwen2, false)].map(
        |(family, tied)| {
            let config = config(family, tied);
            let model = model(&config, 7);
            (config, model)
        },
    )
}

fn batch(model: &CcModel, rows: &[Vec<u32>]) -> TokenBatch {
    TokenBatch::new(rows, &model.device())
}

fn vector(d_model: usize, seed: u64) -> Vec<f32> {
    random_ids(d_model, 0..2000, seed).iter().map(|&x| x as f32 / 1000.0 - 1.0).collect()
}

fn injection(model: &CcModel, anchors: Vec<usize>, vectors: &[f32]) -> Injection {
    let shape = [anchors.len(), vectors.len() / anchors.len()];
    let vector = Tensor::from_data(TensorData::new(vectors.to_vec(), shape), &model.device());
    Injection::new(Anchor::new(anchors), vector)
}

/// Row `row`, positions `from..to` of a stream.
fn part(stream: &Tensor<3>, row: usize, from: usize, to: usize) -> Vec<f32> {
    values(&stream.clone().narrow(0, row, 1).narrow(1, from, to - from))
}

fn last_logits(model: &CcModel, stream: &Tensor<3>) -> Vec<f32> {
    let last = stream.dims()[1] - 1;
    values(&model.logits(stream.clone().narrow(1, last, 1).squeeze_dim(1)))
}

fn as_f32(rows: &[Vec<f64>]) -> Vec<f32> {
    rows.iter().flatten().map(|&x| x as f32).collect()
}

#[test]
fn every_logit_equals_attention_and_feed_forward_in_plain_loops() {
    let ids = random_ids(23, 0..270, 1);
    for (config, model) in cases() {
        let stream = model.forward(&batch(&model, std::slice::from_ref(&ids)), None);
        let logits = values(&model.logits(stream.squeeze_dim(0)));
        let expected = as_f32(&ByHand::new(&config, &model).run(&ids, None).logits);
        let spread = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        assert!(spread > 1.0, "logits that hardly differ prove nothing: {spread}");
        assert_close(&logits, &expected, 2e-4, &format!("{:?} tied {}", config.family, config.tie_word_embeddings));
    }
}

#[test]
fn a_probe_reads_what_the_blocks_compute_at_each_rows_anchor() {
    let rows = [random_ids(19, 0..256, 2), random_ids(11, 0..256, 3)];
    let anchors = [18, 4];
    for (config, model) in cases() {
        let hand = ByHand::new(&config, &model);
        type Part = fn(&Trace) -> &Vec<Vec<Vec<f64>>>;
        let sites: [(Site, Part); 3] = [
            (Site::FeedForward, |trace| &trace.feed_forward),
            (Site::Attention, |trace| &trace.attention),
            (Site::Block, |trace| &trace.block),
        ];
        for (site, part) in sites {
            let read = model.activations(&batch(&model, &rows), &Anchor::new(anchors.to_vec()), site);
            assert_eq!(read.dims(), [2, config.n_layers, config.d_model]);
            let expected = rows.iter().zip(anchors).flat_map(|(ids, anchor)| {
                let trace = hand.run(ids, None);
                part(&trace).iter().flat_map(|layer| as_f32(&layer[anchor..=anchor])).collect::<Vec<_>>()
            });
            assert_close(&values(&read.0), &expected.collect::<Vec<_>>(), 5e-5, &format!("{site:?}"));
        }
    }
}

#[test]
fn an_injection_is_an_addition_to_the_first_blocks_output_at_the_anchor() {
    let ids = random_ids(17, 0..256, 4);
    for (config, model) in cases() {
        let vector = vector(config.d_model, 5);
        let injection = injection(&model, vec![9], &vector);
        let stream = model.forward(&batch(&model, std::slice::from_ref(&ids)), Some(&injection));
        let expected = ByHand::new(&config, &model).run(&ids, Some((9, &vector)));
        assert_close(&values(&model.logits(stream.squeeze_dim(0))), &as_f32(&expected.logits), 2e-4, "logits");
    }
}

#[test]
fn a_zero_injection_is_the_vanilla_pass_bit_for_bit() {
    let rows = [random_ids(16, 0..256, 6), random_ids(16, 0..256, 7)];
    for (config, model) in cases() {
        let batch = batch(&model, &rows);
        let zero = injection(&model, vec![3, 15], &vec![0.0; 2 * config.d_model]);
        assert_eq!(values(&model.forward(&batch, Some(&zero))), values(&model.forward(&batch, None)));
    }
}

#[test]
fn an_injection_changes_nothing_before_its_anchor_and_something_from_there_on() {
    let rows = [random_ids(16, 0..256, 6), random_ids(16, 0..256, 7)];
    for (config, model) in cases() {
        let batch = batch(&model, &rows);
        let vectors = [vector(config.d_model, 8), vector(config.d_model, 9)].concat();
        let connected = model.forward(&batch, Some(&injection(&model, vec![3, 11], &vectors)));
        let vanilla = model.forward(&batch, None);
        for (row, anchor) in [(0, 3), (1, 11)] {
            assert_eq!(part(&connected, row, 0, anchor), part(&vanilla, row, 0, anchor), "row {row}");
            for position in anchor..16 {
                let [a, b] = [&connected, &vanilla].map(|stream| part(stream, row, position, position + 1));
                assert_ne!(a, b, "row {row} position {position} does not see the injection");
            }
        }
    }
}

#[test]
fn a_connected_prefill_with_cached_decoding_equals_the_full_connected_pass() {
    let ids = random_ids(24, 0..256, 10);
    for (config, model) in cases() {
        for (prompt, anchor) in [(14, 13), (14, 12), (14, 0), (1, 0)] {
            let injection = injection(&model, vec![anchor], &vector(config.d_model, 11));
            let decoder = &model.model;
            let mut cache = KvCache::new(&config, 1, 24, &model.device());
            let mut run = |ids: &[u32], injection| {
                let embedded = decoder.embed(batch(&model, &[ids.to_vec()]).ids);
                let taps = Taps { probe: None, injection };
                decoder.forward(embedded, 0..decoder.n_layers(), Some(&mut cache), taps)
            };
            let mut stream = run(&ids[..prompt], Some(&injection));
            for n in prompt..=24 {
                let full = model.forward(&batch(&model, &[ids[..n].to_vec()]), Some(&injection));
                assert_close(&last_logits(&model, &stream), &last_logits(&model, &full), 1e-4, "logits");
                if n < 24 {
                    stream = run(&ids[n..=n], None);
                }
            }
        }
    }
}

#[test]
fn padding_changes_no_real_position() {
    let short = random_ids(7, 0..256, 12);
    let long = random_ids(15, 0..256, 13);
    for (_, model) in cases() {
        let read = |batch: &TokenBatch| {
            (model.forward(batch, None), model.activations(batch, &Anchor::new(vec![6, 14]), Site::FeedForward).0)
        };
        let (stream, activations) = read(&batch(&model, &[short.clone(), long.clone()]));
        let mut ids: Vec<i32> = short.iter().chain(&[201; 8]).chain(&long).map(|&id| id as i32).collect();
        ids[9] = 33;
        let other = TokenBatch { ids: Tensor::<2, Int>::from_data(TensorData::new(ids, [2, 15]), &model.device()) };
        let (padded, other_activations) = read(&other);
        assert_eq!(part(&stream, 0, 0, 7), part(&padded, 0, 0, 7), "what the padding holds was read");
        assert_eq!(values(&activations), values(&other_activations));

        let alone = model.forward(&batch(&model, std::slice::from_ref(&short)), None);
        assert_close(&part(&stream, 0, 0, 7), &part(&alone, 0, 0, 7), 1e-5, "the row alone");
    }
}

#[test]
fn the_order_of_a_batch_changes_no_row() {
    let rows: Vec<Vec<u32>> = (0..4).map(|seed| random_ids(8 + 2 * seed, 0..256, 20 + seed as u64)).collect();
    let anchors: Vec<usize> = rows.iter().map(|row| row.len() - 1).collect();
    let back: Vec<Vec<u32>> = rows.iter().rev().cloned().collect();
    let back_anchors: Vec<usize> = anchors.iter().rev().copied().collect();
    for (config, model) in cases() {
        let vectors: Vec<Vec<f32>> = (0..4).map(|seed| vector(config.d_model, 30 + seed)).collect();
        let forth = injection(&model, anchors.clone(), &vectors.concat());
        let reversed: Vec<f32> = vectors.iter().rev().flatten().copied().collect();
        let backward = injection(&model, back_anchors.clone(), &reversed);
        let a = model.forward(&batch(&model, &rows), Some(&forth));
        let b = model.forward(&batch(&model, &back), Some(&backward));
        for (row, ids) in rows.iter().enumerate() {
            assert_eq!(part(&a, row, 0, ids.len()), part(&b, 3 - row, 0, ids.len()), "row {row}");
        }
    }
}

#[test]
fn e_is_the_mean_of_the_users_tokens_or_the_anchors_or_nothing() {
    let (config, model) = cases().into_iter().next().unwrap();
    let rows = [random_ids(9, 0..256, 40), random_ids(6, 0..256, 41)];
    let (anchor, content) = (Anchor::new(vec![8, 5]), [2..7, 1..2]);
    let hand = ByHand::new(&config, &model);
    let embedding =
        |id: u32| hand.tensor("model.embed_tokens.weight")[id as usize * config.d_model..][..config.d_model].to_vec();
    let read = |kind| values(&model.input_embedding(kind, &batch(&model, &rows), &anchor, &content));

    let mut mean = vec![0.0; config.d_model];
    for &id in &rows[0][2..7] {
        mean.iter_mut().zip(embedding(id)).for_each(|(sum, x)| *sum += x / 5.0);
    }
    mean.extend(embedding(rows[1][1]));
    assert_close(&read(InputEmbedding::ContentMean), &mean, 1e-6, "content mean");
    assert_eq!(read(InputEmbedding::Anchor), [embedding(rows[0][8]), embedding(rows[1][5])].concat());
    assert_eq!(read(InputEmbedding::None), vec![0.0; 2 * config.d_model]);
}

#[test]
#[should_panic(expected = "KV cache")]
fn a_full_cache_names_itself_instead_of_writing_past_its_end() {
    let config = config(Family::Llama, true);
    let model = model(&config, 1);
    let mut cache = KvCache::new(&config, 1, 4, &model.device());
    for ids in [&[1, 2, 3][..], &[4, 5]] {
        let embedded = model.model.embed(batch(&model, &[ids.to_vec()]).ids);
        model.model.forward(embedded, 0..3, Some(&mut cache), Taps::default());
    }
}
