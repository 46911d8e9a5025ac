//! Ctrl-C and SIGTERM: the first asks the loop to finish its step, save and leave; the second ends the process at once.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};

/// The exit status after an interrupt, as shells expect it.
pub const EXIT_CODE: u8 = 130;

/// Whether somebody asked the run to stop. Clones see the same flag.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over the signals; once per process.
    ///
    /// # Errors
    /// When the operating system refuses, or a handler is installed already.
    pub fn install() -> Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&requested);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                process::exit(i32::from(EXIT_CODE));
            }
            eprintln!("\nstopping: this step is finished and saved first; once more stops at once and loses it");
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(Self(requested))
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
