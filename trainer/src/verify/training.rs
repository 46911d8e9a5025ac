//! Gradients of one step in both modes, and five AdamW steps.

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::Tensor;
use cctuning::checkpoint::{Checkpoint, Storage, save};
use cctuning::decision_maker::Selection;
use cctuning::model::CcModel;

use super::fixture::{Fixture, choices, values};
use super::passes::decide;
use super::report::{FINAL, GRADIENT, GRADIENT_NORM, Report, STEPS_LOSS, STEPS_NORM, Within};
use crate::optim::{AdamW, Gradients};
use crate::precision::Precision;
use crate::recipe::{Cc, EnglishGrad, Optim};
use crate::step::{Economy, Method, StepResult, step_with_noise};

/// Optimizer steps of a run; there is one evaluation more.
const STEPS: usize = 5;
/// Padded tokens of a micro-batch: few enough that the rows are split, whose gradients must add up.
const ECONOMY: Economy = Economy { micro_tokens: 64, recompute: false, precision: Precision::F32 };
const LR: f64 = 1e-3;

/// `grad_vanilla.*`, `traj.vanilla.*` and `traj.vanilla_clip2.*`
pub fn vanilla(fixture: &Fixture, report: &mut Report) -> Result<()> {
    if fixture.promises("grad_vanilla.l2") {
        let noise = Tensor::zeros([fixture.samples.len(), fixture.config.n_layers], &fixture.device);
        let gradients = one_step(fixture, &fixture.model.clone().train(), Method::Sft, noise).gradients;
        let norms = norms(&fixture.case.param_names, |name| Ok(gradient(&gradients, fixture, name)))?;
        report.compare(&fixture.expected, "grad_vanilla.l2", &norms, GRADIENT_NORM);
    }
    if fixture.promises("traj.vanilla.loss") {
        steps(fixture, report, "traj.vanilla", Method::Sft, 1.0)?;
    }
    if fixture.promises("traj.vanilla_clip2.loss") {
        let clip = fixture.case.clip2.context("case.json: `clip2` is missing beside traj.vanilla_clip2")?;
        steps(fixture, report, "traj.vanilla_clip2", Method::Sft, clip)?;
    }
    Ok(())
}

/// `grad_detached.*`, `grad_full.*` and `traj.cc.*`
pub fn connected(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let model = fixture.model.clone().train();
    ensure!(!fixture.case.gradient_tensors.is_empty(), "case.json: `gradient_tensors` names no tensor");
    for (mode, english_grad) in [("grad_detached", EnglishGrad::Detach), ("grad_full", EnglishGrad::Full)] {
        let cc = Cc { english_grad, ..fixture.cc() };
        let result = one_step(fixture, &model, Method::Cc(&cc), fixture.input("dm.g")?);
        let gradient = |name: &str| gradient(&result.gradients, fixture, name);
        let norms = norms(&fixture.case.param_names, |name| Ok(gradient(name)))?;
        report.compare(&fixture.expected, &format!("{mode}.l2"), &norms, GRADIENT_NORM);
        for name in &fixture.case.gradient_tensors {
            report.compare(&fixture.expected, &format!("{mode}.{name}"), &gradient(name), GRADIENT);
        }
    }
    steps(fixture, report, "traj.cc", Method::Cc(&fixture.cc()), 1.0)
}

fn one_step(fixture: &Fixture, model: &CcModel, method: Method, noise: Tensor<2>) -> StepResult {
    step_with_noise(model, &fixture.batch(), method, ECONOMY, noise)
}

/// Five optimizer steps over the same batch, each with its own noise.
fn steps(fixture: &Fixture, report: &mut Report, run: &str, method: Method, clip: f64) -> Result<()> {
    let optim = Optim { clip, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, ..Optim::default() };
    let mut optimizer = AdamW::new(&optim, 1.0);
    let mut model = fixture.model.clone().train();
    let (mut losses, mut grad_norms, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
    let rows = fixture.samples.len();
    for at in 0..=STEPS {
        let noise = match method {
            Method::Sft | Method::Dft(_) => Tensor::zeros([rows, fixture.config.n_layers], &fixture.device),
            Method::Cc(cc) => {
                let noise = fixture.input("traj.noise")?;
                ensure!(noise.dims()[0] == (STEPS + 1) * rows, "`traj.noise`: expected noise for {} steps", STEPS + 1);
                let noise = noise.narrow(0, at * rows, rows);
                let selection = Selection::Gumbel { noise: noise.clone(), tau: 1.0 };
                chosen.extend(choices(decide(fixture, &model.valid(), cc, &selection).weights));
                noise
            }
        };
        let result = one_step(fixture, &model, method, noise);
        losses.push(result.loss);
        if at == STEPS {
            grad_norms.push(result.gradients.norm());
            break;
        }
        let stepped;
        (model, stepped) = optimizer.step(model, result.gradients, LR);
        grad_norms.push(stepped.grad_norm);
    }
    let expected = &fixture.expected;
    report.compare(expected, &format!("{run}.loss"), &losses, STEPS_LOSS);
    report.compare(expected, &format!("{run}.grad_norm"), &grad_norms, STEPS_NORM);
    if !chosen.is_empty() {
        report.compare(expected, "traj.choice", &chosen, Within::Equal);
    }
    // Of the second clipping only the course is told.
    if run != "traj.vanilla_clip2" && fixture.promises(&format!("{run}.final_l2")) {
        let bytes = save(&model.valid(), Storage::F32)?;
        let mut trained = Checkpoint::default();
        trained.add("the trained model", &bytes)?;
        let read = |name: &str| Ok(trained.read(name)?.1.into_iter().map(f64::from).collect::<Vec<f64>>());
        report.compare(expected, &format!("{run}.final_l2"), &norms(&fixture.case.param_names, read)?, FINAL);
        for name in ["model.source_select.weight", "model.norm.weight"] {
            let quantity = format!("{run}.final.{name}");
            // Vanilla training leaves the Decision Maker alone.
            if !(name.contains("source_select") && matches!(method, Method::Sft)) && fixture.promises(&quantity) {
                report.compare(expected, &quantity, &read(name)?, FINAL);
            }
        }
    }
    Ok(())
}

fn norms(names: &[String], read: impl Fn(&str) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    names.iter().map(|name| Ok(read(name)?.iter().map(|x| x * x).sum::<f64>().sqrt())).collect()
}

/// The gradient of one tensor as a checkpoint would store it; empty if training does not reach it.
fn gradient(gradients: &Gradients, fixture: &Fixture, name: &str) -> Vec<f64> {
    let Some(gradient) = gradients.get(name) else { return Vec::new() };
    let config = &fixture.config;
    let d_input = match name.rsplit('.').nth(1) {
        Some("q_proj" | "k_proj" | "v_proj" | "gate_proj" | "up_proj" | "lm_head") => config.d_model,
        Some("o_proj") => config.n_heads * config.head_dim,
        Some("down_proj") => config.d_ff,
        _ => return values(gradient),
    };
    if name.ends_with("bias") {
        return values(gradient);
    }
    let d_output = gradient.dims()[0] / d_input;
    values(gradient.reshape([d_input, d_output]).transpose())
}
