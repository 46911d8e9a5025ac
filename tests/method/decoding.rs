//! Answers: one prefill with a re-run of the anchor says what two full passes say, for every source of the connection.

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData, read_sync};
use cctuning::anchor::Anchor;
use cctuning::chat::Prompt;
use cctuning::config::{Family, ModelConfig};
use cctuning::decision_maker::Pool;
use cctuning::error::Error;
use cctuning::generate::{Choice, Connection, ConnectionOptions, Decoding, GenerateOptions, Source};
use cctuning::model::{CcModel, InputEmbedding, TokenBatch};
use cctuning::sampling::{Nucleus, Sampling, row_rng};
use cctuning::tap::{FfnActivations, Injection, Site};
use cctuning::transform_matrix::{FoldedTransform, TransformMatrix};
use trainer::evaluate;

use crate::small_model::{assert_close, config, model, prompt, random_ids, values};

pub struct World {
    pub config: ModelConfig,
    pub model: CcModel,
    pub matrix: TransformMatrix,
    pub folded: FoldedTransform,
}

pub fn world(family: Family) -> World {
    let config = config(family, family == Family::Qwen2);
    let model = model(&config, 3);
    let d = config.d_model;
    let entries = random_ids(d * d, 0..1000, 5).iter().map(|&x| x as f32 / 1000.0 - 0.5).collect();
    let matrix = TransformMatrix::from_values(entries, None, d, &model.device()).unwrap();
    let folded = matrix.fold(model.model.decision_maker());
    World { config, model, matrix, folded }
}

pub fn options(source: Source) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: 8,
        sampling: Sampling::Greedy,
        source,
        connection: ConnectionOptions::default(),
        stop_ids: Vec::new(),
    }
}

impl World {
    pub fn start(&self, prompts: &[&Prompt], english: &[&Prompt], options: GenerateOptions) -> Decoding<'_> {
        Decoding::start(&self.model, &self.config, Some(&self.folded), prompts, english, options).unwrap()
    }

    pub fn answer(&self, prompt: &Prompt, english: &Prompt, options: &GenerateOptions) -> Vec<u32> {
        read_sync(self.start(&[prompt], &[english], options.clone()).finish()).unwrap().remove(0)
    }

    pub fn connection(&self, prompt: &Prompt, connection: ConnectionOptions) -> Connection {
        let options = GenerateOptions { connection, ..options(Source::Transform) };
        read_sync(self.start(&[prompt], &[], options).connections()).unwrap().unwrap().remove(0)
    }

    pub fn captured(&self, prompt: &Prompt) -> FfnActivations {
        let batch = TokenBatch::new(&[&prompt.ids], &self.model.device());
        self.model.activations(&batch, &Anchor::new(vec![prompt.anchor]), Site::FeedForward)
    }

    /// The vector of Eq. 3-5 by the book: `G` whole, no folding, the layer of the largest logit.
    pub fn vector(&self, activations: &FfnActivations, prompt: &Prompt) -> (usize, Tensor<2>) {
        let batch = TokenBatch::new(&[&prompt.ids], &self.model.device());
        let (anchor, content) = (Anchor::new(vec![prompt.anchor]), std::slice::from_ref(&prompt.content));
        let e = self.model.input_embedding(InputEmbedding::ContentMean, &batch, &anchor, content);
        let logits = values(&self.model.model.decision_maker().logits(activations, e));
        let layer = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        (layer, activations.0.clone().narrow(1, layer, 1).squeeze_dim(1))
    }

    /// Greedy tokens and first logits, one full pass over everything per token.
    pub fn two_full_passes(&self, prompt: &Prompt, vector: Tensor<2>, tokens: usize) -> (Vec<u32>, Vec<f32>) {
        let injection = Injection::new(Anchor::new(vec![prompt.anchor]), vector);
        let (mut ids, mut first) = (prompt.ids.clone(), Vec::new());
        for _ in 0..tokens {
            let stream = self.model.forward(&TokenBatch::new(&[&ids], &self.model.device()), Some(&injection));
            let logits = values(&self.model.logits(stream.narrow(1, ids.len() - 1, 1).squeeze_dim(1)));
            ids.push((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32);
            if first.is_empty() {
                first = logits;
            }
        }
        (ids.split_off(prompt.ids.len()), first)
    }
}

