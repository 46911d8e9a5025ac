//! Every switch of the connection does what it names and nothing else; what was written before it existed still loads.

use burn::tensor::{Tensor, read_sync};
use cctuning::anchor::Anchor;
use cctuning::chat::Prompt;
use cctuning::config::Family;
use cctuning::decision_maker::Pool;
use cctuning::generate::{Choice, ConnectionOptions, GenerateOptions, Source, Stop, TwoPass};
use cctuning::model::TokenBatch;
use cctuning::tap::{Injection, Site, Taps, Write};
use trainer::recipe::{Preset, Recipe};

use crate::decoding::{World, options, world};
use crate::small_model::{assert_close, config, model, prompt, random_ids, values};

const FAMILIES: [Family; 2] = [Family::Llama, Family::Qwen2];

/// First logits and tokens under these choices.
fn answered(world: &World, prompt: &Prompt, source: Source, connection: ConnectionOptions) -> (Vec<f32>, Vec<u32>) {
    let options = GenerateOptions { connection, ..options(source) };
    let mut decoding = world.start(&[prompt], &[], options);
    (values(&decoding.logits()), read_sync(decoding.finish()).unwrap().remove(0))
}

#[test]
fn a_second_whole_pass_answers_as_the_reuse_of_the_first() {
    for world in FAMILIES.map(world) {
        for (back, layer) in [(1, 0), (2, 0), (1, 1), (3, 2)] {
            let own = prompt(21, back, 50);
            let reuse = ConnectionOptions { layer, ..Default::default() };
            let (logits, tokens) = answered(&world, &own, Source::Transform, reuse);
            let full = ConnectionOptions { two_pass: TwoPass::Full, ..reuse };
            let (full_logits, full_tokens) = answered(&world, &own, Source::Transform, full);
            assert_close(&full_logits, &logits, 1e-4, "logits");
            assert_eq!(full_tokens, tokens);
        }
    }
}

#[test]
fn site_and_layer_read_and_write_where_they_say() {
    for world in FAMILIES.map(world) {
        let own = prompt(21, 1, 51);
        let (vanilla, _) = answered(&world, &own, Source::None, ConnectionOptions::default());
        let mut seen = vec![vanilla];
        for site in [Site::FeedForward, Site::Attention, Site::Block] {
            let tokens = TokenBatch::new(&[&own.ids], &world.model.device());
            let read = world.model.activations(&tokens, &Anchor::new(vec![own.anchor]), site);
            let (chosen, vector) = world.vector(&world.matrix.apply(&read), &own);
            for layer in 0..world.config.n_layers {
                let injection = Injection { layer, ..Injection::new(Anchor::new(vec![own.anchor]), vector.clone()) };
                let stream = world.model.forward(&tokens, Some(&injection));
                let expected = values(&world.model.logits(stream.narrow(1, own.ids.len() - 1, 1).squeeze_dim(1)));
                let connection = ConnectionOptions { site, layer, ..Default::default() };
                let (logits, _) = answered(&world, &own, Source::Transform, connection);
                assert_close(&logits, &expected, 2e-4, &format!("{site:?} after layer {layer}"));
                assert_eq!(world.connection(&own, connection).layer, chosen, "{site:?}");
                assert!(seen.iter().all(|other| *other != logits), "{site:?} after layer {layer} has no effect");
                seen.push(logits);
            }
        }
    }
}

#[test]
fn a_shuffled_source_is_the_transform_of_the_other_prompts_activations() {
    let world = world(Family::Qwen2);
    let (own, other) = (prompt(21, 1, 52), prompt(13, 1, 53));
    let (layer, vector) = world.vector(&world.matrix.apply(&world.captured(&other)), &own);
    let (tokens, logits) = world.two_full_passes(&own, vector, 8);
    let mut decoding = world.start(&[&own], &[&other], options(Source::Shuffled));
    assert_close(&values(&decoding.logits()), &logits, 2e-4, "logits");
    assert_eq!(read_sync(decoding.connections()).unwrap().unwrap()[0].layer, layer);
    assert_eq!(read_sync(decoding.finish()).unwrap(), [tokens]);

    let own_pair = world.start(&[&own], &[&own], options(Source::Shuffled));
    let transform = world.start(&[&own], &[], options(Source::Transform));
    assert_eq!(read_sync(own_pair.finish()).unwrap(), read_sync(transform.finish()).unwrap());
}

#[test]
fn what_is_drawn_differs_between_the_prompts_of_a_batch() {
    let world = world(Family::Llama);
    let prompts: Vec<Prompt> = (0..24).map(|at| prompt(12, 1, 400 + at)).collect();
    let own: Vec<&Prompt> = prompts.iter().collect();
    let layers = |pool, choice| {
        let connection = ConnectionOptions { pool, choice, seed: 2, ..Default::default() };
        let decoding = world.start(&own, &[], GenerateOptions { connection, ..options(Source::Transform) });
        read_sync(decoding.connections()).unwrap().unwrap().iter().map(|row| row.layer).collect::<Vec<_>>()
    };
    for layer in 0..3 {
        assert!(layers(Pool::Random, Choice::Argmax).contains(&layer), "no prompt draws layer {layer}");
    }
    let argmax = layers(Pool::DecisionMaker, Choice::Argmax);
    assert_ne!(layers(Pool::DecisionMaker, Choice::Gumbel), argmax, "noise never changes a choice");
}

