//! The stemmer of the package TurkishStemmer (Apache-2.0), which the original calls: suffixes come off by three state
//! machines, and of all that is left on the ways the one nearest to four letters is taken.

use std::collections::{BTreeSet, VecDeque};

const ALPHABET: &str = "abcçdefgğhıijklmnoöprsştuüvyz";
const VOWELS: &str = "üiıueöao";
const CONSONANTS: &str = "bcçdfgğhjklmnprsştvyz";
/// Letters of the average stem (Can et al., Information Retrieval on Turkish Texts).
const AVERAGE: usize = 4;

/// Stay as they are.
const PROTECTED: &str = "abiye adın adana akılsız alaska alet ağda ağız alarm altınbaşak altınyıldız anakucağı anasayfa \
    anime antifriz araba ardeşen armanı aroma arma arsız asa askı astra asus atkı ayakkabı aynı ayı banka başka batık \
    bayı belge bellona benten benzin beşinci bilgi bitki boyut branda bütün buzlu çağrı camsız çanta çarşı ceyiz çıkış \
    cımbiz dalga damla derece dişli düğün ege elbise fendi filtre fiyat forma gazete gemi görüntü igne ince internet \
    iyi kayısı kama katı kötü kumanda lamba lazım litre mağaza magaza makara makine malzeme mana marka masa maskara \
    mine mini nine numara odun oyun ölçü örgü öykü özen parça perde pompa pırlanta raket ranza şamdan şapka şifre sunu \
    soyad tabaka takım talımat tarla tasma törpü tozlu tüplü uçurtma üfleme ürün ütü uygun uzatma uzun vana yağlı \
    yapma yardım yasa yıldız zayıflama zemin";
/// Taken as the stem whatever their length.
const STEMS: &str = "al am aparat ara bilet bisiklet bulut diyet ev es fiyat fırsat general git gıt iç ip internet iyi \
    kağıt kartuş katı kot kötü kumanda lamba mağaza magaza makara makine marka maskara ne otomat palet perde raket \
    ranza robot sepet servis soyad su tabaka tablet takım talımat tanıt tarla tasma tenis törpü uç uygun var yasa";
/// Lose a suffix although their vowels do not agree.
const DISHARMONIC: &str = "alkoller değerın generali generale projektörlar saatler tabletlar tersyüz yaninda yani";
/// Keep their last consonant.
const HARD: &str = "ad at ked";

fn is_in(list: &str, word: &str) -> bool {
    list.split(' ').any(|one| one == word)
}

