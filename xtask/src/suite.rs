//! `cargo xtask test`: the native tests, then the page, then the tests in real browsers, and one line that sums them up.

use crate::steps::{command, find_program, step, target_dir};
use crate::{packages, page};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// The native packages. The programs of `web` exist for browsers only, and the CUDA kernels are nothing a test without a
/// card could run.
const NATIVE: [&str; 6] = ["--release", "--locked", "--workspace", "--exclude", "web", "--no-default-features"];
/// What the page and its worker share, which is as native as anything.
const SHARED: [&str; 5] = ["--release", "--locked", "--package", "web", "--lib"];

/// Continuous integration ends a run after 90 minutes. Where the builds alone have taken this many seconds, the machine is
/// too slow for all browser tests, and the summing line says how many were skipped.
const SLOW_S: u64 = 50 * 60;
/// Tells the browser tests to leave all but the essential ones out.
pub const ESSENTIAL_ONLY: &str = "CCTUNING_ESSENTIAL_ONLY";

/// How many tests passed, failed and were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Runs everything and prints `N passed, N failed` as its last line.
pub fn run() -> Result<ExitCode> {
    let start = Instant::now();
    // First, so that a missing program is known before the long builds.
    packages::install_missing()?;
    // The page is built beside the native tests: each of the two has long stretches of a single thread.
    let native = std::thread::scope(|scope| {
        let page = scope.spawn(|| page::build(&["--quiet"]));
        let native = step("run the native tests", || Ok(cargo_test(&NATIVE)?.plus(cargo_test(&SHARED)?)))?;
        page.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok(native)
    })?;
    let slow = std::env::var_os("CI").is_some() && start.elapsed().as_secs() > SLOW_S;
    // Of the same packages, so that what was built above serves here too.
    let name = if slow { "run the essential browser tests: there is no time for all" } else { "run the browser tests" };
    let mut cargo = command("cargo");
    if slow {
        cargo.env(ESSENTIAL_ONLY, "1");
    }
    let browsers = step(name, || counted(cargo.arg("test").args(NATIVE).args(["--test", "browser"])))?;
    let total = native.plus(browsers);
    ensure!(total.passed + total.failed > 0, "no test was executed");
    let ignored = if total.ignored > 0 { format!(", {} skipped", total.ignored) } else { String::new() };
    println!("\n{} passed, {} failed{ignored}", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The Chromium of this machine.
pub fn chromium() -> Option<PathBuf> {
    find_program(&["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"])
}

/// The Firefox of this machine.
pub fn firefox() -> Option<PathBuf> {
    find_program(&["firefox-esr", "firefox"])
}

/// Where `cargo test` leaves the trainer.
pub fn trainer() -> PathBuf {
    target_dir().join("release").join(format!("trainer{}", std::env::consts::EXE_SUFFIX))
}

/// Runs `cargo test` with every test file, whatever fails.
fn cargo_test(arguments: &[&str]) -> Result<Count> {
    counted(command("cargo").args(["test", "--no-fail-fast"]).args(arguments))
}

/// Runs tests and counts what their closing lines say.
fn counted(cargo: &mut Command) -> Result<Count> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut count = Count::default();
    let output = child.stdout.take().context("cargo's output was not kept")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo prints")?;
        println!("{line}");
        count = count.plus(Count::from_line(&line));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    // A failure without a failed test is a build that broke, or a test program that died before its closing line.
    ensure!(
        status.success() || count.failed > 0,
        "`cargo test` ended with {status} before all tests had run; its last lines say why"
    );
    Ok(count)
}

impl Count {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; any other line counts nothing.
    fn from_line(line: &str) -> Count {
        let mut count = Count::default();
        let Some(result) = line.strip_prefix("test result: ") else {
            return count;
        };
        for part in result.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => count.passed = number.parse().unwrap_or(0),
                Some((number, "failed")) => count.failed = number.parse().unwrap_or(0),
                Some((number, "ignored")) => count.ignored = number.parse().unwrap_or(0),
                _ => {}
            }
        }
        count
    }

    fn plus(self, other: Count) -> Count {
        Count {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted_and_other_lines_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Count::from_line(line), Count { passed: 12, failed: 3, ignored: 1 });
        assert_eq!(Count::from_line("test a_name ... ok"), Count::default());
    }
}