#[test]
fn the_stop_rule_takes_the_templates_ids_or_the_configurations_or_both() {
    let mut config = config(Family::Llama, false);
    config.eos_token_ids = vec![7, 8];
    let ids = |stop: Stop| stop.ids(&[3], &config);
    assert_eq!(ids(Stop::Template), [3]);
    assert_eq!(ids(Stop::Config), [7, 8]);
    assert_eq!(ids(Stop::Both), [3, 7, 8]);
}

#[test]
fn a_layer_that_the_model_does_not_have_is_refused_in_words() {
    let too_high = ConnectionOptions { layer: 3, ..Default::default() };
    let error = too_high.check(3).unwrap_err().to_string();
    assert!(error.contains("after layer 3") && error.contains("layers 0 to 2"), "{error}");
    let error = ConnectionOptions { pool: Pool::Fixed(5), ..Default::default() }.check(3).unwrap_err().to_string();
    assert!(error.contains("fixed(5)") && error.contains("layers 0 to 2"), "{error}");
    ConnectionOptions { layer: 2, ..Default::default() }.check(3).unwrap();
}

#[test]
fn an_injection_adds_replaces_or_interpolates_the_feed_forward_output_of_its_block() {
    for family in FAMILIES {
        let config = config(family, false);
        let model = model(&config, 9);
        let rows = [random_ids(15, 0..256, 60), random_ids(15, 0..256, 61)];
        let tokens = TokenBatch::new(&rows, &model.device());
        let anchor = Anchor::new(vec![14, 6]);
        let own = model.activations(&tokens, &anchor, Site::FeedForward).0;
        let vector = own.clone().narrow(1, 0, 1).squeeze_dim::<2>(1).flip([0]) * 1.5;
        let vanilla = values(&model.forward(&tokens, None));
        for layer in 0..config.n_layers {
            let fed: Tensor<2> = own.clone().narrow(1, layer, 1).squeeze_dim(1);
            let run = |vector: &Tensor<2>, write| {
                let injection = Injection { anchor: anchor.clone(), vector: vector.clone(), layer, write };
                values(&model.forward(&tokens, Some(&injection)))
            };
            // By hand: the blocks up to this one, an addition to the stream, the blocks after it.
            let by_hand = |change: Tensor<2>| {
                let decoder = &model.model;
                let embedded = decoder.embed(tokens.ids.clone());
                let stream = decoder.forward(embedded, 0..layer + 1, None, Taps::default());
                let stream = anchor.add(stream, change);
                values(&decoder.forward(stream, layer + 1..config.n_layers, None, Taps::default()))
            };
            let what = format!("{family:?} layer {layer}");
            let added = run(&vector, Write::Add);
            assert_close(&added, &by_hand(vector.clone()), 1e-5, &what);
            let replaced = run(&vector, Write::Replace);
            assert_close(&replaced, &by_hand(vector.clone() - fed.clone()), 1e-4, &what);
            let between = run(&vector, Write::Interpolate(0.25));
            assert_close(&between, &by_hand((vector.clone() - fed.clone()) * 0.25), 1e-4, &what);
            assert_close(&run(&fed, Write::Replace), &vanilla, 1e-4, &format!("{what}: its own value"));
            assert!(added != vanilla && replaced != added && between != replaced, "{what}: no effect");
        }
    }
}

#[test]
fn settings_from_before_these_switches_still_load_and_the_recipe_names_them() {
    let old = r#"{"e":"content_mean","pool":"decision_maker","choice":"argmax","alpha":1.0,"seed":0}"#;
    assert_eq!(serde_json::from_str::<ConnectionOptions>(old).unwrap(), ConnectionOptions::default());
    assert_eq!(serde_json::from_str::<Site>("\"feed_forward\"").unwrap(), Site::FeedForward);

    let set = ["cc.site=ffn", "cc.layer=0", "cc.two_pass=reuse", "cc.stop=template"].map(String::from);
    assert_eq!(Recipe::load(Preset::Default, None, &set).unwrap(), Recipe::default());
    let set = ["cc.site=block", "cc.layer=2", "cc.two_pass=full", "cc.stop=both"].map(String::from);
    let recipe = Recipe::load(Preset::Default, None, &set).unwrap();
    let expected = ConnectionOptions { site: Site::Block, layer: 2, two_pass: TwoPass::Full, ..Default::default() };
    assert_eq!((recipe.cc.connection(), recipe.cc.stop), (expected, Stop::Both));
    let written = serde_json::to_string(&recipe.cc.connection()).unwrap();
    assert_eq!(serde_json::from_str::<ConnectionOptions>(&written).unwrap(), expected);
}
