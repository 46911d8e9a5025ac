//! Ten thousand damaged tokenizers and templates each. A seed gives its input again.

use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::tokenizer::{TextStream, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use trainer::jinja::derive;

use crate::jinja::{DATED, source};
use crate::{mistral_json, small_model};

const INPUTS: u64 = 10_000;

/// One to four changes of bytes.
fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len().max(1));
        let to = (at + rng.random_range(1..200)).min(bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..to)),
            3 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            4 => drop(bytes.splice(at..to, b"99999999999".iter().copied())),
            _ => {
                let words: [&[u8]; 8] = [b"{{", b"%}", b" * ", b"\\u0000", b"null", b"[[[[", b"(?:a+)+$", b"\"\""];
                let word = words[rng.random_range(0..words.len())];
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
}

/// Puts something unexpected at one place of a JSON value.
fn unsettle(value: &mut Value, rng: &mut ChaCha8Rng) {
    let deeper = rng.random_range(0..10) > 0;
    match value {
        // The vocabulary holds most of the places and is the dullest of them.
        Value::Object(fields) if deeper && fields.contains_key("merges") && rng.random() => {
            fields.values_mut().next_back().into_iter().for_each(|last| unsettle(last, rng));
        }
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let at = rng.random_range(0..fields.len());
            if let Some((_, inner)) = fields.iter_mut().nth(at) {
                unsettle(inner, rng);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            unsettle(&mut items[at], rng);
        }
        // Half the changes keep the type, so that they get past the parser.
        other if rng.random() => match other {
            Value::Number(_) => *other = json!(rng.random_range(0..300)),
            Value::String(text) => match rng.random_range(0..3) {
                0 => text.push_str("▁x"),
                1 => drop(text.pop()),
                _ => *text = text.repeat(2),
            },
            Value::Bool(value) => *value = !*value,
            Value::Array(items) if !items.is_empty() => {
                let item = items.remove(rng.random_range(0..items.len()));
                if rng.random() {
                    items.extend([item.clone(), item]);
                }
            }
            Value::Object(fields) if !fields.is_empty() => {
                let name = fields.keys().nth(rng.random_range(0..fields.len())).cloned();
                name.and_then(|name| fields.remove(&name));
            }
            _ => {}
        },
        other => {
            let odd = [
                json!(null),
                json!(-1),
                json!(u32::MAX),
                json!(u64::MAX),
                json!(1e300),
                json!(""),
                json!("▁"),
                json!([]),
                json!({}),
                json!(true),
                json!({"type": "Sequence", "decoders": []}),
                json!({"Regex": "(a|b|)+"}),
                json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}),
                json!({"type": "WordLevel", "vocab": {}}),
                json!({"type": "Fixed", "Fixed": 4_000_000_000_u32}),
                json!("a".repeat(5000)),
                json!([["a", "b"]]),
            ];
            *other = odd[rng.random_range(0..odd.len())].clone();
        }
    }
}

/// Uses a tokenizer in every way; errors are welcome.
fn exercise(tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) {
    for text in ["", "a", "Which ríver ไหล 👩‍👩‍👧? <|end|> [INST]", "\u{0}\u{FFFD} \n\t"] {
        if let Ok((ids, spans)) = tokenizer.encode_spans(text) {
            assert!(ids.len() == spans.len() && ids.len() <= 100_000, "{} tokens of {text:?}", ids.len());
        }
        for (_, template) in ChatTemplate::BUILT_IN {
            for rule in [AnchorRule::LastPrompt, AnchorRule::RoleToken, AnchorRule::BeforeAnswerTag] {
                if let Ok(mut prompt) = template.render(tokenizer, text, rule) {
                    assert!(prompt.anchor < prompt.ids.len() && prompt.content.end <= prompt.ids.len());
                    prompt.truncate(prompt.ids.len() - 1).ok();
                }
            }
        }
    }
    let mut stream = TextStream::new(tokenizer);
    for _ in 0..16 {
        let id = if rng.random_range(0..8) == 0 { rng.random() } else { rng.random_range(0..400) };
        stream.push(id).ok();
    }
    assert!(!stream.finish().contains('\u{FFFD}'));
}

/// Found below by mutation; both are slices beyond a text's end in `tokenizers` 0.23.2.
#[test]
fn what_the_tokenizer_library_panics_over_is_an_error_that_says_so() {
    let mut json = mistral_json();
    json["model"]["continuing_subword_prefix"] = json!("longer than any piece");
    let error = Tokenizer::from_json(json.to_string().as_bytes()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("gave up"), "{error}");
    let mut json = mistral_json();
    json["decoder"]["decoders"][3]["stop"] = json!(1);
    json["decoder"]["decoders"][1]["type"] = json!("Fuse");
    json["decoder"]["decoders"][0]["content"] = json!("");
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let space = tokenizer.id("▁▁").unwrap();
    assert!(tokenizer.decode(&[space]).unwrap_err().to_string().contains("gave up"));
}

#[test]
fn a_tokenizer_that_would_pad_cut_or_draw_lots_is_tamed() {
    let mut json = small_model::tokenizer_json();
    json["padding"] = json!({"strategy": {"Fixed": 4_000_000_000_u32}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    json["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("seventeen letters").unwrap().len(), 17);
    json["model"]["dropout"] = json!(0.5);
    let error = Tokenizer::from_json(json.to_string().as_bytes()).err().unwrap().to_string();
    assert!(error.contains("dropout"), "{error}");
}

#[test]
fn ten_thousand_mutated_tokenizers_do_no_harm() {
    let bases = [small_model::tokenizer_json(), mistral_json()];
    let (mut read, mut gave_up) = (0, Vec::new());
    for seed in 0..INPUTS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut json = bases[(seed % 2) as usize].clone();
        if seed % 3 > 0 {
            unsettle(&mut json, &mut rng);
        }
        let mut bytes = json.to_string().into_bytes();
        if seed % 3 < 1 {
            mutate(&mut bytes, &mut rng);
        }
        match Tokenizer::from_json(&bytes) {
            Ok(tokenizer) => {
                read += 1;
                exercise(&tokenizer, &mut rng);
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("tokenizer.json"), "seed {seed}: {error}");
                if error.contains("gave up") {
                    gave_up.push((seed, error));
                }
            }
        }
    }
    println!("{read} were read; the library panicked over {}: {:?}", gave_up.len(), gave_up.first());
    assert!((1000..9000).contains(&read), "{read} of {INPUTS} were read: too few or too many to prove anything");
}

#[test]
fn ten_thousand_mutated_templates_do_no_harm() {
    let tokenizer = small_model::tokenizer();
    let mut read = 0;
    for seed in 0..INPUTS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = DATED.as_bytes().to_vec();
        mutate(&mut bytes, &mut rng);
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(template) = derive(&source(&text), &tokenizer) {
            read += 1;
            if let Ok(prompt) = template.render(&tokenizer, "What?", AnchorRule::BeforeAnswerTag) {
                assert!(prompt.anchor < prompt.ids.len(), "seed {seed}");
            }
        }
    }
    assert!((500..9500).contains(&read), "{read} of {INPUTS} were read: too few or too many to prove anything");
}
