//! ROUGE-L: `google` is that of rouge-score and `xlsum` that of XL-Sum, to the last digit.

use trainer::benchmarks::{Benchmark, Item, load};
use trainer::scorers::rouge;

use crate::shared_data::shared;

#[test]
fn rouge_xlsum_is_that_of_xl_sum() {
    // Computed with the tokenizer, stemmers and scorer of XL-Sum's `multilingual_rouge_scoring` (pyonmttok 1.38.1, NLTK
    // 3.10.4 with its stop words, TurkishStemmer 1.3), and beside them rouge-score 0.1.2 without stemmer. The first `ar`
    // word was stemmed behind another, see the departure of our Arabic stems; `zh` without its dictionary.
    for (lang, gold, answer, xlsum, google) in [
        (
            "en",
            "The runners were having an easy relationship with hopping dogs.",
            "A runner having easy relations hops with the dog",
            0.5263157894736842,
            0.3157894736842105,
        ),
        (
            "en",
            "It cost $5m (£3.2m), up 20% — the president's 2nd term",
            "it costs 5 m £3 2m and up 20 percent in the presidents 2 nd term",
            0.8823529411764706,
            0.5,
        ),
        (
            "ar",
            "والكتاب الذي قرأناه في المدرسة كان مفيداً للطالبات",
            "قرأت الكتاب في مدارس الطالبات وكان مفيدا",
            0.39999999999999997,
            0.0,
        ),
        (
            "ar",
            "قالت الوزيرة إنّ المسؤولين سيستقبلون اللاجئين غداً",
            "الوزير قال إن المسؤولون يستقبلون لاجئين",
            0.4615384615384615,
            0.0,
        ),
        (
            "fr",
            "Les anciennes ministres travaillaient activement à l’élection présidentielle",
            "L'ancien ministre travaille activement aux élections présidentielles",
            0.7058823529411765,
            0.2222222222222222,
        ),
        ("hi", "लड़कियों ने किताबें पढ़ीं और कहानियाँ सुनाएंगी", "लड़की किताब पढ़ी और कहानी सुनाई", 0.7692307692307692, 0.0),
        ("hi", "ऊंचाइयों पर १२ सैनिक र्\u{200d}याक के साथ थे", "ऊंचा पर १२ सैनिकों", 0.6666666666666666, 0.0),
        (
            "id",
            "Presiden mengatakan pembangunan itu dimulai pada 2021.",
            "pembangunan dimulai tahun 2021 kata presiden",
            0.4615384615384615,
            0.4615384615384615,
        ),
        (
            "ru",
            "Объявляющие актёры воюют с существующими режиссёрами",
            "актер объявил что воюет режиссер существующий",
            0.5,
            0.0,
        ),
        (
            "ru",
            "Важнейшее из новых правительственных решений принято",
            "важное решение правительства было принято",
            0.5454545454545454,
            0.0,
        ),
        (
            "sw",
            "Watoto 3 walicheza mpira, mama alipika ugali.",
            "mtoto alicheza mpira na mama alipika",
            0.4615384615384615,
            0.4615384615384615,
        ),
        (
            "tr",
            "Kitaplarımızı öğretmenlerden alarak evlerimize götürdük, İstanbul'daki çocuklarındı",
            "öğretmenin kitabı evde çocuklar götürdüler istanbul",
            0.42857142857142855,
            0.25,
        ),
        (
            "tr",
            "Gazeteciler saatlerce beklediğini söylemişlerdi",
            "gazeteci saat beklediklerini söyledi",
            0.75,
            0.16666666666666666,
        ),
        ("ur", "وزیراعظم نے کہا کہ حکومت 5 ارب روپے دے گی۔", "حکومت پانچ ارب روپے دے گی", 0.625, 0.0),
        (
            "vi",
            "Thủ tướng đã đến Hà Nội hôm 3/5",
            "hôm nay Thủ tướng đến Hà Nội 3 5",
            0.7777777777777778,
            0.7826086956521738,
        ),
        ("zh", "北京2022冬奥会開幕", "2022年北京冬奥", 0.5714285714285715, 1.0),
    ] {
        for (rule, expected) in [("xlsum", xlsum), ("google", google)] {
            let found = rouge::rouge_l(rule, lang, gold, answer);
            assert!((found - expected).abs() < 1e-12, "{rule} {lang} {gold}: {found}, expected {expected}");
        }
    }
}

