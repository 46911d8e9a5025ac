//! Ctrl-C and SIGTERM: the first asks the loop to finish its step, save and leave; the second ends the process at once.
//! In a conversation it stops the answer that runs, and ends the process when none does.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use anyhow::{Context, Result};

/// The exit status after an interrupt, as shells expect it.
pub const EXIT_CODE: u8 = 130;

/// Whether somebody asked the run to stop. Clones see the same flag.
#[derive(Clone, Default)]
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
            eprintln!("\nstopping after this step; once more stops at once and loses it");
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(Self(requested))
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

const WAITING: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPED: u8 = 2;

/// For a conversation.
pub struct AnswerInterrupt(Arc<AtomicU8>);

/// An answer that runs; dropped when it has ended.
pub struct Answering<'i>(&'i AtomicU8);

impl AnswerInterrupt {
    /// Takes over the signals; once per process.
    ///
    /// # Errors
    /// When the operating system refuses, or a handler is installed already.
    pub fn install() -> Result<Self> {
        let state = Arc::new(AtomicU8::new(WAITING));
        let seen = Arc::clone(&state);
        ctrlc::set_handler(move || {
            if seen.compare_exchange(ANSWERING, STOPPED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                process::exit(i32::from(EXIT_CODE));
            }
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(Self(state))
    }

    /// From here on a signal stops this answer only.
    pub fn answering(&self) -> Answering<'_> {
        self.0.store(ANSWERING, Ordering::SeqCst);
        Answering(&self.0)
    }
}

impl Answering<'_> {
    pub fn stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst) == STOPPED
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.store(WAITING, Ordering::SeqCst);
    }
}
