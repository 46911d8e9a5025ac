//! Proves of the verbs that decode: a conversation obeys its commands and survives what it cannot answer, Ctrl-C ends an
//! answer and not the conversation, and a transplant is the injection that it claims to be, controls included.

mod small_model;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, read_sync};
use cctuning::anchor::Anchor;
use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::Storage;
use cctuning::config::Family;
use cctuning::generate::{ConnectionOptions, Decoding, GenerateOptions, Source};
use cctuning::model::TokenBatch;
use cctuning::sampling::Sampling;
use cctuning::tap::{Injection, Site, Write as Way};
use serde_json::Value;
use small_model::{assert_close, config, folder, model, prompt, values, write_folder};
use trainer::interrupt::AnswerInterrupt;
use trainer::sample::Sample;
use trainer::transplant::{Donor, Patient};

/// Runs the program in `dir` with these lines as its input.
fn trainer(dir: &Path, arguments: &[&str], lines: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .env("BURN_DEVICE", "flex")
        .current_dir(dir)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever refuses its arguments reads nothing and may be gone before this is written.
    child.stdin.take().unwrap().write_all(lines.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a conversation in JSON mode answered, and what it said beside.
fn conversation(dir: &Path, more: &[&str], lines: &str) -> (Vec<Value>, String) {
    let arguments = ["generate", "--folder", "model", "--interactive", "--json", "--max-new-tokens", "6"];
    let output = trainer(dir, &[&arguments[..], more].concat(), lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (answers, text(&output.stderr))
}

#[test]
fn a_conversation_answers_each_line_by_itself_and_obeys_its_commands() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let (answers, said) = conversation(
        dir.path(),
        &[],
        "Eins?\n\nZwei?\n/source identity\nEins?\n/layer 2\nEins?\n/layer auto\n/source auto\nEins?\n/quit\nDrei?\n",
    );
    assert_eq!(answers.len(), 5, "an empty line asks nothing, and nothing is asked after /quit: {said}");
    let layer = |answer: &Value| answer["connection"]["layer"].as_u64();
    assert_eq!([0, 1, 4].map(|at| layer(&answers[at])), [None; 3], "this folder has no Transform Matrix");
    assert!(layer(&answers[2]).is_some());
    assert_eq!(layer(&answers[3]), Some(1));
    assert_eq!(answers[0]["tokens"], answers[4]["tokens"], "what was said before is no part of a prompt");
    assert_ne!(answers[0]["tokens"], answers[1]["tokens"]);
    assert!(said.contains("source identity, layer 2"), "{said}");

    let (alone, _) = conversation(dir.path(), &["--source", "identity", "--layer", "2"], "Eins?");
    assert_eq!(alone, [answers[3].clone()], "a last line without an end is asked too");
}

#[test]
fn what_a_conversation_cannot_do_costs_one_line() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let long = "palabra ".repeat(40);
    let lines = format!(
        "/layer 9\n/layer x\n/source sideways\n/model vanilla\n/dance\n/source parallel\nEins?\n/english One?\nEins?\n\
         {long}\n/source transform\nEins?\n/help\n/source none\n /quit\n"
    );
    let (answers, said) = conversation(dir.path(), &[], &lines);
    for expected in [
        "layer 9: this model has layers 1 to 3",
        "\"x\" is no layer",
        "no source \"sideways\"",
        "a bundle has two",
        "no command /dance",
        "say it with /english",
        "the prompt has 321 tokens",
        "trainer fit",
        "Ctrl-D leaves",
    ] {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    assert_eq!(answers.len(), 2, "the twin was given once, and a slash behind a space is a prompt: {answers:?}");
    assert!(answers[0]["connection"].is_object() && answers[1]["connection"].is_null());
}

#[test]
fn a_shuffled_answer_takes_the_prompt_before_or_the_one_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    write_folder(&path, 1);
    let d = config(Family::Llama, true).d_model;
    let matrix: Vec<f32> = (0..d * d).map(|at| ((at * 7919) % 97) as f32 / 97.0 - 0.5).collect();
    let bytes = small_model::transform_file(&matrix, d);
    fs::write(path.join(trainer::model_folder::TRANSFORM_FILE), bytes).unwrap();

    let lines = "Drei?\n/other Eins?\nZwei?\n/other\nEins?\nZwei?\nDrei?\nZwei?\n";
    let (answers, said) = conversation(dir.path(), &["--source", "shuffled"], lines);
    assert!(said.contains("ask something else first"), "the first prompt has none before it: {said}");
    let [given, _, after_one, _, after_three] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(given, after_one, "both take the activations of `Eins?`");
    assert_ne!(given["connection"], after_three["connection"]);
}

#[test]
fn another_template_asks_as_a_folder_that_has_it() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    write_folder(&dirs[0].path().join("model"), 1);
    let of_llama = folder(config(Family::Llama, true), ChatTemplate::LLAMA3, 1);
    of_llama.save_model(&of_llama.model, &dirs[1].path().join("model"), Storage::F32).unwrap();
    let answer = |at: usize, more: &[&str]| conversation(dirs[at].path(), more, "Eins?").0;
    let (plain, llama) = (answer(0, &[]), answer(1, &[]));
    assert_ne!(plain, llama);
    assert_eq!(answer(0, &["--template", "llama3"]), llama);
    assert_eq!(answer(1, &["--template", "plain"]), plain);
}

