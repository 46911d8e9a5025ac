//! Prompts of different lengths in one batch: each row is what it is alone, to the logits.

use burn::tensor::read_sync;
use cctuning::chat::Prompt;
use cctuning::config::Family;
use cctuning::decision_maker::Pool;
use cctuning::generate::{Choice, ConnectionOptions, GenerateOptions, Source, TwoPass};
use cctuning::model::InputEmbedding;
use cctuning::sampling::Sampling;
use cctuning::tap::Site;
use trainer::evaluate;

use crate::decoding::{World, options, world};
use crate::small_model::{VOCAB_SIZE, assert_close, prompt, values};

const SOURCES: [Source; 7] = [
    Source::None,
    Source::Parallel,
    Source::Transform,
    Source::Identity,
    Source::Zero,
    Source::Random,
    Source::Shuffled,
];

/// Anchors at the end, one before it, and at a different distance in every row.
const BACKS: [fn(usize) -> usize; 3] = [|_| 1, |_| 2, |row| 1 + row % 3];

/// Prompts of 5 to 40 tokens, none the longest by much, and other ones for the sources that need them.
fn rows(back: fn(usize) -> usize) -> Vec<(Prompt, Prompt)> {
    let lengths = [17, 40, 5, 40, 11, 33];
    let row =
        |(at, &n): (usize, &usize)| (prompt(n, back(at), 100 + at as u64), prompt(7 + 5 * at, 1, 200 + at as u64));
    lengths.iter().enumerate().map(row).collect()
}

