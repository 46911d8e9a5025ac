//! The Transform Matrix (Eq. 6-8) and answers in all three modes.

use anyhow::Result;
use burn::tensor::activation::softmax;
use burn::tensor::read_sync;
use cctuning::anchor::Anchor;
use cctuning::chat::Prompt;
use cctuning::decision_maker::Selection;
use cctuning::generate::{Connection, ConnectionOptions, Decoding, GenerateOptions, Source};
use cctuning::least_squares::{Fit, FitReport, Moments};
use cctuning::model::{InputEmbedding, TokenBatch};
use cctuning::sampling::Sampling;
use cctuning::tap::Site;
use cctuning::transform_matrix::{FoldedTransform, TransformMatrix};

use super::fixture::{Fixture, Kind, Twins, layers_first, values};
use super::report::{CAPTURE, DECISION, LOGITS, Report, Within};
use crate::fit::Reading;

/// `wt.*`, from the stored rows and from our own
pub fn transform_matrix(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let expected = &fixture.expected;
    let d_model = fixture.config.d_model;
    let w = expected.get("wt.W_f64")?;
    let fitted = |a: &[f64], b: &[f64]| -> Result<Vec<f64>> {
        let mut sums = Moments::new(d_model);
        sums.add(a, b)?;
        let Fit { matrix, .. } = sums.fit(0.0, false)?;
        Ok(matrix)
    };
    let reading = Reading { model: &fixture.model, site: Site::FeedForward, token_budget: 0 };
    let from_stored = fitted(expected.get("wt.A")?, expected.get("wt.B")?)?;
    report.compare(expected, "wt.W_f64", &from_stored, Within::RelativeL2(1e-9));
    report.compare(expected, "wt.W", &from_stored, Within::RelativeL2(1e-6));
    let numbers = |rows: Vec<f32>| rows.into_iter().map(f64::from).collect::<Vec<f64>>();
    let rows = |pairs: &[Twins]| {
        let side =
            |side: fn(&Twins) -> &Prompt| numbers(reading.activations(&pairs.iter().map(side).collect::<Vec<_>>()));
        (side(|pair| &pair.0), side(|pair| &pair.1))
    };
    let (own_a, own_b) = rows(&fixture.pairs);
    let own = fitted(&own_a, &own_b)?;
    report.compare_with("wt.W from own rows", &own, expected.get("wt.W")?, Within::RelativeL2(5e-5));

    for (set, suffix, pairs) in [("in", "", &fixture.pairs), ("holdout", "_holdout", &fixture.holdout)] {
        let (a, b) = (format!("wt.A{suffix}"), format!("wt.B{suffix}"));
        let (own_a, own_b) = rows(pairs);
        report.compare(expected, &a, &own_a, CAPTURE);
        report.compare(expected, &b, &own_b, CAPTURE);
        judged(fixture, report, &format!("wt.{set}"), "", (expected.get(&a)?, expected.get(&b)?, w), 1e-9)?;
        judged(fixture, report, &format!("wt.{set}"), " from own rows", (&own_a, &own_b, &own), 2e-5)?;
    }
    Ok(())
}

/// Error and R² of a matrix over rows that are ordered by pair, then layer.
fn judged(
    fixture: &Fixture,
    report: &mut Report,
    set: &str,
    from: &str,
    (a, b, w): (&[f64], &[f64], &[f64]),
    bound: f64,
) -> Result<()> {
    let (d_model, n_layers) = (fixture.config.d_model, fixture.config.n_layers);
    let judge = |keep: &dyn Fn(usize) -> bool| -> Result<FitReport> {
        let kept = |rows: &[f64]| -> Vec<f64> {
            rows.chunks(d_model).enumerate().filter(|(row, _)| keep(*row)).flat_map(|(_, row)| row).copied().collect()
        };
        let mut sums = Moments::new(d_model);
        sums.add(&kept(a), &kept(b))?;
        Ok(sums.judge(w, None))
    };
    let all = judge(&|_| true)?;
    let layers =
        (0..n_layers).map(|layer| Ok(judge(&|row| row % n_layers == layer)?.mse)).collect::<Result<Vec<f64>>>()?;
    let metrics =
        [("mse", &[all.mse][..]), ("r2", &[all.r2]), ("r2_uncentered", &[all.r2_uncentered]), ("layer_mse", &layers)];
    for (name, found) in metrics {
        let stored = fixture.expected.get(&format!("{set}.{name}"))?;
        // R2 far below zero, as it may be on other pairs, is a large number.
        let scale = stored.iter().fold(1.0, |scale: f64, number| scale.max(number.abs()));
        report.compare_with(&format!("{set}.{name}{from}"), found, stored, Within::Absolute(bound * scale));
    }
    Ok(())
}

