//! What can be told of a text without a model: its language, for the browser's fonts and voices, and whether it is an
//! answer.

use crate::protocol::ExamplePrompt;

/// The language of a prompt: the example's own, else what its script tells. Kana anywhere tell Japanese, whose questions may
/// begin as Chinese ones do.
pub fn language_of(text: &str, examples: &[ExamplePrompt]) -> Option<String> {
    let example = examples.iter().find(|example| example.prompt.trim() == text.trim());
    let of_text = || {
        let kana = text.chars().filter_map(of_script).find(|lang| *lang == "ja");
        kana.or_else(|| text.chars().find_map(of_script)).map(str::to_owned)
    };
    example.map(|example| example.lang.clone()).or_else(of_text)
}

/// The most spoken language of ours that is written with this character; none for Latin letters, which all share.
fn of_script(character: char) -> Option<&'static str> {
    Some(match character {
        '\u{0370}'..='\u{03ff}' => "el",
        '\u{0400}'..='\u{04ff}' => "ru",
        '\u{0600}'..='\u{06ff}' => "ar",
        '\u{0900}'..='\u{097f}' => "hi",
        '\u{0980}'..='\u{09ff}' => "bn",
        '\u{0c00}'..='\u{0c7f}' => "te",
        '\u{0e00}'..='\u{0e7f}' => "th",
        '\u{3040}'..='\u{30ff}' => "ja",
        '\u{4e00}'..='\u{9fff}' => "zh",
        '\u{ac00}'..='\u{d7af}' => "ko",
        _ => return None,
    })
}

/// Whether the answer is the gold one; case and outer marks do not matter.
pub fn is_answer(answer: &str, gold: &str) -> bool {
    let bare = |text: &str| {
        text.trim()
            .trim_matches(|mark: char| mark.is_ascii_punctuation() || "。．，、？！।۔؟،؛¡¿".contains(mark))
            .trim()
            .to_lowercase()
    };
    bare(answer) == bare(gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_keeps_its_own_language_and_other_text_is_told_by_its_script() {
        let example = ExamplePrompt {
            lang: "ur".into(),
            prompt: "فرانس کا دارالحکومت؟".into(),
            english: String::new(),
            gold: "پیرس".into(),
        };
        let examples = [example];
        assert_eq!(language_of(" فرانس کا دارالحکومت؟ ", &examples).as_deref(), Some("ur"));
        assert_eq!(language_of("ما هي عاصمة فرنسا؟", &examples).as_deref(), Some("ar"));
        assert_eq!(language_of("日本の首都はどこですか。", &[]).as_deref(), Some("ja"));
        assert_eq!(language_of("中国的首都是哪里？", &[]).as_deref(), Some("zh"));
        assert_eq!(language_of("Mji mkuu wa Kenya?", &examples), None);
    }

    #[test]
    fn an_answer_is_right_whatever_marks_surround_it_and_wrong_if_it_only_holds_the_right_one() {
        assert!(is_answer(" برلين.", "برلين"));
        for mark in "。．，、？！".chars() {
            assert!(is_answer(&format!("北京{mark}"), "北京"), "{mark}");
        }
        for mark in "۔؟،؛".chars() {
            assert!(is_answer(&format!("پیرس{mark}"), "پیرس"), "{mark}");
        }
        assert!(is_answer("Four", "four"));
        assert!(!is_answer("十四", "四"));
        assert!(!is_answer("on dört", "dört"));
        assert!(!is_answer("sixteen", "six"));
    }
}
