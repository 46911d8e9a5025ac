//! The log of a run: JSON lines, one clean sequence of steps however often the run was resumed.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::run_folder::write_file_atomically;

/// An open log; every entry is on its way to the disk when `write` returns.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log for a run that has `done` steps behind it; a fresh run has none and starts an empty log.
    ///
    /// Cuts the log before the first entry whose `step` is greater than `done`, or that a killed process left half written.
    pub fn open(path: &Path, done: usize) -> Result<Self> {
        let old = if done > 0 && path.exists() {
            fs::read(path).with_context(|| format!("cannot read the log {}", path.display()))?
        } else {
            Vec::new()
        };
        let keep: Vec<u8> = old
            .split_inclusive(|byte| *byte == b'\n')
            .take_while(|line| {
                let entry = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Value>(line).ok());
                entry.is_some_and(|entry| entry["step"].as_u64().is_none_or(|step| step <= done as u64))
            })
            .flatten()
            .copied()
            .collect();
        write_file_atomically(path, &keep)?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .with_context(|| format!("cannot open the log {}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends one entry; `entry` must serialize to an object, with a `step` if it belongs to one.
    pub fn write(&mut self, entry: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(entry).context("a log entry does not fit into JSON")?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("cannot write the log {}", self.path.display()))
    }
}