/// Endings, and the letters of which one may join them to the stem.
type Suffix = (&'static str, &'static str);
/// Whether a word may end there, and which suffix leads to which state.
type State = (bool, &'static [(Suffix, usize)]);

const U: &str = "ı i u ü";
const N1: Suffix = ("lar ler", "");
const N2: Suffix = ("m", U);
const N3: Suffix = ("mız miz muz müz", U);
const N4: Suffix = ("ın in un ün", "");
const N5: Suffix = ("nız niz nuz nüz", U);
const N6: Suffix = (U, "s");
const N7: Suffix = ("ları leri", "");
const N10: Suffix = ("ın in un ün", "n");
const N13: Suffix = ("da de ta te", "");
const N14: Suffix = ("nta nte nda nde", "");
/// The only one that asks for no harmony of vowels.
const N18: Suffix = ("ki", "");

const NOUN: [State; 11] = [
    (
        true,
        &[
            (("ndan ntan nden nten", ""), 2),
            (N7, 8),
            (N3, 7),
            (N5, 7),
            (N1, 9),
            (N14, 5),
            (("dan tan den ten", ""), 6),
            (("la le", "y"), 4),
            (N10, 4),
            (("ca ce", "n"), 10),
            (N4, 7),
            (("nı ni nu nü", ""), 2),
            (("na ne", ""), 5),
            (N13, 1),
            (N18, 3),
            (N2, 7),
            (N6, 7),
            ((U, "y"), 1),
            (("a e", "y"), 1),
        ],
    ),
    (true, &[(N1, 9), (N2, 7), (N3, 7), (N4, 7), (N5, 7)]),
    (false, &[(N6, 7), (N7, 8)]),
    (false, &[(N10, 4), (N13, 1), (N14, 5)]),
    (true, &[(N1, 9), (N2, 7), (N3, 7), (N4, 7), (N5, 7), (N6, 7), (N7, 8), (N18, 3)]),
    (false, &[(N6, 7), (N7, 8), (N18, 3)]),
    (true, &[(N1, 9), (N2, 7), (N3, 7), (N4, 7), (N5, 7), (N18, 3)]),
    (true, &[(N1, 9)]),
    (true, &[]),
    (true, &[(N18, 3)]),
    (true, &[(N1, 9), (N2, 7), (N3, 7), (N4, 7), (N5, 7), (N6, 7), (N7, 8)]),
];

const V1: Suffix = ("ım im um üm", "y");
const V2: Suffix = ("sın sin sun sün", "");
const V3: Suffix = ("ız iz uz üz", "y");
const V4: Suffix = ("sınız siniz sunuz sünüz", "");
const V5: Suffix = ("lar ler", "");
const V10: Suffix = ("tır tir tur tür dır dir dur dür", "");
const V12: Suffix = ("dı di du dü tı ti tu tü", "y");
const V13: Suffix = ("sa se", "y");
const V14: Suffix = ("muş miş müş mış", "y");

const NOMINAL_VERB: [State; 8] = [
    (
        false,
        &[
            (("casına çasına cesine çesine", ""), 7),
            (V4, 1),
            (V14, 5),
            (("ken", "y"), 5),
            (V2, 1),
            (V5, 2),
            (("nız niz nuz nüz", ""), 3),
            (V10, 4),
            (V3, 1),
            (V1, 1),
            (V12, 5),
            (V13, 5),
            (("m", ""), 3),
            (("n", ""), 3),
            (("k", ""), 3),
        ],
    ),
    (true, &[(V14, 5)]),
    (true, &[(V10, 5), (V12, 5), (V13, 5), (V14, 5)]),
    (false, &[(V12, 5), (V13, 5)]),
    (true, &[(V1, 6), (V2, 6), (V3, 6), (V4, 6), (V5, 6), (V14, 5)]),
    (true, &[]),
    (false, &[(V14, 5)]),
    (false, &[(V1, 6), (V2, 6), (V3, 6), (V4, 6), (V5, 6), (V14, 5)]),
];

const DERIVATION: [State; 2] = [(false, &[(("lı li lu lü", ""), 1)]), (true, &[])];

pub fn stem(word: &str) -> String {
    let is_turkish = word.chars().all(|c| ALPHABET.contains(c));
    if !is_turkish || vowels(word).len() < 2 || is_in(PROTECTED, word) {
        return word.to_string();
    }
    let mut stems = BTreeSet::new();
    for machine in [&NOMINAL_VERB[..], &NOUN, &DERIVATION] {
        let mut from = stems.clone();
        // The first machine begins with no stem at all.
        from.insert(word.to_string());
        from.iter().for_each(|word| strip(machine, word, &mut stems));
    }
    let found = stems.iter().filter(|stem| *stem != word && !vowels(stem).is_empty()).map(|stem| hard_end(stem));
    let rank = |stem: &String| {
        let length = stem.chars().count();
        (!is_in(STEMS, stem), length.abs_diff(AVERAGE), length)
    };
    found.min_by_key(rank).unwrap_or_else(|| word.to_string())
}

/// One suffix that a word could lose.
struct Way {
    from: usize,
    to: usize,
    suffix: Suffix,
    word: String,
    /// A way between the same states was gone.
    marked: bool,
}

/// Adds to `stems` what a machine leaves of a word wherever it may end.
fn strip(machine: &[State], word: &str, stems: &mut BTreeSet<String>) {
    let ways = |from: usize, word: &str| -> Vec<Way> {
        let matching = machine[from].1.iter().filter(|((endings, _), _)| ending(endings, word).is_some());
        matching.map(|&(suffix, to)| Way { from, to, suffix, word: word.to_string(), marked: false }).collect()
    };
    let mut open = VecDeque::from(ways(0, word));
    while let Some(way) = open.pop_front() {
        let stem = without(way.suffix, &way.word);
        if stem == way.word {
            continue;
        }
        let similar = |other: &Way| (other.from, other.to) == (way.from, way.to);
        if machine[way.to].0 {
            open.retain(|other| !similar(other) && !other.marked);
            stems.insert(stem.clone());
        } else {
            open.iter_mut().filter(|other| similar(other)).for_each(|other| other.marked = true);
        }
        open.extend(ways(way.to, &stem));
    }
}

fn ending<'s>(endings: &'s str, word: &str) -> Option<&'s str> {
    endings.split(' ').find(|ending| !ending.is_empty() && word.ends_with(ending))
}

fn without(suffix: Suffix, word: &str) -> String {
    let (endings, joints) = suffix;
    let may_lose = !is_in(PROTECTED, word) && (suffix == N18 || is_harmonic(word) || is_in(DISHARMONIC, word));
    let stem = ending(endings, word).filter(|_| may_lose).map_or(word, |ending| &word[..word.len() - ending.len()]);
    // The original looks for the joint even where the suffix stayed.
    let Some(joint) = ending(joints, stem) else { return stem.to_string() };
    let shorter = &stem[..stem.len() - joint.len()];
    let before = if VOWELS.contains(joint) { CONSONANTS } else { VOWELS };
    match shorter.chars().next_back().is_some_and(|c| before.contains(c)) {
        true => shorter.to_string(),
        false => word.to_string(),
    }
}

fn vowels(word: &str) -> Vec<char> {
    word.chars().filter(|c| VOWELS.contains(*c)).collect()
}

/// Whether the last two vowels agree in roundness and frontness.
fn is_harmonic(word: &str) -> bool {
    let vowels = vowels(word);
    let [.., one, other] = vowels[..] else { return true };
    let both = |first: &str, then: &str| first.contains(one) && then.contains(other);
    (both("iıea", "iıea") || both("oöuü", "aeuü")) && (both("eiöü", "eiöü") || both("ıuao", "ıuao"))
}

/// The last consonant as it stands at the end of a word.
fn hard_end(stem: &str) -> String {
    let hard = [('b', 'p'), ('c', 'ç'), ('d', 't'), ('ğ', 'k')];
    let Some((soft, hard)) = hard.into_iter().find(|(soft, _)| stem.ends_with(*soft)) else { return stem.to_string() };
    match is_in(HARD, stem) {
        true => stem.to_string(),
        false => format!("{}{hard}", &stem[..stem.len() - soft.len_utf8()]),
    }
}
