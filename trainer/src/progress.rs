//! What a person watches while a run goes on: step, loss, tokens per second, time left.
//!
//! A bar on a terminal; elsewhere plain lines now and then, so that a log file stays readable.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The progress of one loop of `total` steps.
pub struct Progress {
    label: String,
    total: usize,
    /// Steps done before this process began.
    resumed_at: usize,
    tokens: usize,
    started: Instant,
    printed: Instant,
    /// Only on a terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `done` steps of `total` lie behind already.
    pub fn new(label: &str, total: usize, done: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64).with_position(done as u64);
            // A template that does not parse costs the looks of the bar, not the run.
            ProgressStyle::with_template("{bar:24} {msg}").map(|style| bar.set_style(style)).ok();
            bar
        });
        let now = Instant::now();
        Self { label: label.into(), total, resumed_at: done, tokens: 0, started: now, printed: now, bar }
    }

    /// Reports that `done` steps are done, the last with this loss over this many tokens.
    pub fn step(&mut self, done: usize, loss: f32, tokens: usize) {
        self.tokens += tokens;
        let elapsed_s = self.started.elapsed().as_secs_f64().max(1e-9);
        let per_step_s = elapsed_s / done.saturating_sub(self.resumed_at).max(1) as f64;
        let left = Duration::from_secs_f64(per_step_s * self.total.saturating_sub(done) as f64);
        let line = format!(
            "{} step {done}/{}  loss {loss:.4}  {:.0} tokens/s  ETA {}",
            self.label,
            self.total,
            self.tokens as f64 / elapsed_s,
            HumanDuration(left)
        );
        self.show(done, line);
    }

    /// Reports that `done` of what is counted are done.
    pub fn count(&mut self, done: usize, what: &str) {
        let per_item_s = self.started.elapsed().as_secs_f64() / done.saturating_sub(self.resumed_at).max(1) as f64;
        let left = Duration::from_secs_f64(per_item_s * self.total.saturating_sub(done) as f64);
        self.show(done, format!("{} {done}/{} {what}  ETA {}", self.label, self.total, HumanDuration(left)));
    }

    /// Reports that `done` bytes are done.
    pub fn bytes(&mut self, done: usize) {
        let gb = |bytes: usize| bytes as f64 / 1e9;
        let per_second = gb(done) / self.started.elapsed().as_secs_f64().max(1e-9);
        let line = format!("{} {:.2} of {:.2} GB  {per_second:.2} GB/s", self.label, gb(done), gb(self.total));
        self.show(done, line);
    }

    /// Reports that `done` are done of what nobody has counted.
    pub fn seen(&mut self, done: usize, what: &str) {
        self.total = done + 1;
        let per_second = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.show(done, format!("{} {done} {what}  {per_second:.0}/s", self.label));
    }

    fn show(&mut self, done: usize, line: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done as u64);
                bar.set_message(line);
            }
            None if done >= self.total || self.printed.elapsed() >= PLAIN_EVERY => {
                eprintln!("{line}");
                self.printed = Instant::now();
            }
            None => {}
        }
    }

    /// Prints a line above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
