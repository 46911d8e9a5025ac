//! What each language never sees: seeded hashes choose, per kind of fact, those that are held out, and the order in which
//! units are drawn. A hash, not a generator's stream, so that adding a language or a task leaves the choices of the others
//! alone. Knows nothing of text.

use super::family::Unit;
use super::{ENGLISH, LANGUAGES};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One key in `HELD_SHARE` is held out, and of those one in `HELD_SHARE` goes to validation.
const HELD_SHARE: usize = 4;

/// Keys of the held-out units, per language. English holds out none.
pub struct HeldOut {
    pub test: Vec<BTreeSet<String>>,
    pub validation: Vec<BTreeSet<String>>,
}

impl HeldOut {
    pub fn choose(units: &[Unit], seed: u64) -> Self {
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for unit in units {
            groups.entry(unit.key.split('/').next().unwrap_or_default()).or_default().insert(&unit.key);
        }
        let none = vec![BTreeSet::new(); LANGUAGES.len()];
        let mut held = HeldOut { test: none.clone(), validation: none };
        for keys in groups.values() {
            for (lang, language) in LANGUAGES.iter().enumerate().filter(|&(lang, _)| lang != ENGLISH) {
                let mut keys: Vec<_> = keys.iter().collect();
                keys.sort_by_key(|key| hash(seed, &[language.code, key, "held"]));
                keys.truncate(keys.len().div_ceil(HELD_SHARE));
                let validation = keys.len().div_ceil(HELD_SHARE);
                held.validation[lang].extend(keys[..validation].iter().map(|key| key.to_string()));
                held.test[lang].extend(keys[validation..].iter().map(|key| key.to_string()));
            }
        }
        held
    }

    pub fn contains(&self, lang: usize, unit: &Unit) -> bool {
        self.test[lang].contains(&unit.key) || self.validation[lang].contains(&unit.key)
    }
}

/// Units in a drawn order in which the kinds take turns, their order drawn too; a key comes again only when every other has
/// come as often.
pub fn balanced<'w>(units: impl Iterator<Item = &'w Unit>, seed: u64, salt: &str) -> Vec<&'w Unit> {
    let mut kinds: BTreeMap<&str, Vec<&Unit>> = BTreeMap::new();
    for unit in units {
        kinds.entry(unit.kind).or_default().push(unit);
    }
    let mut order = vec![];
    for units in kinds.values_mut() {
        units.sort_by_key(|unit| hash(seed, &[salt, &unit.id]));
        let mut times: HashMap<&str, usize> = HashMap::new();
        let mut ranked = units.iter().map(|unit| {
            let times = times.entry(&unit.key).or_default();
            *times += 1;
            (*times, *unit)
        });
        let mut ranked: Vec<_> = ranked.by_ref().collect();
        ranked.sort_by_key(|&(times, _)| times);
        order.extend(ranked.into_iter().enumerate().map(|(turn, (times, unit))| (times, turn, unit)));
    }
    order.sort_by_key(|&(times, turn, unit)| (times, turn, hash(seed, &[salt, unit.kind])));
    order.into_iter().map(|(.., unit)| unit).collect()
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