/// `infer.*`: one prompt at a time, greedy, end tokens ignored
pub fn answers(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let (model, expected) = (&fixture.model, &fixture.expected);
    let transform = match fixture.case.kind {
        Kind::Vanilla => None,
        Kind::Full => {
            let w = expected.get("wt.W")?.iter().map(|&value| value as f32).collect();
            Some(TransformMatrix::from_values(w, None, fixture.config.d_model, &fixture.device)?)
        }
    };
    let folded = transform.as_ref().map(|transform| transform.fold(model.model.decision_maker()));
    for (mode, source) in [("vanilla", Source::None), ("parallel", Source::Parallel), ("wt", Source::Transform)] {
        if source != Source::None && fixture.case.kind == Kind::Vanilla {
            continue;
        }
        let options = GenerateOptions {
            max_new_tokens: fixture.max_new_tokens,
            sampling: Sampling::Greedy,
            source,
            connection: ConnectionOptions { e: InputEmbedding::Anchor, ..ConnectionOptions::default() },
            stop_ids: Vec::new(),
        };
        let (mut logits, mut tokens, mut reported) = (Vec::new(), Vec::new(), Vec::new());
        for (prompt, english) in &fixture.prompts {
            let mut decoding =
                Decoding::start(model, &fixture.config, folded.as_ref(), &[prompt], &[english], options.clone())?;
            logits.extend(values(decoding.logits()));
            reported.extend(read_sync(decoding.connections())?.into_iter().flatten());
            tokens.extend(read_sync(decoding.finish())?.concat().into_iter().map(f64::from));
        }
        report.compare(expected, &format!("infer.{mode}.first_logits"), &logits, LOGITS);
        report.compare(expected, &format!("infer.{mode}.tokens"), &tokens, Within::Equal);
        if source != Source::None {
            connections(fixture, report, mode, &reported)?;
        }
    }
    if let (Some(transform), Some(folded)) = (&transform, &folded) {
        decisions(fixture, report, transform, folded)?;
    }
    Ok(())
}

/// What an answer says of its own connection.
fn connections(fixture: &Fixture, report: &mut Report, mode: &str, reported: &[Connection]) -> Result<()> {
    let name = |quantity: &str| format!("infer.{mode}.{quantity}");
    let layers: Vec<f64> = reported.iter().map(|connection| connection.layer as f64).collect();
    report.compare(&fixture.expected, &name("choice"), &layers, Within::Equal);
    let found: Vec<f64> = reported.iter().flat_map(|c| &c.probabilities).map(|&p| f64::from(p)).collect();
    let stored = values(softmax(fixture.input(&name("H"))?, 1));
    report.compare_with(&name("H as reported probabilities"), &found, &stored, DECISION);
    let found: Vec<f64> = reported.iter().map(|connection| f64::from(connection.vector_norm)).collect();
    let stored = values(fixture.input(&name("v"))?.square().sum_dim(1).sqrt());
    report.compare_with(&name("v as reported length"), &found, &stored, CAPTURE);
    Ok(())
}

/// `G`, `H` and `v` of the prompts, which an answer keeps to itself.
fn decisions(
    fixture: &Fixture,
    report: &mut Report,
    transform: &TransformMatrix,
    folded: &FoldedTransform,
) -> Result<()> {
    let (model, expected) = (&fixture.model, &fixture.expected);
    let decision_maker = model.model.decision_maker();
    let side = |side: fn(&Twins) -> &Prompt| {
        let prompts: Vec<&Prompt> = fixture.prompts.iter().map(side).collect();
        let tokens = TokenBatch::new(&prompts.iter().map(|prompt| &prompt.ids).collect::<Vec<_>>(), &fixture.device);
        (tokens, Anchor::new(prompts.iter().map(|prompt| prompt.anchor).collect()))
    };
    let ((tokens, anchor), (english, english_anchor)) = (side(|twins| &twins.0), side(|twins| &twins.1));
    let e = model.input_embedding(InputEmbedding::Anchor, &tokens, &anchor, &[]);

    let g = model.activations(&english, &english_anchor, Site::FeedForward);
    let parallel = Selection::Argmax.decide(decision_maker.logits(&g, e.clone()));
    let v = g.mix(parallel.weights.clone());
    let own = model.activations(&tokens, &anchor, Site::FeedForward);
    let wt = Selection::Argmax.decide(folded.logits(&own, e, decision_maker));
    let wt_v = folded.vector(&own, wt.weights.clone());
    for (mode, g, decision, v) in [("parallel", g, parallel, v), ("wt", transform.apply(&own), wt, wt_v)] {
        let name = |quantity: &str| format!("infer.{mode}.{quantity}");
        report.compare(expected, &name("G"), &layers_first(g.0), CAPTURE);
        report.compare(expected, &name("H"), &values(decision.logits), DECISION);
        report.compare(expected, &name("v"), &values(v), CAPTURE);
    }
    Ok(())
}
