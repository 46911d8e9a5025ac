//! The learning rate of a step: linear warm-up, then what [`Schedule`] says.
//!
//! The same numbers as `get_cosine_schedule_with_warmup`, `get_linear_schedule_with_warmup` and
//! `get_constant_schedule_with_warmup` of Hugging Face transformers.

use crate::recipe::{Optim, Schedule};

/// The learning rate of step `step`, counted from 0, out of `total`.
///
/// The very first step has rate 0 if there is any warm-up, as in the original.
pub fn lr(step: usize, total: usize, optim: &Optim) -> f64 {
    let Optim { lr: peak, warmup_ratio, schedule, .. } = *optim;
    let warmup = (total as f64 * warmup_ratio).ceil() as usize;
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
    peak * match schedule {
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        Schedule::Linear => 1.0 - progress,
        Schedule::Constant => 1.0,
    }
}
