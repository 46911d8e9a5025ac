//! Proves that the real tokenizers give the published ids, that nobody can type a control token, that streamed text
//! comes in whole grapheme clusters, and that templates say exactly what their models were trained on.

mod shared_data;
mod small_model;

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::error::Error;
use cctuning::tokenizer::{TextStream, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use unicode_segmentation::UnicodeSegmentation;

use shared_data::shared;

struct Family {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    vectors: PathBuf,
    control: &'static [(&'static str, u32)],
}

/// Both families, or none and a sentence that says why.
fn families() -> &'static [Family] {
    static READ: LazyLock<Vec<Family>> = LazyLock::new(read_families);
    &READ
}

fn unzipped(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn read_families() -> Vec<Family> {
    let Some(models) = shared("data/models") else { return Vec::new() };
    let family = |template, folder: &str, vectors: &str, control| {
        let json = unzipped(&models.join(folder).join("tokenizer.json.gz"));
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        Family { template, tokenizer, vectors: models.join("tests").join(vectors), control }
    };
    let llama: &[_] = &[
        ("<|begin_of_text|>", 128000),
        ("<|start_header_id|>", 128006),
        ("<|end_header_id|>", 128007),
        ("<|eot_id|>", 128009),
    ];
    let qwen: &[_] = &[("<|endoftext|>", 151643), ("<|im_start|>", 151644), ("<|im_end|>", 151645)];
    vec![
        family(ChatTemplate::LLAMA3, "llama3.1", "ggml-vocab-llama-bpe.gguf", llama),
        family(ChatTemplate::QWEN2, "qwen2.5", "ggml-vocab-qwen2.gguf", qwen),
    ]
}

/// The template's own words, around the user's text.
fn frame(template: &ChatTemplate) -> (String, String) {
    (template.before.to_string(), [&*template.after, &*template.answer_tag].concat())
}

/// Text with control tokens by name; `decode` alone leaves them out.
fn spelled(tokenizer: &Tokenizer, ids: &[u32], control: &[(&str, u32)]) -> String {
    let name = |id: u32| control.iter().find(|(_, control)| *control == id).map(|(name, _)| *name);
    let mut text = String::new();
    let mut rest = ids;
    while !rest.is_empty() {
        let plain = rest.iter().position(|&id| name(id).is_some()).unwrap_or(rest.len());
        text += &tokenizer.decode(&rest[..plain]).unwrap();
        text += rest.get(plain).and_then(|&id| name(id)).unwrap_or_default();
        rest = &rest[rest.len().min(plain + 1)..];
    }
    text
}

const TEXTS: [&str; 12] = [
    "What is the capital of France?",
    "ما هي عاصمة فرنسا؟ السلامُ عليكم",
    "फ़्रांस की राजधानी क्या है? क्षत्रिय",
    "เมืองหลวงของฝรั่งเศสคืออะไร น้ำ",
    "法国的首都是哪里？𠮷野家",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 e\u{301}",
    "Fransa'nın başkenti neresidir?",
    "Какая столица у Франции?",
    "1 + 22 + 333 + 4444 = ?",
    "x",
    "two\nlines\n\nand a tab\t.",
    "a  b   c    d",
];

#[test]
fn every_published_vector_of_both_families_is_met() {
    for Family { template, tokenizer, vectors, .. } in families() {
        let inputs = std::fs::read_to_string(vectors.with_extension("gguf.inp")).unwrap();
        let outputs = std::fs::read_to_string(vectors.with_extension("gguf.out")).unwrap();
        const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
        let inputs: Vec<&str> = inputs.strip_suffix(SEPARATOR).unwrap().split(SEPARATOR).collect();
        let outputs: Vec<&str> = outputs.trim_end_matches('\n').split('\n').collect();
        assert_eq!((inputs.len(), outputs.len()), (46, 46), "{template:?}");
        for (input, output) in inputs.iter().zip(outputs) {
            let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(input).unwrap(), expected, "{template:?} {input:?}");
        }
    }
}

/// The library's own ids and spans, with no control token in any text.
fn by_library(json: &[u8], texts: &[String]) -> Vec<(Vec<u32>, Vec<Range<usize>>)> {
    let mut library = tokenizers::Tokenizer::from_bytes(json).unwrap();
    let added = library.get_added_tokens_decoder().into_values().map(|token| token.special(true));
    library.add_special_tokens(added.collect::<Vec<_>>()).unwrap();
    library.set_encode_special_tokens(true);
    let pairs = texts.iter().map(|text| {
        let encoding = library.encode(text.as_str(), false).unwrap();
        (encoding.get_ids().to_vec(), encoding.get_offsets().iter().map(|&(start, end)| start..end).collect())
    });
    pairs.collect()
}

