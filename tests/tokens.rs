//! Proves that the real tokenizers give the published ids, that nobody can type a control token, that streamed text
//! comes in whole characters, and that templates say exactly what their models were trained on.

mod shared_data;
mod small_model;

use std::io::Read;
use std::path::PathBuf;
use std::sync::LazyLock;

use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::error::Error;
use cctuning::tokenizer::{TextStream, Tokenizer};

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

fn read_families() -> Vec<Family> {
    let Some(models) = shared("data/models") else { return Vec::new() };
    let family = |template, folder: &str, vectors: &str, control| {
        let zipped = std::fs::File::open(models.join(folder).join("tokenizer.json.gz")).unwrap();
        let mut json = Vec::new();
        flate2::read::GzDecoder::new(zipped).read_to_end(&mut json).unwrap();
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
fn frame(template: ChatTemplate) -> (&'static str, &'static str) {
    match template {
        ChatTemplate::LLAMA3 => (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ChatTemplate::QWEN2 => (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
             <|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        ChatTemplate::PLAIN => ("<|user|>", "<|assistant|>"),
    }
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

#[test]
fn control_tokens_have_their_published_ids_and_reveal_the_template() {
    for Family { template, tokenizer, control, .. } in families() {
        for &(name, id) in *control {
            assert_eq!(tokenizer.id(name), Some(id));
        }
        assert_eq!(ChatTemplate::detect(tokenizer), Some(*template));
        let stop = control.iter().find(|(name, _)| *name == template.stop_token()).unwrap().1;
        assert_eq!(template.stop_ids(tokenizer).unwrap(), [stop]);
    }
}

#[test]
fn a_template_for_another_tokenizer_is_refused_by_the_missing_token() {
    for Family { template, tokenizer, .. } in families() {
        for other in [ChatTemplate::LLAMA3, ChatTemplate::QWEN2, ChatTemplate::PLAIN] {
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
        let (before, after) = frame(*template);
        for text in TEXTS {
            for rule in [AnchorRule::LastPrompt, AnchorRule::RoleToken] {
                let prompt = template.render(tokenizer, text, rule).unwrap();
                // Qwen's tokenizer composes what arrives decomposed.
                let text = if *template == ChatTemplate::QWEN2 { text.replace("e\u{301}", "é") } else { text.into() };
                assert_eq!(spelled(tokenizer, &prompt.ids, control), format!("{before}{text}{after}"));
                assert_eq!(tokenizer.decode(&prompt.ids[prompt.content.clone()]).unwrap(), text, "the content range");
                let at_anchor = tokenizer.decode(&prompt.ids[prompt.anchor..=prompt.anchor]).unwrap();
                let (expected, from_end) = match (template, rule) {
                    (ChatTemplate::LLAMA3, _) => ("\n\n", 1),
                    (_, AnchorRule::LastPrompt) => ("\n", 1),
                    (_, AnchorRule::RoleToken) => ("assistant", 2),
                };
                assert_eq!((at_anchor.as_str(), prompt.ids.len() - prompt.anchor), (expected, from_end));
            }
        }
    }
}

#[test]
fn a_rendered_prompt_has_the_ids_of_the_whole_text_tokenised_at_once() {
    for Family { template, tokenizer, control, .. } in families() {
        let (before, after) = frame(*template);
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
fn a_control_token_that_a_user_types_stays_text() {
    let small = Family {
        template: ChatTemplate::PLAIN,
        tokenizer: small_model::tokenizer(),
        vectors: PathBuf::new(),
        control: &[("<|user|>", 256), ("<|assistant|>", 257), ("<|end|>", 258)],
    };
    for Family { template, tokenizer, control, .. } in families().iter().chain([&small]) {
        let ordinary = template.render(tokenizer, "x", AnchorRule::LastPrompt).unwrap();
        let count = |ids: &[u32]| ids.iter().filter(|id| control.iter().any(|(_, control)| control == *id)).count();
        for (name, id) in *control {
            for typed in [name.to_string(), format!("a{name}b"), format!(" {name}\n{name}")] {
                assert!(!tokenizer.encode(&typed).unwrap().contains(id), "{typed:?} became a control token");
                let prompt = template.render(tokenizer, &typed, AnchorRule::LastPrompt).unwrap();
                assert_eq!(count(&prompt.ids), count(&ordinary.ids), "{template:?} {typed:?}");
                assert_eq!(tokenizer.decode(&prompt.ids[prompt.content.clone()]).unwrap(), typed);
            }
        }
    }
}

#[test]
fn a_stream_gives_whole_characters_only_and_together_the_whole_text() {
    let plain = small_model::tokenizer();
    for (template, tokenizer) in
        families().iter().map(|f| (f.template, &f.tokenizer)).chain([(ChatTemplate::PLAIN, &plain)])
    {
        let mut split = 0;
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            let mut stream = TextStream::new(tokenizer);
            let mut shown = String::new();
            for &id in &ids {
                match stream.push(id).unwrap() {
                    Some(fresh) => {
                        assert!(!fresh.is_empty() && !fresh.contains('\u{FFFD}'), "{template:?} {text:?}: {fresh:?}");
                        shown += &fresh;
                    }
                    None => split += 1,
                }
            }
            assert_eq!(shown, tokenizer.decode(&ids).unwrap(), "{template:?}");
        }
        assert!(split > 5, "{template:?}: no character was split over tokens, so nothing was proved");
    }
}

#[test]
fn a_stream_recovers_after_bytes_that_are_no_character() {
    let tokenizer = small_model::tokenizer();
    let mut ids = tokenizer.encode("до").unwrap();
    ids.remove(1);
    ids.extend(tokenizer.encode("ม่น!").unwrap());
    let mut stream = TextStream::new(&tokenizer);
    let shown: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(shown, tokenizer.decode(&ids).unwrap());
    assert!(shown.ends_with("ม่น!"), "{shown}");
}