#[test]
fn without_a_terminal_it_must_be_said_what_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    let output = trainer(dir.path(), &["generate", "--folder", "model"], "Eins?\n");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("--interactive"), "{}", text(&output.stderr));
}

#[test]
fn an_interrupt_stops_the_answer_that_runs_and_no_later_one() {
    let interrupt = AnswerInterrupt::install().unwrap();
    for _ in 0..2 {
        let answering = interrupt.answering();
        assert!(!answering.stopped());
        let sent = Command::new("kill").args(["-INT", &std::process::id().to_string()]).status().unwrap();
        assert!(sent.success());
        let patience = Instant::now();
        while !answering.stopped() {
            assert!(patience.elapsed() < Duration::from_secs(60), "the signal never arrived");
            std::thread::yield_now();
        }
    }
}

fn sample(seed: u64, answer: Vec<u32>) -> Sample {
    let (prompt, english) = (prompt(14, 2, seed), prompt(9 + seed as usize % 3, 1, seed + 50));
    Sample { id: format!("r{seed}"), lang: "de".into(), prompt, english, answer }
}

#[test]
fn a_transplant_is_a_whole_pass_with_the_other_prompts_activation_written_at_the_last_token() {
    for family in [Family::Llama, Family::Qwen2] {
        let config = config(family, false);
        let model = model(&config, 11);
        let options = GenerateOptions {
            max_new_tokens: 4,
            sampling: Sampling::Greedy,
            source: Source::None,
            connection: ConnectionOptions::default(),
            stop_ids: Vec::new(),
        };
        let own = sample(1, Vec::new()).prompt;
        let greedy = Decoding::start(&model, &config, None, &[&own], &[], options).unwrap();
        let answer = read_sync(greedy.finish()).unwrap().remove(0);
        let (sample, unrelated) = (sample(1, answer.clone()), sample(2, vec![5]));
        let mut patient = Patient::new(&model, &config, &sample, &unrelated).unwrap();
        assert_eq!(patient.vanilla().exact, 1.0, "the greedy answer is not its own exact answer");

        let last = sample.prompt.ids.len() - 1;
        let whole = |injection: Option<&Injection>| {
            let ids: Vec<u32> = sample.prompt.ids.iter().chain(&answer[..3]).copied().collect();
            let stream = model.forward(&TokenBatch::new(&[&ids], &model.device()), injection).narrow(1, last, 4);
            let said = values(&log_softmax(model.logits(stream.squeeze_dim(0)), 1));
            answer.iter().enumerate().map(|(at, &id)| said[at * config.vocab_size + id as usize]).sum::<f32>()
        };
        let vanilla = whole(None);
        assert_close(&[patient.vanilla().log_probability as f32], &[vanilla], 1e-3, "vanilla");

        let read = |ids: &[u32]| {
            let tokens = TokenBatch::new(&[ids], &model.device());
            model.activations(&tokens, &Anchor::new(vec![ids.len() - 1]), Site::FeedForward).0
        };
        let donors = [
            (Donor::English, read(&sample.english.ids)),
            (Donor::Itself, read(&sample.prompt.ids)),
            (Donor::Unrelated, read(&unrelated.english.ids)),
        ];
        let mut inexact = 0;
        for (donor, given) in donors {
            for write in [Way::Replace, Way::Add, Way::Interpolate(0.3)] {
                for target in 0..config.n_layers {
                    let scores = patient.transplanted(donor, target, write);
                    assert_eq!(scores.len(), config.n_layers);
                    for (source, score) in scores.iter().enumerate() {
                        let vector: Tensor<2> = given.clone().narrow(1, source, 1).squeeze_dim(1);
                        let injection = Injection { anchor: Anchor::new(vec![last]), vector, layer: target, write };
                        let expected = whole(Some(&injection));
                        let what = format!("{family:?} {donor:?} {write:?} {source} -> {target}");
                        assert_close(&[score.log_probability as f32], &[expected], 2e-3, &what);
                        inexact += usize::from(score.exact == 0.0);
                        if donor == Donor::Itself && source == target && write != Way::Add {
                            assert_close(&[score.log_probability as f32], &[vanilla], 2e-3, &what);
                            assert_eq!(score.exact, 1.0, "{what}: its own value changes nothing");
                        }
                    }
                }
            }
        }
        assert!(inexact > 0, "no transplant changes an answer");
    }
}