/// The anchor is the last token (Llama 3) or the one before it (the released code's role token for Qwen).
const BACK: [usize; 2] = [1, 2];

#[test]
fn rerunning_the_anchor_equals_two_full_passes_for_every_source() {
    for family in [Family::Llama, Family::Qwen2] {
        let world = world(family);
        for back in BACK {
            let (own, english) = (prompt(21, back, 50), prompt(13, back, 51));
            let f = world.captured(&own);
            let sources = [
                (Source::Transform, world.matrix.apply(&f)),
                (Source::Identity, f.clone()),
                (Source::Parallel, world.captured(&english)),
            ];
            for (source, activations) in sources {
                let what = format!("{family:?} {source:?}, anchor {back} from the end");
                let (layer, vector) = world.vector(&activations, &own);
                let (tokens, logits) = world.two_full_passes(&own, vector, 8);
                let mut decoding = world.start(&[&own], &[&english], options(source));
                assert_close(&values(&decoding.logits()), &logits, 2e-4, &what);
                let report = read_sync(decoding.connections()).unwrap().unwrap().remove(0);
                assert_eq!(report.layer, layer, "{what}");
                assert_eq!(read_sync(decoding.finish()).unwrap(), [tokens], "{what}");
            }
        }
    }
}

#[test]
fn a_zero_source_answers_as_the_vanilla_model_and_no_source_reports_nothing() {
    let world = world(Family::Llama);
    for back in BACK {
        let own = prompt(18, back, 52);
        let mut zero = world.start(&[&own], &[], options(Source::Zero));
        let mut none = world.start(&[&own], &[], options(Source::None));
        assert_close(&values(&zero.logits()), &values(&none.logits()), 1e-5, "logits");
        assert!(read_sync(none.connections()).unwrap().is_none());
        assert_eq!(read_sync(zero.connections()).unwrap().unwrap()[0].vector_norm, 0.0);
        assert_eq!(read_sync(zero.finish()).unwrap(), read_sync(none.finish()).unwrap());
    }
}

#[test]
fn a_random_source_is_as_long_as_the_transformed_one_and_elsewhere() {
    let world = world(Family::Llama);
    let own = prompt(18, 1, 53);
    let start = |source, seed| {
        let connection = ConnectionOptions { seed, ..Default::default() };
        let mut decoding = world.start(&[&own], &[], GenerateOptions { connection, ..options(source) });
        (values(&decoding.logits()), read_sync(decoding.connections()).unwrap().unwrap().remove(0))
    };
    let (transformed, a) = start(Source::Transform, 1);
    let (random, b) = start(Source::Random, 1);
    assert!((a.vector_norm - b.vector_norm).abs() < 1e-4 * a.vector_norm, "{} {}", a.vector_norm, b.vector_norm);
    assert_ne!(transformed, random);
    assert_eq!(random, start(Source::Random, 1).0);
    assert_ne!(random, start(Source::Random, 2).0);
}

#[test]
fn folding_the_transform_matrix_changes_neither_decision_nor_vector() {
    let world = world(Family::Qwen2);
    let own = prompt(18, 1, 54);
    let f = world.captured(&own);
    let e = Tensor::from_data(TensorData::new(vec![0.3f32; 32], [1, 32]), &world.model.device());
    let decision_maker = world.model.model.decision_maker();
    let unfolded = world.matrix.apply(&f);
    let folded = world.folded.logits(&f, e.clone(), decision_maker);
    assert_close(&values(&folded), &values(&decision_maker.logits(&unfolded, e)), 1e-4, "H");
    let weights = softmax(folded, 1);
    assert_close(&values(&world.folded.vector(&f, weights.clone())), &values(&unfolded.mix(weights)), 1e-4, "vector");
}

