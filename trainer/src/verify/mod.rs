//! The `verify` verb: our arithmetic against a folder of numbers that independent code computed.
//!
//! What is compared are the paths that training, fitting and answering take; nothing is computed a second way here.

mod fitting;
mod fixture;
mod passes;
mod report;
mod training;

use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::Device;

pub use report::{Check, Report, Within};

use fixture::{Fixture, Kind};

/// Checks a folder and prints one line per quantity.
///
/// # Errors
/// The folder cannot be read, or a quantity is off; the error names it.
pub fn verify(folder: &Path) -> Result<bool> {
    let (device, name) = crate::device::choose();
    println!("device: {name}");
    let report = check(folder, &device)?;
    println!("{report}");
    let failed: Vec<&str> = report.failed().map(|check| check.quantity.as_str()).collect();
    if !failed.is_empty() {
        bail!("{}: {} disagree with expected.safetensors", folder.display(), failed.join(", "));
    }
    Ok(true)
}

/// Compares every number that the folder holds with ours.
///
/// # Errors
/// The folder cannot be read, or lacks what the numbers are computed from.
pub fn check(folder: &Path, device: &Device) -> Result<Report> {
    let fixture = Fixture::load(folder, device)?;
    let mut report = Report::default();
    passes::batch(&fixture, &mut report);
    passes::vanilla(&fixture, &mut report)?;
    if fixture.case.kind == Kind::Full {
        passes::captures(&fixture, &mut report);
        passes::connected(&fixture, &mut report)?;
        training::connected(&fixture, &mut report)?;
        fitting::transform_matrix(&fixture, &mut report)?;
    }
    training::vanilla(&fixture, &mut report)?;
    fitting::answers(&fixture, &mut report)?;
    report.all_read(&fixture.expected);
    Ok(report)
}
