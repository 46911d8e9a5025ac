//! What was compared, how far apart it was and how far apart it may be.

use core::fmt::{Display, Formatter};

use super::fixture::Expected;

/// How an error is measured, and its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Within {
    /// Largest absolute difference.
    Absolute(f64),
    /// Largest difference relative to the expected number.
    Relative(f64),
    /// Length of the difference relative to the length of what is expected.
    RelativeL2(f64),
    /// Numbers that differ at all, of which there may be none.
    Equal,
}

use Within::{Absolute, Equal, Relative, RelativeL2};

// Bounds for float32 on a CPU, from the description of the fixtures.
pub const LOGITS: Within = Absolute(1e-4);
pub const CAPTURE: Within = Absolute(5e-5);
pub const DECISION: Within = Absolute(2e-5);
pub const MEAN_LOSS: Within = Absolute(1e-5);
pub const SUM_LOSS: Within = Absolute(1e-4);
pub const GRADIENT_NORM: Within = Relative(2e-5);
pub const GRADIENT: Within = RelativeL2(5e-5);
pub const STEPS_LOSS: Within = Absolute(5e-5);
pub const STEPS_NORM: Within = Relative(2e-4);
pub const FINAL: Within = Absolute(5e-5);

/// One compared quantity.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name in expected.safetensors, and from what it was computed where there is a choice.
    pub quantity: String,
    pub error: f64,
    pub within: Within,
}

/// All comparisons of one folder.
#[derive(Default)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Within {
    fn bound(self) -> f64 {
        match self {
            Absolute(bound) | Relative(bound) | RelativeL2(bound) => bound,
            Equal => 0.0,
        }
    }

    fn error(self, found: &[f64], expected: &[f64]) -> f64 {
        if found.len() != expected.len() || found.is_empty() {
            return f64::INFINITY;
        }
        let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
        // `max` alone would pass over NaN.
        let largest = |worst: f64, error: f64| worst.max(if error.is_nan() { f64::INFINITY } else { error });
        match self {
            Absolute(_) => differences.fold(0.0, largest),
            Relative(_) => {
                let relative = |(error, expected): (f64, &f64)| if error == 0.0 { 0.0 } else { error / expected.abs() };
                differences.zip(expected).map(relative).fold(0.0, largest)
            }
            RelativeL2(_) => {
                let squares: f64 = differences.map(|error| error * error).sum();
                if squares == 0.0 { 0.0 } else { (squares / expected.iter().map(|x| x * x).sum::<f64>()).sqrt() }
            }
            Equal => differences.filter(|&error| error != 0.0).count() as f64,
        }
    }
}

impl Check {
    pub fn passed(&self) -> bool {
        self.error <= self.within.bound()
    }
}

impl Report {
    /// Compares with the expected tensor of the quantity's name. A folder without it does not agree.
    pub fn compare(&mut self, expected: &Expected, quantity: &str, found: &[f64], within: Within) {
        match expected.get(quantity) {
            Ok(stored) => self.compare_with(quantity, found, stored, within),
            Err(_) => {
                let quantity = format!("{quantity} is missing");
                self.checks.push(Check { quantity, error: f64::INFINITY, within });
            }
        }
    }

    /// Compares with given numbers.
    pub fn compare_with(&mut self, quantity: &str, found: &[f64], expected: &[f64], within: Within) {
        self.checks.push(Check { quantity: quantity.into(), error: within.error(found, expected), within });
    }

    /// Holds that nothing the folder expects was left out.
    pub fn all_read(&mut self, expected: &Expected) {
        let left: Vec<&str> = expected.unread().collect();
        let quantity = if left.is_empty() { "tensors left out".into() } else { format!("tensors left out: {left:?}") };
        self.checks.push(Check { quantity, error: left.len() as f64, within: Equal });
    }

    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed())
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut Formatter) -> core::fmt::Result {
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        let error = self.error;
        write!(f, "{verdict}  {:<52}", self.quantity)?;
        match self.within {
            Absolute(bound) => write!(f, "{error:>9.1e}  at most {bound:.0e} absolute"),
            Relative(bound) => write!(f, "{error:>9.1e}  at most {bound:.0e} relative"),
            RelativeL2(bound) => write!(f, "{error:>9.1e}  at most {bound:.0e} relative in L2"),
            Equal => write!(f, "{error:>9}  differ, none may"),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter) -> core::fmt::Result {
        for check in &self.checks {
            writeln!(f, "{check}")?;
        }
        let failed = self.failed().count();
        write!(f, "{} passed, {failed} failed", self.checks.len() - failed)
    }
}