#[test]
fn every_pool_and_every_choice_injects_the_vector_it_names() {
    let world = world(Family::Llama);
    let own = prompt(18, 1, 55);
    let g = world.matrix.apply(&world.captured(&own));
    let norm = |weights: &[f32]| {
        let weights = Tensor::from_data(TensorData::new(weights.to_vec(), [1, 3]), &world.model.device());
        values(&g.mix(weights)).iter().map(|x| x * x).sum::<f32>().sqrt()
    };
    let check = |found: &Connection, weights: &[f32], what: &str| {
        let expected = norm(weights);
        assert!((found.vector_norm - expected).abs() < 1e-4 * expected, "{what}: {} {expected}", found.vector_norm);
    };
    let one_hot = |layer: usize| [0, 1, 2].map(|l| f32::from(u8::from(l == layer)));
    let with =
        |pool, choice, seed| world.connection(&own, ConnectionOptions { pool, choice, seed, ..Default::default() });

    let plain = with(Pool::DecisionMaker, Choice::Argmax, 0);
    let best = plain.probabilities.iter().copied().fold(0.0, f32::max);
    assert!((plain.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    assert_eq!(plain.probabilities[plain.layer], best);
    check(&plain, &one_hot(plain.layer), "argmax");
    check(&with(Pool::DecisionMaker, Choice::Expectation, 0), &plain.probabilities, "expectation");
    check(&with(Pool::Mean, Choice::Argmax, 0), &[1.0 / 3.0; 3], "mean");
    for layer in 0..3 {
        let fixed = with(Pool::Fixed(layer), Choice::Argmax, 0);
        assert_eq!(fixed.layer, layer);
        check(&fixed, &one_hot(layer), "fixed");
    }
    for (pool, choice) in [(Pool::Random, Choice::Argmax), (Pool::DecisionMaker, Choice::Gumbel)] {
        let mut seen = [false; 3];
        for seed in 0..40 {
            let drawn = with(pool, choice, seed);
            assert_eq!(drawn, with(pool, choice, seed), "the same seed draws the same layer");
            check(&drawn, &one_hot(drawn.layer), "drawn");
            seen[drawn.layer] = true;
        }
        assert!(seen.iter().filter(|&&seen| seen).count() > 1, "{pool:?} {choice:?} always takes the same layer");
    }
    let doubled = world.connection(&own, ConnectionOptions { alpha: 2.0, ..Default::default() });
    assert!((doubled.vector_norm - 2.0 * plain.vector_norm).abs() < 1e-4 * plain.vector_norm);
}

#[test]
fn a_batch_of_prompts_is_answered_as_each_alone() {
    let world = world(Family::Qwen2);
    let prompts: Vec<(Prompt, Prompt)> =
        (0..7).map(|i| (prompt(12 + 3 * (i % 3), 1, 60 + i as u64), prompt(9 + i, 1, 70 + i as u64))).collect();
    let pairs: Vec<(&Prompt, &Prompt)> = prompts.iter().map(|(own, english)| (own, english)).collect();
    for source in [Source::None, Source::Transform, Source::Identity, Source::Parallel] {
        let options = options(source);
        let together = evaluate::answer(&world.model, &world.config, Some(&world.folded), &pairs, &options).unwrap();
        for (answer, (own, english)) in together.iter().zip(&prompts) {
            assert_eq!(*answer, world.answer(own, english, &options), "{source:?}");
        }
    }
}

#[test]
fn a_row_that_has_ended_stays_silent_while_the_others_go_on() {
    let world = world(Family::Llama);
    let (a, b) = (prompt(14, 1, 80), prompt(14, 1, 81));
    let free = options(Source::Transform);
    let (free_a, free_b) = (world.answer(&a, &a, &free), world.answer(&b, &b, &free));
    let stop = *free_a[2..].iter().find(|token| !free_b.contains(token)).expect("answers differ");
    let options = GenerateOptions { stop_ids: vec![stop], ..free };
    let answers = read_sync(world.start(&[&a, &b], &[], options).finish()).unwrap();
    let end = free_a.iter().position(|&token| token == stop).unwrap();
    assert_eq!(answers, [free_a[..end].to_vec(), free_b]);
}

#[test]
fn seeded_sampling_repeats_itself_and_another_seed_says_something_else() {
    let world = world(Family::Llama);
    let own = prompt(14, 1, 82);
    let sample = |temperature, top_p, seed| {
        let sampling = Sampling::TopP { temperature, top_p, seed };
        world.answer(&own, &own, &GenerateOptions { sampling, ..options(Source::Transform) })
    };
    assert_eq!(sample(1.0, 1.0, 1), sample(1.0, 1.0, 1));
    assert!((2..6).any(|seed| sample(1.0, 1.0, seed) != sample(1.0, 1.0, 1)));
    let greedy = world.answer(&own, &own, &options(Source::Transform));
    assert_eq!(sample(1.0, 1e-6, 1), greedy, "a nucleus of one token is greedy");
    assert_eq!(sample(1e-3, 1.0, 1), greedy, "a cold temperature is greedy");
}

#[test]
fn a_nucleus_draws_each_of_its_tokens_by_share_and_never_another() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln() * 2.0).collect();
    let mut nucleus = Nucleus::new(2.0, 0.79, row_rng(9, &[]));
    let mut counts = [0; 4];
    for _ in 0..4000 {
        counts[nucleus.draw(&logits)] += 1;
    }
    assert_eq!(counts[2..], [0, 0], "{counts:?}");
    assert!((2350..2650).contains(&counts[0]), "{counts:?}, expected 2500 of the likeliest");
}

