//! The learning rate of a step: linear warm-up, then half a cosine to zero.
//!
//! The same numbers as `get_cosine_schedule_with_warmup` of Hugging Face transformers.

/// The learning rate of step `step`, counted from 0, out of `total`.
///
/// The very first step has rate 0 if there is any warm-up, as in the original.
pub fn lr(step: usize, total: usize, peak: f64, warmup_ratio: f64) -> f64 {
    let warmup = (total as f64 * warmup_ratio).ceil() as usize;
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    peak * (0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()))
}
