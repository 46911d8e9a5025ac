//! A file in memory without being read: pages come when they are looked at, and go when they have been used.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use anyhow::{Context, Result};
use memmap2::Mmap;

/// A mapped file.
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(what)?;
        // SAFETY: the bytes are parsed as data, and a file that somebody cuts short meanwhile ends the process, no more.
        let map = unsafe { Mmap::map(&file) }.with_context(what)?;
        Ok(Self(map))
    }

    /// Gives the pages of some of the bytes back. They may be looked at again.
    pub fn release(&self, used: &[u8]) {
        #[cfg(unix)]
        {
            let start = used.as_ptr().addr().wrapping_sub(self.0.as_ptr().addr());
            if start < self.0.len() {
                // SAFETY: the mapping is of a file and is only read; a page that was given back is read again.
                let done =
                    unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, used.len()) };
                // A system that keeps the pages costs memory, not the answer.
                done.ok();
            }
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
