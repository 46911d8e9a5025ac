//! What the page knows, in parts: the values behind the client's signals.
//!
//! Must not know: the worker, how anything looks.

use crate::folder::Folder;
use leptos::prelude::*;
use web::protocol::{Connection, ConnectionSource, ExamplePrompt, FileSize, PaneReport};

/// The switch as the page opens.
pub const DEFAULT_CONNECTION: Connection = Connection { source: ConnectionSource::Transform, layer: None };

/// A file of the bundle on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct FileState {
    pub size: FileSize,
    /// Bytes that were on this computer already.
    pub kept: u64,
    /// Bytes that came over the network.
    pub fetched: u64,
    pub verified: bool,
    /// A wrong copy of it had to be fetched again.
    pub repaired: bool,
}

/// Where the models come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// The bundle beside the page.
    Own,
    /// Another address; the text is for people.
    Address(String),
    Folder(Folder),
}

/// What the worker is doing, in the order it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The worker's program is being fetched and compiled.
    Starting,
    /// The bundle is being fetched.
    Loading,
    /// The self-test runs.
    Testing,
    Ready,
    Answering,
    /// The worker has ended; only another one helps.
    Dead,
}

/// One pane's signals.
#[derive(Clone, Copy)]
pub struct PaneState {
    pub text: RwSignal<String>,
    pub tokens: RwSignal<usize>,
    pub report: RwSignal<Option<PaneReport>>,
    /// What a screen reader has been told: grows in steps, not in tokens.
    pub announced: RwSignal<String>,
}

impl PaneState {
    pub fn new() -> Self {
        PaneState {
            text: RwSignal::default(),
            tokens: RwSignal::default(),
            report: RwSignal::default(),
            announced: RwSignal::default(),
        }
    }

    pub fn clear(&self) {
        self.text.set(String::new());
        self.tokens.set(0);
        self.report.set(None);
        self.announced.set(String::new());
    }
}

/// The question that the panes answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub id: u32,
    pub connection: Connection,
    /// ISO 639-1, where it can be told.
    pub lang: Option<String>,
    /// The example of the bundle that it is.
    pub example: Option<ExamplePrompt>,
}
