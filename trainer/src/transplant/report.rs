//! The tables of a transplant for people and for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::heat_map::heat_map;
use super::{Donor, Grid, Mode, Score, Transplants};
use crate::run_folder::write_file_atomically;

/// Writes text, JSON and one picture per mode.
pub fn write(result: &Transplants, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let json = format!("{}\n", serde_json::to_string_pretty(result)?);
    write_file_atomically(&out.join("transplant.json"), json.as_bytes())?;
    write_file_atomically(&out.join("transplant.txt"), text(result).as_bytes())?;
    for mode in Mode::ALL {
        let grids = of_mode(result, mode);
        if !grids.is_empty() {
            let picture = heat_map(result, &grids);
            write_file_atomically(&out.join(format!("transplant-{}.svg", mode.name())), picture.as_bytes())?;
        }
    }
    Ok(())
}

fn of_mode(result: &Transplants, mode: Mode) -> Vec<&Grid> {
    result.grids.iter().filter(|grid| grid.mode == mode).collect()
}

/// One line per grid: what its best cell does, and whether that is more than the controls do.
pub fn summary(result: &Transplants) -> String {
    let Transplants { prompts, asked, vanilla, .. } = result;
    let mut text = String::new();
    let cut = if prompts < asked { format!(" (stopped, of {asked})") } else { String::new() };
    let _ = writeln!(
        text,
        "{prompts} prompts{cut}; without a transplant: log-probability {:.3}, exact {:.1} %",
        vanilla.log_probability,
        100.0 * vanilla.exact
    );
    let _ = writeln!(
        text,
        "{:<12}{:<26}{:>12}{:>10}{:>10}{:>9}{:>15}",
        "mode", "from", "best cell", "log-prob", "gain", "exact", "any cell exact"
    );
    for grid in &result.grids {
        let (target, source, best) = best(grid);
        let _ = writeln!(
            text,
            "{:<12}{:<26}{:>12}{:>10.3}{:>+10.3}{:>7.1} %{:>13.1} %",
            grid.mode.name(),
            grid.donor.name(),
            format!("{} -> {}", source + 1, target + 1),
            best.log_probability,
            best.log_probability - vanilla.log_probability,
            100.0 * best.exact,
            100.0 * grid.any_exact
        );
    }
    text
}

/// Target, source and score of the cell with the largest log-probability.
pub fn best(grid: &Grid) -> (usize, usize, Score) {
    let cells = grid.cells.iter().enumerate();
    let cells =
        cells.flat_map(|(target, row)| row.iter().enumerate().map(move |(source, &cell)| (target, source, cell)));
    cells.max_by(|a, b| a.2.log_probability.total_cmp(&b.2.log_probability)).unwrap_or_default()
}

/// All tables: log-probability against that without a transplant, and exact answers; rows are target layers.
pub fn text(result: &Transplants) -> String {
    let mut text = format!(
        "XTransplant probe of {}\nf_target[last prompt token] <- f_source[last token of the other prompt]\n\n{}",
        result.model,
        summary(result)
    );
    for mode in Mode::ALL {
        for grid in of_mode(result, mode) {
            let how = match mode {
                Mode::Interpolate => format!("interpolate, share {}", result.share),
                _ => mode.name().to_string(),
            };
            let from = grid.donor.name();
            let gain = |cell: &Score| format!("{:+.2}", cell.log_probability - result.vanilla.log_probability);
            let exact = |cell: &Score| format!("{:.1}", 100.0 * cell.exact);
            table(&mut text, &format!("{how}, from {from}: gain in log-probability"), grid, &gain);
            table(&mut text, &format!("{how}, from {from}: exact answers, %"), grid, &exact);
        }
    }
    text
}

fn table(text: &mut String, title: &str, grid: &Grid, show: &dyn Fn(&Score) -> String) {
    let _ = write!(text, "\n{title}\ntarget\\source");
    for source in 0..grid.cells.len() {
        let _ = write!(text, "{:>8}", source + 1);
    }
    for (target, row) in grid.cells.iter().enumerate() {
        let _ = write!(text, "\n{:>13}", target + 1);
        for cell in row {
            let _ = write!(text, "{:>8}", show(cell));
        }
    }
    text.push('\n');
}

/// The panels of a picture in the order of [`Donor::ALL`].
pub fn in_order<'g>(grids: &[&'g Grid]) -> Vec<&'g Grid> {
    Donor::ALL.iter().filter_map(|donor| grids.iter().copied().find(|grid| grid.donor == *donor)).collect()
}