/// Logits of the first and the third token, connections, and all tokens, of every row together or each alone.
fn together_and_alone(world: &World, rows: &[(Prompt, Prompt)], options: &GenerateOptions, what: &str) {
    let (own, others): (Vec<&Prompt>, Vec<&Prompt>) = rows.iter().map(|(own, other)| (own, other)).unzip();
    let mut batch = world.start(&own, &others, options.clone());
    let connections = read_sync(batch.connections()).unwrap();
    let first = values(&batch.logits());
    let mut alone: Vec<_> = rows.iter().map(|(own, other)| world.start(&[own], &[other], options.clone())).collect();
    let vocab_size = first.len() / rows.len();
    for (at, alone) in alone.iter_mut().enumerate() {
        assert_close(&first[at * vocab_size..][..vocab_size], &values(&alone.logits()), 1e-5, what);
        match (&connections, read_sync(alone.connections()).unwrap()) {
            (None, None) => {}
            (Some(found), Some(expected)) => {
                assert_eq!(found[at].layer, expected[0].layer, "{what}");
                assert_close(&found[at].probabilities, &expected[0].probabilities, 1e-5, what);
                let norms = [found[at].vector_norm, found[at].stream_norm];
                assert_close(&norms, &[expected[0].vector_norm, expected[0].stream_norm], 1e-4, what);
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    for _ in 0..2 {
        let tokens = read_sync(batch.next_tokens()).unwrap().unwrap();
        for (at, alone) in alone.iter_mut().enumerate() {
            assert_eq!(tokens[at], read_sync(alone.next_tokens()).unwrap().unwrap()[0], "{what}");
        }
    }
    let later = values(&batch.logits());
    for (at, alone) in alone.iter_mut().enumerate() {
        assert_close(&later[at * vocab_size..][..vocab_size], &values(&alone.logits()), 1e-5, what);
    }
    let expected: Vec<Vec<u32>> = alone.into_iter().map(|alone| read_sync(alone.finish()).unwrap().remove(0)).collect();
    assert_eq!(read_sync(batch.finish()).unwrap(), expected, "{what}");
}

#[test]
fn every_row_of_a_ragged_batch_is_what_it_is_alone_for_every_source_and_anchor() {
    for family in [Family::Llama, Family::Qwen2] {
        let world = world(family);
        for (which, back) in BACKS.into_iter().enumerate() {
            for source in SOURCES {
                let what = format!("{family:?} {source:?} anchors {which}");
                together_and_alone(&world, &rows(back), &options(source), &what);
            }
        }
    }
}

#[test]
fn a_given_answer_costs_what_its_tokens_cost_one_by_one() {
    let world = world(Family::Llama);
    let rows = rows(BACKS[2]);
    let (own, others): (Vec<&Prompt>, Vec<&Prompt>) = rows.iter().map(|(own, other)| (own, other)).unzip();
    // One, several and no tokens; rows with three, one and no answers.
    let given =
        [vec![vec![7], vec![65, 66, 67, 12], vec![9, 9]], vec![vec![80, 3, 5]], vec![], vec![vec![], vec![1, 2]]];
    let given: Vec<&[Vec<u32>]> = (0..rows.len()).map(|row| &given[row % given.len()][..]).collect();
    // What is drawn at random hangs on the whole prompt, so a longer one is given other activations.
    for source in SOURCES.into_iter().filter(|&source| source != Source::Random) {
        let options = options(source);
        let mut batch = world.start(&own, &others, options.clone());
        let found = batch.log_probabilities(&given).unwrap();
        assert_eq!(found.dims(), [rows.len(), 3]);
        for (at, ((own, other), answers)) in rows.iter().zip(&given).enumerate() {
            // The prompt with the tokens so far behind it: its anchor and its content stay where they are.
            let cost = |answer: &Vec<u32>| -> f32 {
                let mut prompt = own.clone();
                answer.iter().fold(0.0, |sum, &token| {
                    let logits = values(&world.start(&[&prompt], &[other], options.clone()).logits());
                    prompt.ids.push(token);
                    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
                    sum + (f64::from(logits[token as usize]) - total.ln()) as f32
                })
            };
            let mut expected: Vec<f32> = answers.iter().map(cost).collect();
            expected.resize(3, 0.0);
            let row = values(&found.clone().narrow(0, at, 1));
            assert_close(&row, &expected, 1e-4, &format!("{source:?} row {at}"));
        }
        let untouched = read_sync(world.start(&own, &others, options).finish()).unwrap();
        assert_eq!(read_sync(batch.finish()).unwrap(), untouched, "{source:?}: judging changed the answers");
    }
    let mut batch = world.start(&own[..1], &others[..1], options(Source::None));
    let refused = batch.log_probabilities(&[&[vec![0; 10]]]).unwrap_err().to_string();
    assert!(refused.contains("10 tokens") && refused.contains("max_new_tokens"), "{refused}");
}

#[test]
fn every_switch_of_the_connection_holds_in_a_ragged_batch() {
    let world = world(Family::Llama);
    let plain = ConnectionOptions::default();
    let switches = [
        ConnectionOptions { two_pass: TwoPass::Full, ..plain },
        ConnectionOptions { site: Site::Attention, layer: 1, ..plain },
        ConnectionOptions { site: Site::Block, layer: 2, ..plain },
        ConnectionOptions { two_pass: TwoPass::Full, layer: 1, ..plain },
        ConnectionOptions { choice: Choice::Gumbel, seed: 3, ..plain },
        ConnectionOptions { choice: Choice::Expectation, alpha: 0.5, ..plain },
        ConnectionOptions { pool: Pool::Random, seed: 4, ..plain },
        ConnectionOptions { pool: Pool::Mean, e: InputEmbedding::Anchor, ..plain },
    ];
    for connection in switches {
        for back in BACKS {
            let options = GenerateOptions { connection, ..options(Source::Transform) };
            together_and_alone(&world, &rows(back), &options, &format!("{connection:?}"));
        }
    }
}

#[test]
fn a_sampled_answer_does_not_depend_on_the_prompts_beside_it() {
    let world = world(Family::Qwen2);
    let sampling = Sampling::TopP { temperature: 1.0, top_p: 0.9, seed: 5 };
    let options = GenerateOptions { sampling, ..options(Source::Transform) };
    together_and_alone(&world, &rows(BACKS[0]), &options, "sampled");
}

#[test]
fn rows_that_have_ended_leave_and_the_others_go_on_as_alone() {
    let world = world(Family::Llama);
    let rows: Vec<(Prompt, Prompt)> =
        (0..12).map(|at| (prompt(6 + 3 * (at % 5), 1, 500 + at as u64), prompt(9, 1, 600))).collect();
    for sampling in [Sampling::Greedy, Sampling::TopP { temperature: 1.0, top_p: 0.9, seed: 1 }] {
        let stop_ids = (0..VOCAB_SIZE as u32).filter(|id| id % 7 == 0).collect();
        let options = GenerateOptions { max_new_tokens: 24, sampling, stop_ids, ..options(Source::Transform) };
        let (own, _): (Vec<&Prompt>, Vec<&Prompt>) = rows.iter().map(|(own, other)| (own, other)).unzip();
        let mut batch = world.start(&own, &[], options.clone());
        let (mut answers, mut widths) = (vec![Vec::new(); own.len()], Vec::new());
        while let Some(tokens) = read_sync(batch.next_tokens()).unwrap() {
            answers.iter_mut().zip(tokens).for_each(|(answer, token)| answer.extend(token));
            widths.push(batch.logits().dims()[0]);
        }
        for ((own, other), answer) in rows.iter().zip(&answers) {
            assert_eq!(*answer, world.answer(own, other, &options), "{sampling:?}");
        }
        let lengths: Vec<usize> = answers.iter().map(Vec::len).collect();
        assert!(widths.last() < widths.first(), "no row ever left: {widths:?}, answers of {lengths:?}");
    }
}

#[test]
fn answers_come_in_the_order_of_the_prompts_however_they_are_packed() {
    let world = world(Family::Qwen2);
    // More rows than one batch takes.
    let rows: Vec<(Prompt, Prompt)> =
        (0..140).map(|at| (prompt(6 + (at * 7) % 23, 1, at as u64), prompt(9, 1, 300 + at as u64))).collect();
    let pairs: Vec<(&Prompt, &Prompt)> = rows.iter().map(|(own, other)| (own, other)).collect();
    let options = GenerateOptions { max_new_tokens: 3, ..options(Source::Transform) };
    let answers = evaluate::answer(&world.model, &world.config, Some(&world.folded), &pairs, &options).unwrap();
    for ((own, other), answer) in rows.iter().zip(&answers) {
        assert_eq!(*answer, world.answer(own, other, &options));
    }
}

#[test]
fn batches_hold_every_row_once_and_similar_lengths_together() {
    let lengths: Vec<usize> = (0..500).map(|at| 20 + (at * 7919) % 3000).collect();
    let batches = evaluate::batches(&lengths);
    let mut rows: Vec<usize> = batches.concat();
    assert!(rows.is_sorted_by_key(|&row| std::cmp::Reverse(lengths[row])));
    rows.sort_unstable();
    assert_eq!(rows, (0..500).collect::<Vec<_>>());
    for batch in &batches {
        let slots = batch.len() * lengths[batch[0]];
        assert!(slots <= 16_384 && batch.len() <= 128, "{} rows of {}", batch.len(), lengths[batch[0]]);
    }
    assert_eq!(evaluate::batches(&[100_000, 5]), [[0], [1]], "a row beyond the budget is a batch of its own");
    assert!(evaluate::batches(&[]).is_empty());
    let (short, long) = (prompt(6, 1, 0), prompt(90, 1, 1));
    assert_eq!((evaluate::slots(&long, &short, 3), evaluate::slots(&short, &long, 3)), (93, 90));
}

#[test]
fn shuffling_gives_every_prompt_exactly_one_other() {
    for n in [2, 3, 10, 501] {
        let others = evaluate::others(n, 7).unwrap();
        assert!(others.iter().enumerate().all(|(at, &other)| at != other), "{n}: a prompt is its own other");
        let mut sorted = others.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        assert_eq!(others, evaluate::others(n, 7).unwrap());
    }
    assert_ne!(evaluate::others(501, 7).unwrap(), evaluate::others(501, 8).unwrap());
    assert!(evaluate::others(1, 7).unwrap_err().to_string().contains("at least two"));
    assert!(evaluate::others(0, 7).unwrap().is_empty());
}
