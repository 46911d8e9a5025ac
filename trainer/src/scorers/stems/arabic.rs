//! The light stemmer of Arabic as NLTK's `ArabicStemmer` applies it, its slips included.
//!
//! # Departures
//! NLTK's stemmer forgets to reset that a verb's first suffix was found, so that its stems depend on the words before.
//! Here every word is stemmed as NLTK stems it after the first such word.

/// A word on its way to the stem.
struct Word(Vec<char>);

impl Word {
    /// Cuts the first of the suffixes that the word ends with, if it has `least` characters.
    fn cut_end(&mut self, least: usize, suffixes: &[&str]) -> bool {
        let found =
            suffixes.iter().map(|suffix| suffix.chars().count()).zip(suffixes).find(|(_, suffix)| self.ends(suffix));
        let cut = found.filter(|_| self.0.len() >= least);
        if let Some((length, _)) = cut {
            self.0.truncate(self.0.len() - length);
        }
        cut.is_some()
    }

    /// Cuts `length` characters in front, if the word has `least` and begins with one of the prefixes.
    fn cut_start(&mut self, least: usize, prefixes: &[&str], length: usize) -> bool {
        let cut = self.0.len() >= least && prefixes.iter().any(|prefix| self.starts(prefix));
        if cut {
            self.0.drain(..length);
        }
        cut
    }

    fn starts(&self, prefix: &str) -> bool {
        let prefix: Vec<char> = prefix.chars().collect();
        self.0.starts_with(&prefix)
    }

    fn ends(&self, suffix: &str) -> bool {
        let suffix: Vec<char> = suffix.chars().collect();
        self.0.ends_with(&suffix)
    }

    fn verb_suffixes(&mut self) {
        let _object = self.cut_end(4, &["ه", "ك"])
            || self.cut_end(5, &["ني", "نا", "ها", "هم", "هن", "كم", "كن"])
            || self.cut_end(6, &["هما", "كما", "كمو"]);
        let _person = self.cut_end(4, &["ت", "ا", "ن", "ي"]) || self.cut_end(4, &["و"]);
    }

    fn noun_suffixes(&mut self, is_defined: bool) {
        if !self.cut_end(3, &["ة"]) {
            // Two characters go where the word ends with either of them: NLTK reads "ات" as two suffixes.
            let plural = |word: &mut Self| {
                let ends = word.0.len() >= 5 && (word.ends("ا") || word.ends("ت"));
                word.0.truncate(word.0.len() - 2 * usize::from(ends));
                ends
            };
            let number = |word: &mut Self| {
                let _any = word.cut_end(5, &["ا", "ي", "و"]) || plural(word) || word.cut_end(4, &["ت"]);
            };
            if !is_defined {
                let _owner = self.cut_end(4, &["ي", "ك", "ه"])
                    || self.cut_end(5, &["نا", "كم", "ها", "هن", "هم"])
                    || self.cut_end(6, &["كما", "هما"]);
                number(self);
            } else if self.cut_end(6, &["ن"]) {
                number(self);
            } else {
                plural(self);
            }
        }
        self.cut_end(3, &["ي"]);
    }

    fn prefixes(&mut self, is_verb: bool) {
        self.cut_start(4, &["أأ", "أآ", "أؤ", "أا", "أإ"], 1);
        if !self.cut_start(6, &["فال", "وال"], 3) && !self.starts("وا") && !self.starts("فا") {
            self.cut_start(4, &["ف", "و"], 1);
        }
        let article = self.cut_start(5, &["ال", "لل"], 2);
        if !article {
            self.cut_start(6, &["كال", "بال"], 3);
            let _preposition =
                self.cut_start(4, &["ب"], 1) || self.cut_start(5, &["ك", "ل"], 1) || self.cut_start(4, &["كك"], 1);
        } else if is_verb {
            self.cut_start(5, &["سي", "ست", "سن", "سأ"], 1);
            if self.cut_start(5, &["يست", "نست", "تست"], 1) {
                self.0.insert(0, 'ا');
            }
        }
    }

    fn plain_hamza(&mut self) {
        if let Some(last) = self.0.last_mut().filter(|last| "أإآؤئ".contains(**last)) {
            *last = 'ء';
        }
        for letter in &mut self.0 {
            *letter = match *letter {
                'أ' | 'آ' | 'إ' => 'ا',
                'ؤ' => 'و',
                'ئ' => 'ي',
                other => other,
            };
        }
    }
}

pub fn stem(word: &str, is_stop_word: impl Fn(&str) -> bool) -> String {
    let longer_than = |length: usize, prefixes: &[&str]| {
        word.chars().count() > length && prefixes.iter().any(|prefix| word.starts_with(prefix))
    };
    let is_defined = longer_than(4, &["كال", "بال"]) || longer_than(3, &["ال", "لل"]);
    let is_noun = is_defined || word.ends_with('ة') || word.ends_with("ات");
    // Vowel signs, the stroke that lengthens a word, and marks of punctuation and of honour.
    let bare = |c: &char| !matches!(c, '\u{64b}'..='\u{652}' | '\u{640}' | '\u{60c}'..='\u{61b}' | '\u{61f}');
    let mut word = Word(word.chars().filter(bare).collect());
    let text: String = word.0.iter().collect();
    if word.0.len() <= 2 || is_stop_word(&text) {
        return text;
    }
    if !is_noun {
        word.verb_suffixes();
    }
    word.noun_suffixes(is_defined);
    word.prefixes(!is_noun);
    word.plain_hamza();
    word.0.into_iter().collect()
}