#[test]
fn an_answer_that_does_not_fit_the_context_is_refused_before_any_pass() {
    let world = world(Family::Llama);
    let context = world.config.max_positions;
    let start = |prompt: &Prompt, english: &Prompt, source| {
        Decoding::start(&world.model, &world.config, Some(&world.folded), &[prompt], &[english], options(source))
            .map(|_| ())
    };
    let fits = prompt(context - 8, 1, 83);
    start(&fits, &fits, Source::Transform).unwrap();
    let long = prompt(context - 7, 1, 84);
    let Err(Error::PromptTooLong { found, limit }) = start(&long, &fits, Source::None) else { panic!("accepted") };
    assert_eq!((found, limit), (context - 7, context - 8));
    let twin = prompt(context + 1, 1, 85);
    let Err(Error::PromptTooLong { found, .. }) = start(&fits, &twin, Source::Parallel) else { panic!("accepted") };
    assert_eq!(found, context + 1, "an English twin beyond the context is refused as well");
}

#[test]
fn a_source_without_what_it_needs_is_an_error_in_words() {
    let world = world(Family::Llama);
    let own = prompt(14, 1, 86);
    let start = |source| {
        let started = Decoding::start(&world.model, &world.config, None, &[&own], &[], options(source));
        started.map(|_| ()).unwrap_err().to_string()
    };
    for source in [Source::Transform, Source::Zero, Source::Random] {
        assert!(start(source).starts_with("transform matrix:"), "{source:?}: {}", start(source));
    }
    assert!(start(Source::Parallel).contains("English twin"), "{}", start(Source::Parallel));
}

/// Large enough for the cores to share it, as a matrix and, where the head is the embedding, as a transposed one.
#[test]
fn one_row_by_a_large_matrix_is_what_it_is_among_others() {
    for tied in [true, false] {
        let wide =
            ModelConfig { d_model: 64, d_ff: 1 << 15, vocab_size: 1 << 15, n_layers: 1, ..config(Family::Llama, tied) };
        let model = model(&wide, 7);
        let logits = |rows: &[[u32; 1]]| {
            let stream = model.forward(&TokenBatch::new(rows, &model.device()), None);
            values(&model.logits(stream.squeeze_dim(1)))
        };
        let (alone, among) = (logits(&[[7]]), logits(&[[7], [9]]));
        assert_close(&alone, &among[..alone.len()], 1e-4, if tied { "tied" } else { "untied" });
    }
}
