//! A file as a stream of bytes, unzipped on the way. It knows nothing of what the bytes mean.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;

/// Read ahead of what is asked for.
const BUFFER: usize = 1 << 18;

/// The bytes of a text file.
pub struct Source {
    pub bytes: Box<dyn BufRead>,
    /// What a person reads after an error of the bytes.
    pub cure: &'static str,
    /// The name's extension before `.gz` or `.zst`, in lower case.
    pub extension: String,
}

/// Opens a file, a `.gz` (of any number of members) or a `.zst`.
///
/// # Errors
/// When there is no such file, or it cannot be read.
pub fn open(path: &Path) -> Result<Source> {
    let file = File::open(path).with_context(|| format!("cannot open the rows {}", path.display()))?;
    let extension =
        |path: &Path| path.extension().map(|found| found.to_string_lossy().to_lowercase()).unwrap_or_default();
    let inner = || extension(Path::new(path.file_stem().unwrap_or_default()));
    Ok(match extension(path).as_str() {
        "gz" => Source {
            bytes: Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))),
            cure: "; the gzip file is damaged or cut short, fetch it again",
            extension: inner(),
        },
        "zst" => Source {
            bytes: Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::new(file).context("zstd")?)),
            cure: "; the zstd file is damaged or cut short, fetch it again",
            extension: inner(),
        },
        other => {
            Source { bytes: Box::new(BufReader::with_capacity(BUFFER, file)), cure: "", extension: other.to_string() }
        }
    })
}