/// The sums of scores over the items of a language, each answer being the first 300 characters below the title.
fn check_sums(rule: &str, sums: &[(&str, f64)]) {
    let Some(root) = shared("data/eval") else { return };
    let items = load(&root, Benchmark::XlSum, &[]).unwrap();
    for (lang, expected) in sums {
        let of_lead = |item: &Item| {
            let lead: String = item.prompt.split('\n').nth(2).unwrap().chars().take(300).collect();
            rouge::rouge_l(rule, lang, &item.gold[0], &lead)
        };
        let sum: f64 = items.iter().filter(|item| item.lang == *lang).map(of_lead).sum();
        assert!((sum - expected).abs() < 1e-9, "{lang}: {sum}, expected {expected}");
    }
}

#[test]
fn rouge_xlsum_of_a_thousand_leads_is_that_of_xl_sum() {
    // Of the same programs.
    let sums = [
        ("ar", 13.82549113617944),
        ("en", 13.495893807074898),
        ("fr", 17.12747922844177),
        ("hi", 15.869571702122606),
        ("id", 15.251124241708197),
        ("ru", 13.239733105271442),
        ("sw", 17.15959041179484),
        ("tr", 14.341916481888429),
        ("ur", 18.31037234862155),
        ("vi", 14.787873277428059),
    ];
    check_sums("xlsum", &sums);
}

#[test]
fn rouge_google_is_that_of_rouge_score() {
    // Computed with rouge-score 0.1.2, no stemmer.
    for (gold, answer, expected) in [
        ("The quick brown fox jumps over the lazy dog.", "A quick brown dog jumps over the fox", 0.5882352941176471),
        ("Thủ tướng đã đến Hà Nội hôm nay", "Hôm nay thủ tướng đến Hà Nội", 0.7),
        ("Привет мир 2019", "мир 2019", 1.0),
        ("İstanbul'da 3 kişi öldü", "istanbul da üç kişi öldü", 0.6666666666666666),
        ("it's 12,345 naïve co-op's", "its 12 345 naive coop s", 0.4),
    ] {
        let found = rouge::rouge_l("google", "en", gold, answer);
        assert!((found - expected).abs() < 1e-12, "{gold}: {found}, expected {expected}");
    }
    check_sums(
        "google",
        &[
            ("en", 12.883790360435823),
            ("ar", 1.0),
            ("hi", 1.0),
            ("ru", 5.383333333333333),
            ("ur", 1.3333333333333333),
            ("vi", 27.95885845515475),
            ("tr", 15.826181500998867),
        ],
    );
}

#[test]
fn rouge_unicode_and_char_of_a_thousand_leads_are_those_of_plain_loops() {
    // By twenty lines of Python 3.11: unicodedata, the module regex for `\p{P}`, and the textbook's table.
    for (lang, unicode, char) in [
        ("ar", 10.788885551357712, 35.3888510714074),
        ("en", 12.639347385125378, 34.395335438142816),
        ("fr", 16.231213836785745, 37.169988121324685),
        ("hi", 15.04291746279729, 31.52201504185297),
        ("id", 15.188715144796511, 39.649690007788045),
        ("ru", 10.57172869702295, 35.32376497767015),
        ("sw", 17.151779359209797, 40.63535738315482),
        ("tr", 10.397136207679315, 35.93494940826138),
        ("ur", 18.287567795762243, 37.168448845239475),
        ("vi", 14.933538001327841, 32.47325777391272),
    ] {
        check_sums("unicode", &[(lang, unicode)]);
        check_sums("char", &[(lang, char)]);
    }
}

#[test]
fn rouge_tokens_follow_their_script() {
    assert_eq!(rouge::rouge_l("google", "hi", "लड़के खेल रहे हैं", "लड़के खेल रहे हैं"), 0.0);
    assert_eq!(rouge::rouge_l("unicode", "hi", "लड़के, खेल रहे हैं।", "लड़के खेल रहे हैं"), 1.0);
    assert_eq!(rouge::rouge_l("unicode", "tr", "Kitapları okudum", "kitapları okuyor"), 0.5);
    assert_eq!(rouge::rouge_l("xlsum", "fr", "les chiens mangeaient", "les chien mange"), 1.0, "stems are compared");
    assert_eq!(rouge::rouge_l("xlsum", "sw", "watoto walicheza", "watoto wanacheza"), 0.5, "Swahili has no stemmer");
    assert_eq!(rouge::rouge_l("char", "zh", "北京 大学", "北京大学"), 1.0);
}
