//! The Snowball stemmer of Russian as NLTK applies it: in Latin letters, with the ambiguities that they bring.

use std::sync::LazyLock;

/// What stands for a letter, in the order of the alphabet from а, then ё. Longer ones do not read back as they were.
const LATIN: [&str; 33] = [
    "a", "b", "v", "g", "d", "e", "zh", "z", "i", "i`", "k", "l", "m", "n", "o", "p", "r", "s", "t", "u", "f", "kh",
    "t^s", "ch", "sh", "shch", "''", "y", "'", "e`", "i^u", "i^a", "e",
];
/// The order in which NLTK reads Latin letters back.
const BACK: &str = "i^u=ю i^a=я shch=щ kh=х t^s=ц ch=ч e`=э i`=й sh=ш k=к e=е zh=ж a=а b=б v=в g=г d=д z=з i=и l=л m=м \
                    n=н o=о p=п r=р s=с t=т u=у f=ф ''=ъ y=ы '=ь";

const GERUND: &str = "ivshis' yvshis' vshis' ivshi yvshi vshi iv yv v";
const VERB: &str = "esh' ei`te ui`te ui^ut ish' ete i`te i^ut nno ila yla ena ite ili yli ilo ylo eno i^at uet eny it' yt' \
                    ui^u la na li em lo no et ny t' ei` ui` il yl im ym en it yt i^u i` l n";
const NOUN: &str = "ii^ami ii^akh i^ami ii^am i^akh ami iei` i^am iem akh ii^u 'i^u ii^a 'i^a ev ov ie 'e ei ii ei` oi` ii` \
                    em am om i^u i^a a e i i` o u y '";
const ADJECTIVE: &str = "i^ui^u i^ai^a imi ymi ego ogo emu omu ikh ykh ui^u ai^a oi^u ei^u ee ie ye oe ei` ii` yi` oi` em im \
                         ym om";
/// What makes an adjective of a verb; the ones of the second list only behind а or я.
const PARTICIPLE: &str = "ui^ushch ivsh yvsh";
const PARTICIPLE_AFTER_A: &str = "i^ushch shch vsh em nn";

/// A suffix and whether it is cut only behind а or я.
type Suffix = (String, bool);

fn suffixes(all: &str, after_a: &str) -> Vec<Suffix> {
    all.split(' ').map(|suffix| (suffix.to_string(), after_a.split(' ').any(|one| one == suffix))).collect()
}

static GERUNDS: LazyLock<Vec<Suffix>> = LazyLock::new(|| suffixes(GERUND, "v vshi vshis'"));
static REFLEXIVES: LazyLock<Vec<Suffix>> = LazyLock::new(|| suffixes("si^a s'", ""));
static VERBS: LazyLock<Vec<Suffix>> =
    LazyLock::new(|| suffixes(VERB, "la na ete i`te li i` l em n lo no et i^ut ny t' esh' nno"));
static NOUNS: LazyLock<Vec<Suffix>> = LazyLock::new(|| suffixes(NOUN, ""));
/// Endings with and without a participle, the longest first.
static ADJECTIVES: LazyLock<Vec<Suffix>> = LazyLock::new(|| {
    let mut all = suffixes(ADJECTIVE, "");
    for (participles, after_a) in [(PARTICIPLE, false), (PARTICIPLE_AFTER_A, true)] {
        for participle in participles.split(' ') {
            all.extend(ADJECTIVE.split(' ').map(|ending| (format!("{participle}{ending}"), after_a)));
        }
    }
    // NLTK's list has a slip of the pen here.
    all.iter_mut()
        .filter(|(suffix, _)| suffix == "ui^ushchai^a")
        .for_each(|(suffix, _)| *suffix = "ui^ushchaia".into());
    all.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
    all
});

/// A word in Latin letters and how much of its end may be cut.
struct Word {
    text: String,
    /// Characters behind the first vowel.
    rv: usize,
    /// Behind the second group of consonants.
    r2: usize,
}

impl Word {
    fn cut(&mut self, suffixes: &[Suffix]) -> bool {
        let region = &self.text[self.text.len() - self.rv..];
        let fits = |(suffix, after_a): &&Suffix| {
            let before = region.strip_suffix(suffix.as_str());
            before.is_some_and(|before| !after_a || before.ends_with('a'))
        };
        let length = suffixes.iter().find(fits).map(|(suffix, _)| suffix.len());
        self.shorten(length.unwrap_or(0));
        length.is_some()
    }

    fn shorten(&mut self, by: usize) {
        self.text.truncate(self.text.len() - by);
        (self.rv, self.r2) = (self.rv.saturating_sub(by), self.r2.saturating_sub(by));
    }
}

pub fn stem(word: &str) -> String {
    if !word.chars().any(|c| u32::from(c) > 255) {
        return word.to_string();
    }
    let mut word = in_latin(word);
    if !word.cut(&GERUNDS) {
        word.cut(&REFLEXIVES);
        if !word.cut(&ADJECTIVES) && !word.cut(&VERBS) {
            word.cut(&NOUNS);
        }
    }
    if word.rv > 0 && word.text.ends_with('i') {
        word.shorten(1);
    }
    let derived = ["ost'", "ost"].iter().find(|suffix| word.text[word.text.len() - word.r2..].ends_with(**suffix));
    word.shorten(derived.map_or(0, |suffix| suffix.len()));
    let mut text = word.text;
    if text.ends_with("nn") {
        text.pop();
    } else if let Some(positive) = text.strip_suffix("ei`she").or(text.strip_suffix("ei`sh")) {
        text = positive.strip_suffix("nn").map_or(positive.to_string(), |short| format!("{short}n"));
    } else if text.ends_with('\'') {
        text.pop();
    }
    for pair in BACK.split(' ') {
        let (latin, cyrillic) = pair.split_once('=').unwrap_or_default();
        text = text.replace(latin, cyrillic);
    }
    text
}

/// The word in Latin letters and its regions.
fn in_latin(word: &str) -> Word {
    let mut text = String::new();
    for c in word.chars() {
        match (c, c as usize) {
            ('ё', _) => text += LATIN[32],
            (_, code @ 0x430..=0x44f) => text += LATIN[code - 0x430],
            _ => text.push(c),
        }
    }
    // One sign per vowel for finding the regions.
    let signs = text.replace("i^a", "A").replace("i^u", "U").replace("e`", "E");
    let back = |region: &str| region.replace('A', "i^a").replace('U', "i^u").replace('E', "e`").len();
    let is_vowel = |c: char| "AUEaeiouy".contains(c);
    let rv = signs.find(is_vowel).map_or("", |at| &signs[at + 1..]);
    let behind_consonant = |region: &str| {
        let mut signs = region.char_indices().zip(region.char_indices().skip(1));
        let consonant = signs.find(|((_, before), (_, c))| is_vowel(*before) && !is_vowel(*c));
        consonant.map_or(String::new(), |(_, (at, c))| region[at + c.len_utf8()..].to_string())
    };
    let (rv, r2) = (back(rv), back(&behind_consonant(&behind_consonant(&signs))));
    Word { text, rv, r2 }
}
