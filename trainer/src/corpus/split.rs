//! What each language never sees: seeded hashes choose, per task, the facts that are held out, and
//! the order in which facts are drawn. A hash, not a generator's stream, so that adding a language
//! or a task leaves the choices of the others alone. Knows nothing of text.

use super::world::{Fact, World};
use super::{ENGLISH, LANGUAGES};
use std::collections::{BTreeSet, HashSet};

/// One fact in `HELD_SHARE` is held out, and of those one in `HELD_SHARE` goes to validation.
const HELD_SHARE: usize = 4;

/// Keys of the held-out facts, per language.
pub struct HeldOut {
    pub test: Vec<BTreeSet<String>>,
    pub validation: Vec<BTreeSet<String>>,
}

impl HeldOut {
    pub fn choose(world: &World, seed: u64) -> Self {
        let mut held = HeldOut {
            test: vec![BTreeSet::new(); LANGUAGES.len()],
            validation: vec![BTreeSet::new(); LANGUAGES.len()],
        };
        for task in world.tasks.iter().filter(|task| task.key == task.name) {
            let keys: BTreeSet<_> = task.facts.iter().map(|fact| fact.key.as_str()).collect();
            for (lang, language) in LANGUAGES.iter().enumerate().filter(|&(lang, _)| lang != ENGLISH) {
                let mut keys: Vec<_> = keys.iter().collect();
                keys.sort_by_key(|key| hash(seed, &[language.code, key, "held"]));
                keys.truncate(keys.len() / HELD_SHARE);
                let validation = keys.len() / HELD_SHARE;
                held.validation[lang].extend(keys[..validation].iter().map(|key| key.to_string()));
                held.test[lang].extend(keys[validation..].iter().map(|key| key.to_string()));
            }
        }
        held
    }

    pub fn contains(&self, lang: usize, fact: &Fact) -> bool {
        self.test[lang].contains(&fact.key) || self.validation[lang].contains(&fact.key)
    }
}

/// The facts that `keep` admits, the tasks taking turns, each key at most once.
pub fn balanced<'w>(world: &'w World, seed: u64, salt: &str, keep: &dyn Fn(&Fact) -> bool) -> Vec<&'w Fact> {
    let mut queues: Vec<Vec<&Fact>> =
        world.tasks.iter().map(|task| task.facts.iter().filter(|fact| keep(fact)).collect()).collect();
    for queue in &mut queues {
        queue.sort_by_key(|fact| std::cmp::Reverse(hash(seed, &[salt, &fact.id])));
    }
    let (mut taken, mut order) = (HashSet::new(), vec![]);
    while queues.iter().any(|queue| !queue.is_empty()) {
        for queue in &mut queues {
            while let Some(fact) = queue.pop() {
                if taken.insert(&fact.key) {
                    order.push(fact);
                    break;
                }
            }
        }
    }
    order
}

/// FNV-1a over the seed and the parts, then a finalizer: the same number on every machine.
pub fn hash(seed: u64, parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let mut state =
        seed.to_le_bytes().into_iter().chain(bytes).fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
