//! Proves of the shipped corpus: nothing held out leaks, the tables are complete and in the right
//! script, every row has its English twin, the same seed gives the same rows, names agree with the shared tables, and the
//! shipped bundle asks what was held out.

mod bundle;
mod facts;
#[path = "../shared_data.rs"]
mod shared_data;
mod splits;
mod texts;

use std::sync::LazyLock;
use trainer::corpus::family::World;
use trainer::corpus::split::HeldOut;
use trainer::corpus::{BaseText, Corpus, Item, base_text, generate};

/// The shipped corpus.
pub const SEED: u64 = trainer::inputs::CORPUS_SEED;

pub fn corpus() -> &'static Corpus {
    static CORPUS: LazyLock<Corpus> = LazyLock::new(|| generate(SEED).expect("the shipped tables are sound"));
    &CORPUS
}

/// What its base model reads.
pub fn base() -> &'static [BaseText] {
    static BASE: LazyLock<Vec<BaseText>> =
        LazyLock::new(|| base_text(corpus(), SEED).expect("the shipped tables are sound"));
    &BASE
}

pub fn world() -> &'static World {
    static WORLD: LazyLock<World> = LazyLock::new(|| World::load().expect("the shipped tables are sound"));
    &WORLD
}

pub fn held() -> HeldOut {
    HeldOut::choose(&world().units, SEED)
}

/// Id, prompt and answer of every text of a language that training may see: base lines, fine-tuning rows and pairs.
pub fn seen_texts<'c>(corpus: &'c Corpus, code: &'c str) -> impl Iterator<Item = (&'c str, &'c str, &'c str)> {
    let base = base().iter().filter(move |row| row.lang() == code).map(|row| match row {
        BaseText::Sentence { text, .. } => ("", text.as_str(), ""),
        BaseText::Exchange(item) => (item.id.as_str(), item.instruction.as_str(), item.output.as_str()),
    });
    let rows = corpus.train.iter().chain(&corpus.pairs).filter(move |item| item.lang == code);
    base.chain(rows.map(|item| (item.id.as_str(), item.instruction.as_str(), item.output.as_str())))
}

pub fn all_items(corpus: &Corpus) -> impl Iterator<Item = &Item> {
    corpus.train.iter().chain(&corpus.validation).chain(&corpus.test).chain(&corpus.pairs)
}