#[test]
fn ids_and_spans_are_the_librarys_for_words_new_and_known_and_after_all_were_forgotten() {
    let mut texts: Vec<String> = TEXTS.iter().chain(&CLUSTERS).map(|text| text.to_string()).collect();
    let pieces = [
        "  ",
        " ",
        "\n",
        "\r\n ",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "e\u{301}",
        "ọ\u{301}",
        "\u{fb01}",
        "'LL",
        "it's",
        "12345",
        "!?",
        " (a)",
        "_",
        "न\u{93c}",
        "น้ำ",
        "家",
        "👩‍👩‍👧‍👦",
        "\u{fffd}",
        "\u{0}",
        "<|im_end|>",
        "<tool_call>",
        "İ",
        "ß",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    texts.extend((0..250).map(|_| {
        let length = rng.random_range(0..12);
        (0..length).map(|_| pieces[rng.random_range(0..pieces.len())]).collect::<String>()
    }));
    texts.push("x".repeat(300) + &"家".repeat(300));
    let small = small_model::tokenizer_json();
    let mut jsons = vec![small.to_string().into_bytes()];
    for change in [
        json!({"normalizer": {"type": "NFKC"}}),
        json!({"normalizer": {"type": "Lowercase"}}),
        json!({"normalizer": {"type": "Prepend", "prepend": "▁"}}),
        json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}}),
        json!({"pre_tokenizer": {"type": "Whitespace"}}),
    ] {
        let mut changed = small.clone();
        changed.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        jsons.push(changed.to_string().into_bytes());
    }
    if let Some(models) = shared("data/models") {
        jsons.extend(["llama3.1", "qwen2.5"].map(|folder| unzipped(&models.join(folder).join("tokenizer.json.gz"))));
    }
    for json in jsons {
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        let expected = by_library(&json, &texts);
        let check = || {
            for (text, expected) in texts.iter().zip(&expected) {
                assert_eq!(&tokenizer.encode_spans(text).unwrap(), expected, "{text:?}");
                assert_eq!(tokenizer.encode(text).unwrap(), expected.0, "{text:?}");
            }
        };
        check();
        check();
        if json != small.to_string().into_bytes() {
            continue;
        }
        // More words than are remembered.
        for word in 0..140_000 {
            let letters = |at: u32| char::from(b'a' + (word / 26_u32.pow(at) % 26) as u8);
            tokenizer.encode(&(0..4).map(letters).collect::<String>()).unwrap();
        }
        check();
    }
}

#[test]
fn control_tokens_have_their_published_ids_and_reveal_the_template() {
    for Family { template, tokenizer, control, .. } in families() {
        for &(name, id) in *control {
            assert_eq!(tokenizer.id(name), Some(id));
        }
        assert_eq!(ChatTemplate::detect(tokenizer), Some(template.clone()));
        let stop = control.iter().find(|(name, _)| *name == template.stop_token()).unwrap().1;
        assert_eq!(template.stop_ids(tokenizer).unwrap(), [stop]);
    }
}

#[test]
fn a_template_for_another_tokenizer_is_refused_by_the_missing_token() {
    for Family { template, tokenizer, .. } in families() {
        for (_, other) in ChatTemplate::BUILT_IN {
            if other != *template {
                let error = other.render(tokenizer, "x", AnchorRule::LastPrompt).unwrap_err();
                assert!(matches!(error, Error::MissingToken { .. }), "{error}");
                assert!(error.to_string().contains(other.name()), "{error}");
            }
        }
    }
}

#[test]
fn rendered_prompts_spell_the_template_around_the_users_text_and_know_where_both_are() {
    for Family { template, tokenizer, control, .. } in families() {
        let (before, after) = frame(template);
        for text in TEXTS {
            for rule in [AnchorRule::LastPrompt, AnchorRule::RoleToken] {
                let prompt = template.render(tokenizer, text, rule).unwrap();
                // Qwen's tokenizer composes what arrives decomposed.
                let text = if template.name() == "qwen2" { text.replace("e\u{301}", "é") } else { text.into() };
                assert_eq!(spelled(tokenizer, &prompt.ids, control), format!("{before}{text}{after}"));
                assert_eq!(tokenizer.decode(&prompt.ids[prompt.content.clone()]).unwrap(), text, "the content range");
                let at_anchor = tokenizer.decode(&prompt.ids[prompt.anchor..=prompt.anchor]).unwrap();
                let (expected, from_end) = match (template.name(), rule) {
                    ("llama3", _) => ("\n\n", 1),
                    (_, AnchorRule::LastPrompt) => ("\n", 1),
                    (_, _) => ("assistant", 2),
                };
                assert_eq!((at_anchor.as_str(), prompt.ids.len() - prompt.anchor), (expected, from_end));
            }
        }
    }
}

#[test]
fn a_rendered_prompt_has_the_ids_of_the_whole_text_tokenised_at_once() {
    for Family { template, tokenizer, control, .. } in families() {
        let (before, after) = frame(template);
        for text in TEXTS {
            let mut expected = Vec::new();
            let mut rest = format!("{before}{text}{after}");
            while let Some((at, name, id)) =
                control.iter().filter_map(|&(name, id)| Some((rest.find(name)?, name, id))).min()
            {
                expected.extend(tokenizer.encode(&rest[..at]).unwrap());
                expected.push(id);
                rest.drain(..at + name.len());
            }
            expected.extend(tokenizer.encode(&rest).unwrap());
            assert_eq!(template.render(tokenizer, text, AnchorRule::LastPrompt).unwrap().ids, expected);
        }
    }
}

