//! Prompts of ten languages, against the strings and ids that the published templates and tokenizers give in
//! `transformers` 5.23 with jinja2 3.1: the number of ids, and the first 16 digits of the sha256 of `id,id,...`.

use cctuning::chat::{AnchorRule, ChatTemplate, History};
use cctuning::error::Error;
use cctuning::tokenizer::{TextStream, Tokenizer};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{mistral, mistral_json, real, real_json, small_model};

pub const SENTENCES: [&str; 10] = [
    "Which river flows past the old mill?",
    "أيُّ نهرٍ يمرُّ بالطاحونة القديمة؟",
    "Welcher Fluss fließt an der alten Mühle vorbei?",
    "Ποιο ποτάμι περνά δίπλα από τον παλιό μύλο;",
    "पुरानी चक्की के पास से कौन-सी नदी बहती है?",
    "Какая река течёт мимо старой мельницы?",
    "Ni mto gani unaopita karibu na kinu cha zamani?",
    "แม่น้ำสายใดไหลผ่านโรงสีเก่า?",
    "Eski değirmenin yanından hangi nehir geçiyor?",
    "哪条河流经那座老磨坊？",
];

type Ids = [(usize, &'static str); 10];

const LLAMA3: Ids = [
    (18, "366d92489c29b611"),
    (29, "702fe50a3b0d57f6"),
    (28, "587b3f0f698e715e"),
    (31, "642cdc1504cd8366"),
    (34, "950c0de46d0d9eeb"),
    (24, "139618cebc0b8be0"),
    (27, "b4f974b7545ce3fa"),
    (25, "f162cce716f326e7"),
    (23, "c909db6212eb9dcd"),
    (21, "0b6be5ac92a75976"),
];

/// Of Llama 3.1's own template, which begins with a system message about dates.
pub const LLAMA31_OWN: Ids = [
    (43, "de89c0123f4c7d3d"),
    (54, "6b98d2f650d99b39"),
    (53, "bbe62f7c5c3aa628"),
    (56, "1f8172f5bd961528"),
    (59, "b763f0f0633655ab"),
    (49, "d3939b4f3d788124"),
    (52, "2d2cbb3717336092"),
    (50, "f59baf19b7fca28f"),
    (48, "d5f2453399f463bf"),
    (46, "4e7d3b6b8654577d"),
];

const QWEN2: Ids = [
    (37, "e517f85a3da12dd5"),
    (49, "515fb7dbcbd16d20"),
    (47, "61ae8575d5927f89"),
    (65, "6e742478e0edf3b1"),
    (68, "6c7dc111e76a1fb1"),
    (45, "1afde58dbc083e1e"),
    (46, "857dc52e047614a1"),
    (43, "591d588baed0c653"),
    (44, "c2cd5881067db84c"),
    (39, "0684554ebcdea154"),
];

pub fn assert_ids(template: &ChatTemplate, tokenizer: &Tokenizer, golden: &Ids) {
    for (sentence, (n, digest)) in SENTENCES.iter().zip(golden) {
        let prompt = template.render(tokenizer, sentence, AnchorRule::LastPrompt).unwrap();
        let text = prompt.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let found: String = Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((prompt.ids.len(), &*found), (*n, *digest), "{sentence}");
        assert_eq!(tokenizer.decode(&prompt.ids[prompt.content]).unwrap(), *sentence);
    }
}

#[test]
fn built_in_templates_give_the_published_ids_in_ten_languages() {
    for (folder, template, golden) in
        [("llama3.1", ChatTemplate::LLAMA3, LLAMA3), ("qwen2.5", ChatTemplate::QWEN2, QWEN2)]
    {
        if let Some(tokenizer) = real(folder) {
            assert_ids(&template, &tokenizer, &golden);
        }
    }
}

/// The string around the user's text and the ids of the parts that never change.
#[test]
fn the_string_of_a_template_and_the_ids_of_its_fixed_parts_are_the_published_ones() {
    let strings = [
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nX<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "qwen2",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\nX<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("mistral", "<s>[INST] X[/INST]"),
        ("plain", "<|user|>X<|assistant|>"),
    ];
    for (name, expected) in strings {
        let template: ChatTemplate = name.parse().unwrap();
        assert_eq!([&*template.before, "X", &*template.after, &*template.answer_tag].concat(), expected);
    }
    let fixed: [(_, _, &[u32], &[u32]); 2] = [
        ("llama3.1", ChatTemplate::LLAMA3, &[128000, 128006, 882, 128007, 271], &[128009, 128006, 78191, 128007, 271]),
        (
            "qwen2.5",
            ChatTemplate::QWEN2,
            &[
                151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950,
                17847, 13, 151645, 198, 151644, 872, 198,
            ],
            &[151645, 198, 151644, 77091, 198],
        ),
    ];
    for (folder, template, head, tail) in fixed {
        let Some(tokenizer) = real(folder) else { continue };
        for sentence in SENTENCES {
            let ids = template.render(&tokenizer, sentence, AnchorRule::LastPrompt).unwrap().ids;
            assert!(ids.starts_with(head) && ids.ends_with(tail), "{ids:?}");
        }
    }
}

#[test]
fn a_mistral_prompt_has_the_ids_that_the_library_gives_the_whole_string() {
    let tokenizer = mistral();
    let library = tokenizers::Tokenizer::from_bytes(mistral_json().to_string()).unwrap();
    for sentence in SENTENCES.into_iter().chain(["the inn", "  the", "in\nthe\n"]) {
        let prompt = ChatTemplate::MISTRAL.render(&tokenizer, sentence, AnchorRule::LastPrompt).unwrap();
        let expected = library.encode(format!("<s>[INST] {sentence}[/INST]"), false).unwrap();
        assert_eq!(prompt.ids, expected.get_ids(), "{sentence}");
        assert_eq!(tokenizer.decode(&prompt.ids).unwrap(), sentence, "one space is the template's");
        // The template's space is a token of its own or the beginning of the first word.
        assert!([2, 3].contains(&prompt.content.start) && prompt.content.end == prompt.ids.len() - 1);
        assert_eq!(streamed(&tokenizer, &prompt.ids), sentence);
    }
    assert_eq!(ChatTemplate::detect(&tokenizer), Some(ChatTemplate::MISTRAL));
    assert_eq!(
        streamed(&tokenizer, &tokenizer.encode("กขคน?").unwrap()),
        "กขคน?",
        "letters in bytes beside whole ones"
    );
}

#[test]
fn a_conversation_has_the_ids_that_the_library_gives_the_whole_string() {
    let said = ["Be brief.", "Welcher Fluss?", "แม่น้ำ", "Why?"];
    let strings = [
        (
            "llama3.1",
            ChatTemplate::LLAMA3,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n0<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1\
             <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n3\
             <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "qwen2.5",
            ChatTemplate::QWEN2,
            "<|im_start|>system\n0<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n\
             <|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n",
        ),
        // The space after a control token is the one that its library would put there.
        ("mistral", ChatTemplate::MISTRAL, "<s>[INST] 1[/INST] 2</s>[INST] 3[/INST]"),
    ];
    for (name, template, string) in strings {
        let json = if name == "mistral" { Some(mistral_json().to_string().into_bytes()) } else { real_json(name) };
        let Some(json) = json else { continue };
        let string =
            said.iter().enumerate().fold(string.to_owned(), |all, (at, text)| all.replace(&at.to_string(), text));
        let library = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let expected = library.encode(string, false).unwrap();
        let exchanges = [[said[1], said[2]].map(String::from)];
        let history = History { system: (name != "mistral").then_some(said[0]), exchanges: &exchanges };
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        for rule in [AnchorRule::LastPrompt, AnchorRule::RoleToken, AnchorRule::BeforeAnswerTag] {
            let prompt = template.render_after(&tokenizer, history, said[3], rule).unwrap();
            assert_eq!(prompt.ids, expected.get_ids(), "{name}");
            assert_eq!(tokenizer.decode(&prompt.ids[prompt.content.clone()]).unwrap().trim(), said[3]);
            // The anchor is that of the last turn.
            let alone = template.render(&tokenizer, said[3], rule).unwrap();
            assert_eq!(prompt.ids.len() - prompt.anchor, alone.ids.len() - alone.anchor, "{name}");
        }
    }
}

#[test]
fn what_a_template_has_no_place_for_is_refused_by_name() {
    let tokenizer = small_model::tokenizer();
    let once = ChatTemplate { next: None, ..ChatTemplate::PLAIN };
    let exchanges = [["a", "b"].map(String::from)];
    for (history, expected) in [
        (History { system: Some("x"), exchanges: &[] }, "no place for a system text"),
        (History { system: None, exchanges: &exchanges }, "no place for a second question"),
    ] {
        let error = once.render_after(&tokenizer, history, "c", AnchorRule::LastPrompt).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("custom"), "{error}");
    }
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = TextStream::new(tokenizer);
    let shown: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    shown + &stream.finish()
}

#[test]
fn anchors_stand_where_the_paper_and_the_released_code_put_them() {
    let tokenizer = small_model::tokenizer();
    let at = |template: &ChatTemplate, rule| {
        let prompt = template.render(&tokenizer, "x y", rule).unwrap();
        (prompt.anchor, prompt.ids)
    };
    for (name, template) in ChatTemplate::BUILT_IN {
        let (anchor, ids) = at(&template, AnchorRule::LastPrompt);
        assert_eq!(anchor, ids.len() - 1);
        let (anchor, ids) = at(&template, AnchorRule::BeforeAnswerTag);
        let before_tag = [&*template.before, "x y", &*template.after].concat();
        let tag = ids[anchor + 1..].iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect::<String>();
        let spoken = |text: &str| small_model::CONTROL.iter().fold(text.to_owned(), |text, c| text.replace(c, ""));
        assert_eq!(tag, spoken(&template.answer_tag), "{name}");
        assert_eq!(tokenizer.decode(&ids[..=anchor]).unwrap(), spoken(&before_tag), "{name}");
        let (anchor, ids) = at(&template, AnchorRule::RoleToken);
        let expected = match name {
            // The byte tokenizer's `assistant` ends in t.
            "qwen2" => tokenizer.encode("t").unwrap()[0],
            "mistral" => tokenizer.encode("y").unwrap()[0],
            "llama3" => tokenizer.encode("\n").unwrap()[0],
            _ => tokenizer.id("<|assistant|>").unwrap(),
        };
        assert_eq!(ids[anchor], expected, "{name}");
    }
    let custom = ChatTemplate { role_token_from_end: None, ..ChatTemplate::PLAIN };
    let error = custom.render(&tokenizer, "x", AnchorRule::RoleToken).unwrap_err();
    assert!(matches!(error, Error::NoRoleToken { .. }), "{error}");
}

#[test]
fn a_built_in_template_is_stored_by_its_name_and_any_other_spelt_out() {
    for (name, template) in ChatTemplate::BUILT_IN {
        assert_eq!(serde_json::to_value(&template).unwrap(), json!(name));
        assert_eq!(serde_json::from_value::<ChatTemplate>(json!(name)).unwrap(), template);
    }
    let custom = ChatTemplate { before: "<|user|>Q: ".into(), trim: true, ..ChatTemplate::PLAIN };
    let stored = serde_json::to_value(&custom).unwrap();
    assert_eq!(stored["before"], "<|user|>Q: ");
    assert_eq!(serde_json::from_value::<ChatTemplate>(stored.clone()).unwrap(), custom);
    let prompt = custom.render(&small_model::tokenizer(), " x ", AnchorRule::LastPrompt).unwrap();
    assert_eq!(small_model::tokenizer().decode(&prompt.ids).unwrap(), "Q: x");

    let refused = |value| serde_json::from_value::<ChatTemplate>(value).unwrap_err().to_string();
    assert!(refused(json!("gemma")).contains("gemma") && refused(json!("gemma")).contains("mistral"));
    assert!(refused(json!(7)).contains("name of a chat template"));
    let mut unknown = stored.clone();
    unknown["jinja"] = json!("x");
    assert!(refused(unknown).contains("jinja"));
    let mut short = stored;
    short.as_object_mut().unwrap().remove("stop");
    assert!(refused(short).contains("stop"));
}
