//! The loop over the cells: what is done is passed over, what is not is measured and written whole.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::HumanDuration;

use super::cell::Measured;
use super::matrix::Group;
use super::measure::Place;
use super::plan::{Plan, Planned};
use super::report;
use crate::run_folder;

/// Measures what is missing of a plan, or of one group of it. False when a person stopped it; the same call goes on.
///
/// # Errors
/// Whatever a cell stumbles over; finished cells stay.
pub fn run(place: &Place, plan: &Plan, only: Option<Group>) -> Result<bool> {
    let cells = place.out.join("cells");
    std::fs::create_dir_all(&cells).with_context(|| format!("cannot create {}", cells.display()))?;
    run_folder::sweep(place.out)?;
    run_folder::sweep(&cells)?;
    run_folder::sweep(&place.answers())?;
    plan.write(place.out)?;
    let wanted: Vec<&Planned> =
        plan.cells.iter().filter(|planned| only.is_none_or(|group| planned.cell.group == group)).collect();
    let (mut measured, started) = (0, Instant::now());
    for (at, planned) in wanted.iter().enumerate() {
        if Measured::read(&cells, &planned.id)?.is_some() {
            continue;
        }
        let rest = wanted[at..].iter().filter(|planned| !Measured::path(&cells, &planned.id).exists()).count();
        let left = match measured {
            0 => String::new(),
            done => format!(", {} left", HumanDuration(started.elapsed() / done * rest as u32)),
        };
        println!("cell {} of {}{left}: {}", at + 1, wanted.len(), planned.cell.name());
        let began = Instant::now();
        let Some(found) = place.measure(planned)? else {
            report::write(place.out)?;
            println!("stopped; the same command goes on from there");
            return Ok(false);
        };
        found.write(&cells)?;
        // The cell holds all that is asked of it; its checkpoints are the largest thing here.
        let work = place.work(&planned.id);
        if work.exists() {
            std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
        }
        measured += 1;
        println!("  {} in {}", report::headline(&found), HumanDuration(Duration::from_secs(began.elapsed().as_secs())));
    }
    // Empty by now, unless another plan's cells wait there.
    std::fs::remove_dir(place.out.join("work")).ok();
    report::write(place.out)?;
    println!("{} holds what {} cells say", place.out.join(report::RESULTS_FILE).display(), wanted.len());
    Ok(true)
}