#[test]
fn no_control_token_of_any_tokenizer_can_be_typed() {
    let plain = small_model::tokenizer();
    let small = [(&ChatTemplate::PLAIN, &plain, small_model::CONTROL.len())];
    // Qwen calls only 14 of its 22 special; `<tool_call>` and the file marks are control tokens all the same.
    let expected = |template: &ChatTemplate| if template.name() == "llama3" { 256 } else { 22 };
    for (template, tokenizer, n) in
        families().iter().map(|f| (&f.template, &f.tokenizer, expected(&f.template))).chain(small)
    {
        let control = tokenizer.control_tokens();
        assert_eq!(control.len(), n);
        let ids: Vec<u32> = control.iter().map(|name| tokenizer.id(name).unwrap()).collect();
        let count = |found: &[u32]| found.iter().filter(|id| ids.contains(id)).count();
        let ordinary = count(&template.render(tokenizer, "x", AnchorRule::LastPrompt).unwrap().ids);
        for name in &control {
            for typed in [name.clone(), format!("a{name}b"), format!(" {name}\n{name}{name}")] {
                assert_eq!(count(&tokenizer.encode(&typed).unwrap()), 0, "{typed:?} became a control token");
                let prompt = template.render(tokenizer, &typed, AnchorRule::LastPrompt).unwrap();
                assert_eq!(count(&prompt.ids), ordinary, "{typed:?}");
                assert_eq!(tokenizer.decode(&prompt.ids[prompt.content.clone()]).unwrap(), typed);
            }
        }
    }
}

/// Texts whose characters a reader counts otherwise than Unicode does.
const CLUSTERS: [&str; 8] = [
    "น้ำที่นี่เย็นมาก กำลังดี",
    "क्षत्रिय ने स्त्री को कार्ड दिया",
    "السَّلامُ عَلَيْكُمْ وَرَحْمَةُ",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇰🇪🇹🇭🇮🇳❤️‍🔥",
    "e\u{301}a\u{328}\u{301}o\u{308}",
    "각각 ᄀ\u{1161}\u{11a8}",
    "two\r\nlines\r\n",
    "𠮷野家の葛\u{e0100}飾",
];

/// Everything that a stream hands out, `None` left out.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer);
    let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish());
    pieces
}

#[test]
fn a_stream_gives_whole_clusters_only_and_together_the_whole_text() {
    let plain = small_model::tokenizer();
    for tokenizer in families().iter().map(|f| &f.tokenizer).chain([&plain]) {
        let mut split = 0;
        for text in TEXTS.into_iter().chain(CLUSTERS) {
            let ids = tokenizer.encode(text).unwrap();
            let whole = tokenizer.decode(&ids).unwrap();
            let pieces = streamed(tokenizer, &ids);
            assert_eq!(pieces.concat(), whole);
            let mut at = 0;
            let boundaries: Vec<usize> = whole.grapheme_indices(true).map(|(at, _)| at).collect();
            for piece in &pieces {
                assert!(at == whole.len() || boundaries.contains(&at), "{text:?} was cut at {at}");
                at += piece.len();
            }
            split += ids.len() + 1 - pieces.len();
        }
        assert!(split > 20, "nothing was split over tokens, so nothing was proved");
    }
}

#[test]
fn a_stream_shows_no_byte_that_is_no_character_and_recovers_after_it() {
    let tokenizer = small_model::tokenizer();
    let byte = |byte: u8| {
        // The alphabet's order is that of its stand-ins, so a byte is found by a text that has it.
        let mut all = (0..256).filter(|&id| tokenizer.decode(&[id]).unwrap().as_bytes() == [byte]);
        all.next().unwrap()
    };
    let mut ids = tokenizer.encode("до").unwrap();
    ids.remove(1);
    ids.extend(tokenizer.encode("ม่น!").unwrap());
    assert_eq!(streamed(&tokenizer, &ids).concat(), "оม่น!");

    // Half a character at the end is never shown, nor are twenty that come to nothing.
    let thai = tokenizer.encode("กข").unwrap();
    assert_eq!(streamed(&tokenizer, &thai[..5]).concat(), "ก");
    let noise = [vec![byte(b'a')], vec![thai[0]; 20], thai, vec![byte(b'b')]].concat();
    let shown = streamed(&tokenizer, &noise).concat();
    assert_eq!(shown, "aกขb");
}

#[test]
fn a_long_answer_costs_as_much_per_token_as_a_short_one() {
    // Decoding all of it at every token would take hours.
    let tokenizer = small_model::tokenizer();
    let ids = tokenizer.encode(&CLUSTERS.concat().repeat(400)).unwrap();
    assert!(ids.len() > 100_000);
    assert_eq!(streamed(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
}

#[test]
fn a_control_token_in_an_answer_splits_no_character() {
    let tokenizer = small_model::tokenizer();
    let mut ids = tokenizer.encode("ก!").unwrap();
    ids.insert(2, tokenizer.id("<|user|>").unwrap());
    assert_eq!(streamed(&tokenizer, &ids).concat(), "ก!");
}
