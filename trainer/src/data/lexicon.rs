//! Words and their English ones, learned from sentences that stand beside their English: each is the other's best by Dice's
//! coefficient, and nothing else is as good. It knows no rows.

use std::collections::{HashMap, HashSet};

/// Sentence pairs looked at, and the words of the longest: longer ones say little about which word is which.
const PAIRS: usize = 50_000;
const LONGEST: usize = 40;
/// How often a word has to be seen, and how often with its partner.
const SEEN: u32 = 3;
const DICE: f64 = 0.6;

/// English words by those of one language.
#[derive(Debug, Default)]
pub struct Lexicon(HashMap<String, String>);

/// A word without what stands around it, as it is compared.
fn core(word: &str) -> (&str, String) {
    let core = word.trim_matches(|c: char| !c.is_alphanumeric());
    (core, core.to_lowercase())
}

fn words(text: &str) -> HashSet<String> {
    text.split_whitespace().map(|word| core(word).1).filter(|word| !word.is_empty()).collect()
}

impl Lexicon {
    /// Learns from sentences and their English.
    pub fn of<'t>(pairs: impl Iterator<Item = (&'t str, &'t str)>) -> Self {
        let (mut own, mut english, mut both) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (text, text_en) in pairs.take(PAIRS) {
            let (here, there) = (words(text), words(text_en));
            if here.len() > LONGEST || there.len() > LONGEST {
                continue;
            }
            for word in &here {
                *own.entry(word.clone()).or_insert(0u32) += 1;
                there.iter().for_each(|en| *both.entry((word.clone(), en.clone())).or_insert(0u32) += 1);
            }
            there.into_iter().for_each(|en| *english.entry(en).or_insert(0u32) += 1);
        }
        // The best partner of each word of either side, and whether another is as good.
        let (mut best, mut best_en) = (HashMap::new(), HashMap::new());
        for ((word, en), &together) in &both {
            let dice = 2.0 * f64::from(together) / f64::from(own[word] + english[en]);
            if together >= SEEN && dice >= DICE {
                better(&mut best, word, en, dice);
                better(&mut best_en, en, word, dice);
            }
        }
        let sure = best.iter().filter_map(|(word, (_, en))| {
            let en = (*en)?;
            let back = best_en.get(en).and_then(|(_, word)| *word);
            (back == Some(*word) && en != *word).then(|| (word.to_string(), en.to_string()))
        });
        Self(sure.collect())
    }

    /// The text with known words in English, those that `chosen` picks; None where none was picked.
    pub fn switch(&self, text: &str, mut chosen: impl FnMut() -> bool) -> Option<String> {
        let mut any = false;
        let switched: Vec<String> = text
            .split_whitespace()
            .map(|word| {
                let (core, known) = core(word);
                match self.0.get(&known).filter(|_| chosen()) {
                    Some(english) => {
                        any = true;
                        word.replacen(core, english, 1)
                    }
                    None => word.to_string(),
                }
            })
            .collect();
        any.then(|| switched.join(" "))
    }
}

/// Keeps the better partner; none where two are alike.
fn better<'w>(best: &mut HashMap<&'w str, (f64, Option<&'w str>)>, word: &'w str, partner: &'w str, dice: f64) {
    let (found, kept) = best.entry(word).or_insert((0.0, None));
    if dice > *found {
        (*found, *kept) = (dice, Some(partner));
    } else if dice == *found {
        *kept = None;
    }
}