#[test]
fn the_transplant_verb_leaves_tables_and_a_picture_for_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let row = |id: usize, lang: &str, ask: &str| {
        format!(
            r#"{{"id":"r{id}","task":"qa","lang":"{lang}","instruction":"{ask}","instruction_en":"What {id}?","output":"So {id}"}}"#
        )
    };
    let rows = [row(1, "es", "¿Qué?"), row(2, "en", "What 2?"), row(3, "de", "Was?"), row(4, "de", "Wie?")];
    fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    let run = |more: &[&str]| {
        trainer(dir.path(), &[&["transplant", "model", "--data", "rows.jsonl", "--out", "out"], more].concat(), "")
    };
    let output = run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("3 prompts;"), "English rows have no twin: {}", text(&output.stdout));

    let json: Value = serde_json::from_slice(&fs::read(dir.path().join("out/transplant.json")).unwrap()).unwrap();
    assert_eq!((json["prompts"].as_u64(), json["asked"].as_u64()), (Some(3), Some(3)));
    let grids = json["grids"].as_array().unwrap();
    assert_eq!(grids.len(), 9);
    let vanilla = json["vanilla"]["log_probability"].as_f64().unwrap();
    let own = grids.iter().find(|grid| grid["mode"] == "replace" && grid["donor"] == "itself").unwrap();
    for layer in 0..3 {
        let same = own["cells"][layer][layer]["log_probability"].as_f64().unwrap();
        assert!((same - vanilla).abs() < 1e-3, "replacing a value by itself: {same} {vanilla}");
    }
    let table = fs::read_to_string(dir.path().join("out/transplant.txt")).unwrap();
    for part in
        ["replace, from English twin: gain", "interpolate, share 0.5, from unrelated", "add, from itself: exact"]
    {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
    for mode in ["replace", "add", "interpolate"] {
        let svg = fs::read_to_string(dir.path().join(format!("out/transplant-{mode}.svg"))).unwrap();
        assert_eq!(svg.matches("<rect class=\"u\"").count() + svg.matches("<rect class=\"d\"").count(), 27 + 11);
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    let refused = |more: &[&str]| {
        let output = run(more);
        assert!(!output.status.success());
        text(&output.stderr)
    };
    assert!(refused(&["--share", "1.5"]).contains("--share 1.5"));
    assert!(refused(&["--limit", "1", "--set", "data.cutoff=1"]).contains("data.cutoff"));
    fs::write(dir.path().join("rows.jsonl"), row(1, "en", "What 1?")).unwrap();
    assert!(refused(&[]).contains("no row in another language than English"));
}
