//! Proves what `trainer data check` counts, what `data build` adds, and that kept tokens are those that would be made.

mod shared_data;
mod small_model;

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cctuning::chat::{AnchorRule, ChatTemplate, History};
use cctuning::tokenizer::Tokenizer;
use serde_json::Value;
use shared_data::shared;
use small_model::{tokenizer, tokenizer_json, write_folder};
use trainer::data::build::{english, translation};
use trainer::data::distill::{Distill, halves};
use trainer::data::overlap::{Against, Shared};
use trainer::data::{Reading, Row, read_rows};
use trainer::sample::Renderer;
use trainer::token_cache;

fn row(id: usize, lang: &str, instruction: &str, english: &str, output: &str) -> Row {
    Row {
        id: id.to_string(),
        task: "qa".into(),
        lang: lang.into(),
        instruction: instruction.into(),
        instruction_en: english.into(),
        output: output.into(),
        output_en: Some(format!("{output} in English")),
        ..Row::default()
    }
}

fn write(dir: &Path, name: &str, rows: &[Row]) -> PathBuf {
    let lines: String = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
    let path = dir.join(name);
    std::fs::write(&path, lines).unwrap();
    path
}

fn trainer(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer")).current_dir(dir).args(arguments).output().unwrap()
}

#[test]
fn a_check_counts_every_kind_of_row_and_fails_on_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let sets = dir.path().join("sets/Quiz/split");
    std::fs::create_dir_all(&sets).unwrap();
    let run = "one two three four five six seven eight nine ten eleven twelve thirteen";
    let prompts = format!("{{\"instruction\":\"Where is it, then?\"}}\n{{\"instruction\":\"Well: {run}!\"}}\n");
    std::fs::write(sets.join("en.json"), prompts).unwrap();
    let rows = [
        row(1, "en", "a b", "a b", "c"),
        row(2, "es", "¿dónde?", "where IS it then", "aquí"),
        row(3, "es", "¿dónde?", "where IS it then", "aquí"),
        row(4, "sw", "same", "same", "d"),
        row(5, "sw", "moja", &format!("now {run} fourteen"), "e"),
    ];
    let file = write(dir.path(), "rows.jsonl", &rows);
    let good = trainer(dir.path(), &["data", "check", "rows.jsonl", "--against", "sets", "--json"]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let report: Value = serde_json::from_slice(&good.stdout).unwrap();
    for (key, expected) in [("rows", 5), ("faults", 0), ("duplicates", 1), ("identical_twins", 1), ("missing_twins", 0)]
    {
        assert_eq!(report[key], expected, "{key}");
    }
    assert_eq!(report["languages"]["es"], 2);
    assert_eq!((&report["overlap"]["prompts"], &report["overlap"]["runs"]), (&2.into(), &1.into()));
    assert_eq!(report["overlap"]["benchmarks"]["Quiz"], 3);

    let list: Vec<Value> = rows.iter().map(|row| serde_json::to_value(row).unwrap()).collect();
    std::fs::write(dir.path().join("list.json"), serde_json::to_string_pretty(&list).unwrap()).unwrap();
    let listed = trainer(dir.path(), &["data", "check", "list.json", "--against", "sets", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap(), report);
    std::fs::write(dir.path().join("empty.jsonl"), "").unwrap();

    let mut text = std::fs::read_to_string(&file).unwrap();
    text += "{\"lang\":\"sw\",\"instruction\":\"x\",\"output\":\"y\"}\n";
    text += &"{\"lang\":\"sw\",\"instruction\":\"x\",\"instruction_en\":3,\"output\":[]}\n".repeat(40);
    std::fs::write(&file, text).unwrap();
    let bad = trainer(dir.path(), &["data", "check", "rows.jsonl", "--show", "3"]);
    let printed = String::from_utf8(bad.stdout).unwrap();
    assert!(!bad.status.success());
    assert!(printed.contains("rows.jsonl:6:1: `instruction_en`: expected the English twin"), "{printed}");
    assert!(printed.contains("... and 78 faults more"), "{printed}");
    assert!(printed.contains("5 rows without a fault, 81 faults"), "{printed}");
    assert!(printed.contains("1 missing English twins"), "{printed}");
    let bad = trainer(dir.path(), &["data", "check", "rows.jsonl", "empty.jsonl", "--show", "100"]);
    let printed = String::from_utf8(bad.stdout).unwrap();
    assert!(printed.contains("empty.jsonl:1:1: expected at least one row, found none"), "{printed}");
}

/// The overlap of one row's instruction with evaluation sets of these prompts.
fn overlap(benchmark: &Against, instruction: &str) -> (bool, bool) {
    let Shared { prompt, run } = benchmark.shared(instruction, &mut Vec::new());
    (prompt.is_some(), run.is_some())
}

#[test]
fn what_leaked_is_found_in_any_dress_and_a_benchmarks_wording_is_no_leak() {
    let dir = tempfile::tempdir().unwrap();
    let sets = dir.path().join("Quiz/split");
    std::fs::create_dir_all(&sets).unwrap();
    // Stories of 30 words each that no two share, and the same question after all.
    let word = |story: usize, at: usize| format!("w{}", story * 100 + at);
    let story = |story: usize, words: std::ops::Range<usize>| words.map(|at| word(story, at)).collect::<Vec<_>>();
    let asked = |story: &str| {
        format!(
            "Read this story with care.\n{story}\n\nWhich of the two options is more likely to be the ending of the given story?\nYour answer:"
        )
    };
    let prompts = |texts: Vec<String>| -> String {
        texts.iter().map(|text| serde_json::json!({"instruction": text}).to_string() + "\n").collect()
    };
    let english = (0..20).map(|at| asked(&story(at, 0..if at == 7 { 9 } else { 30 }).join(" "))).collect();
    std::fs::write(sets.join("en.json"), prompts(english)).unwrap();
    // As many characters as make 14 words of such a script, no two alike in one story.
    let characters = |story: u32, n: u32, first: char| -> String {
        (0..n).map(|at| char::from_u32(u32::from(first) + (story * 7 + at * (story + 1)) % 40).unwrap()).collect()
    };
    let chinese =
        (0..20).map(|at| format!("{}。这两个选项中哪一个更可能是给定故事的结局？", characters(at, 28, '一'))).collect();
    std::fs::write(sets.join("zh.json"), prompts(chinese)).unwrap();
    let quiz = Against::load(dir.path(), 13).unwrap();

    assert_eq!(overlap(&quiz, &asked(&story(3, 0..30).join(" "))), (true, true), "a whole prompt");
    assert_eq!(overlap(&quiz, &story(3, 0..30).join(", ").to_uppercase()), (true, true), "an item in other dress");
    let part = story(3, 10..23).join(" ");
    assert_eq!(overlap(&quiz, &format!("Once, {part} and so on")), (false, true), "thirteen words of it");
    assert_eq!(overlap(&quiz, &story(3, 10..22).join(" ")), (false, false), "twelve words are not enough");
    let short = format!("Tell me: {}!", story(7, 0..9).join(" "));
    assert_eq!(overlap(&quiz, &short), (false, true), "an item of nine words");
    assert_eq!(overlap(&quiz, &asked(&story(90, 0..30).join(" "))), (false, false), "the same wording");
    // Content beside the wording makes no run with it.
    let seam = asked(&[story(90, 0..20), story(3, 25..30)].concat().join(" "));
    assert_eq!(overlap(&quiz, &seam), (false, false), "five words and the wording after them");

    let leaked = characters(4, 28, '一');
    assert_eq!(overlap(&quiz, &format!("他说{leaked}了")), (false, true), "26 characters in a row");
    let few: String = leaked.chars().take(25).collect();
    assert_eq!(overlap(&quiz, &few), (false, false), "25 characters");
    assert_eq!(overlap(&quiz, "完全不同的事。这两个选项中哪一个更可能是给定故事的结局？"), (false, false));
}

#[test]
fn leaks_of_real_items_are_found_and_real_rows_in_a_benchmarks_wording_are_none() {
    let (Some(sets), Some(train)) = (shared("data/eval"), shared("data/train/triples_mini.jsonl.gz")) else { return };
    // Some of the files are enough, and quickly read.
    let dir = tempfile::tempdir().unwrap();
    for (benchmark, split) in [("XStoryCloze", "split"), ("XLSum", "split_sample")] {
        std::fs::create_dir_all(dir.path().join(benchmark).join("split")).unwrap();
        for language in ["en", "sw"] {
            let file = format!("{language}.json.gz");
            let to = dir.path().join(benchmark).join("split").join(&file);
            std::fs::copy(sets.join(benchmark).join(split).join(&file), to).unwrap();
        }
    }
    let against = Against::load(dir.path(), 13).unwrap();
    let item = |language: &str| {
        let zipped = std::fs::File::open(dir.path().join(format!("XStoryCloze/split/{language}.json.gz"))).unwrap();
        let lines = std::io::BufReader::new(flate2::read::GzDecoder::new(zipped)).lines();
        let prompt: Value = serde_json::from_str(&lines.map(|line| line.unwrap()).nth(5).unwrap()).unwrap();
        prompt["instruction"].as_str().unwrap().split("\n(1)").next().unwrap().to_string()
    };
    for language in ["en", "sw"] {
        assert_eq!(overlap(&against, &format!("Once: {}", item(language))), (false, true), "{language}");
    }
    let rows = read_rows(&train).unwrap();
    let asked = |row: &&Row| ["en", "sw"].contains(&&*row.lang) && ["two_choice", "headline"].contains(&&*row.task);
    let asked: Vec<&Row> = rows.iter().filter(asked).take(100).collect();
    assert!(asked.len() > 50, "{}", asked.len());
    for row in asked {
        assert_eq!(overlap(&against, &row.instruction), (false, false), "{}", row.instruction);
        assert_eq!(overlap(&against, &row.instruction_en), (false, false), "{}", row.instruction_en);
    }
}

#[test]
fn a_check_with_a_model_measures_tokens_and_what_the_cutoffs_do() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let long = "a b c d ".repeat(50);
    let rows = [row(1, "en", "a b", "a b", "c"), row(2, "sw", &long, "a", "c"), row(3, "sw", "a", "a", &long)];
    write(dir.path(), "rows.jsonl", &rows);
    let arguments = ["data", "check", "rows.jsonl", "--json", "--model", "model", "--set", "data.cutoff=40"];
    let checked = trainer(dir.path(), &arguments);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let tokens = &report["tokens"];
    assert_eq!((&tokens["truncated"], &tokens["left_out"], &tokens["zero_answer"]), (&1.into(), &1.into(), &0.into()));
    assert_eq!(tokens["prompt"]["max"], tokens["prompt"]["p99"]);
    assert!(tokens["prompt"]["p50"].as_u64() < Some(40) && tokens["answer"]["max"].as_u64() > Some(40), "{tokens}");
}

#[test]
fn a_check_foretells_what_tokenising_cuts_and_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let words = |n: usize| "a ".repeat(n + 1);
    let said = |n: usize| vec![["a a", "b"].map(String::from); n % 3];
    let rows = (0..24).flat_map(|n| {
        let row = |m| row(n, "sw", &words(n), &words(24 - n), &words(m));
        [0, 9, 18].map(|m| Row { history: said(n + m), history_en: said(n + m), ..row(m) })
    });
    let rows: Vec<Row> = rows.collect();
    write(dir.path(), "rows.jsonl", &rows);
    let tokenizer = tokenizer();
    let anchor = AnchorRule::LastPrompt;
    let of_template = |template: &ChatTemplate| template.render(&tokenizer, "x", anchor).unwrap().ids.len();
    // The second begins with a head that is counted once for all rows.
    for (name, template) in [("plain", ChatTemplate::PLAIN), ("qwen2", ChatTemplate::QWEN2)] {
        let more = of_template(&template) - of_template(&ChatTemplate::PLAIN);
        let (cutoff, english_cutoff) = (39 + more, 30 + more);
        let renderer = Renderer { tokenizer: &tokenizer, template, anchor, cutoff, english_cutoff };
        let (samples, rendered) = renderer.samples(&rows).unwrap();
        assert!(
            rendered.truncated > 5 && rendered.truncated_english > 5 && rendered.left_out.len() > 5,
            "{rendered:?}"
        );
        let set = [
            format!("model.template={name}"),
            format!("data.cutoff={cutoff}"),
            format!("data.english_cutoff={english_cutoff}"),
        ];
        let set = set.iter().flat_map(|assignment| ["--set", assignment]);
        let arguments: Vec<&str> =
            ["data", "check", "rows.jsonl", "--json", "--model", "model"].into_iter().chain(set).collect();
        let checked = trainer(dir.path(), &arguments);
        let tokens = &serde_json::from_slice::<Value>(&checked.stdout).unwrap()["tokens"];
        assert_eq!(tokens["truncated"], rendered.truncated, "{name}");
        assert_eq!(tokens["truncated_english"], rendered.truncated_english, "{name}");
        assert_eq!(tokens["left_out"], rendered.left_out.len(), "{name}");
        assert!(samples.len() + rendered.left_out.len() == rows.len());
    }
}

#[test]
fn what_was_said_first_is_dropped_first() {
    let tokenizer = tokenizer();
    let exchange = |n: usize| [format!("question {n}"), format!("answer {n}")];
    let whole = Row { history: (0..4).map(exchange).collect(), ..row(1, "en", "and?", "and?", "so") };
    let ids = |cutoff: usize| {
        let (template, anchor) = (ChatTemplate::PLAIN, AnchorRule::LastPrompt);
        let renderer = Renderer { tokenizer: &tokenizer, template, anchor, cutoff, english_cutoff: 999 };
        let (samples, rendered) = renderer.prompts(std::slice::from_ref(&whole)).unwrap();
        (samples[0].prompt.ids.clone(), rendered.truncated)
    };
    let rendered = |dropped: usize| {
        let before = History { exchanges: &whole.history[dropped..], ..whole.before() };
        ChatTemplate::PLAIN.render_after(&tokenizer, before, "and?", AnchorRule::LastPrompt).unwrap().ids
    };
    assert_eq!(ids(999), (rendered(0), 0));
    for dropped in 1..=4 {
        let room = rendered(dropped).len()..rendered(dropped - 1).len();
        for cutoff in [room.start, room.end - 1] {
            assert_eq!(ids(cutoff), (rendered(dropped), 1), "{cutoff}");
        }
    }
    let alone = rendered(4);
    assert_eq!(ids(alone.len() - 1).0.len(), alone.len() - 1, "then the end of the question");
}

#[test]
fn english_and_translation_rows_are_made_where_they_can_be() {
    let mut rows = vec![
        row(1, "sw", "Nini?", "What?", "Hiki"),
        row(2, "en", "What?", "What?", "This"),
        row(3, "xx", "?", "What?", "!"),
        row(4, "es", "¿Qué?", "What?", "Eso"),
    ];
    rows[3].output_en = None;
    let (en, mt) = (english(&rows), translation(&rows));
    assert_eq!((en.rows.len(), en.without_english), (2, 1));
    assert_eq!((en.rows[0].lang.as_str(), en.rows[0].instruction.as_str()), ("en", "What?"));
    assert_eq!(en.rows[0].output, "Hiki in English");
    assert_eq!((mt.rows.len(), mt.without_english, mt.without_name), (1, 1, 1));
    assert_eq!(mt.rows[0].instruction, "Translate the following sentence from English to Swahili.\n Hiki in English");
    assert_eq!((mt.rows[0].output.as_str(), mt.rows[0].lang.as_str()), ("Hiki", "sw"));
}

#[test]
fn self_distillation_adds_four_kinds_of_rows_the_same_for_the_same_seed() {
    let rows: Vec<Row> = (0..40).map(|at| row(at, "sw", "moja mbili tatu", "one two three", "nne tano sita")).collect();
    let distill = |seed| Distill { rows: &rows, share: 0.15, seed };
    let answers: Vec<Option<String>> =
        distill(3).asked().iter().map(|row| Some(format!("own answer to {}", row.id))).collect();
    assert_eq!(answers.len(), 6);
    let added = distill(3).added(&answers).rows;
    let of = |task: &str| added.iter().filter(|row| row.task == task).collect::<Vec<_>>();
    for kind in ["self", "switched", "partial", "completion"] {
        assert_eq!(of(kind).len(), 6, "{kind}");
    }
    let own = of("self")[0];
    assert_eq!((own.lang.as_str(), own.instruction.as_str()), ("en", "one two three"));
    assert!(own.output.starts_with("own answer to "));
    assert_eq!(of("switched")[0].instruction, "moja three");
    assert!(of("partial")[0].instruction.ends_with("in English\n nne tano"));
    assert_eq!(of("completion")[0].output, "sita");
    assert_eq!(distill(3).added(&answers).rows, added);
    assert_ne!(distill(4).added(&answers).rows, added);
    // An answer that did not end is no row, and takes none of the others along.
    let mut cut = answers;
    cut[2] = None;
    let fewer = distill(3).added(&cut);
    assert_eq!((fewer.rows.len(), fewer.unended), (added.len() - 1, 1));
    assert!(fewer.rows.iter().all(|row| added.contains(row)));
    assert_eq!(halves("你好世界"), ("你好", "世界"));
}

#[test]
fn single_words_are_switched_where_the_rows_tell_what_they_mean() {
    let pairs = [("paka", "cat"), ("mbwa", "dog"), ("ndege", "bird"), ("samaki", "fish")];
    let rows: Vec<Row> = (0..16)
        .map(|at| {
            let ((one, one_en), (two, two_en)) = (pairs[at % 4], pairs[at / 4]);
            row(at, "sw", &format!("Je, {one} na {two}?"), &format!("The {one_en} or {two_en}?"), "ndiyo")
        })
        .collect();
    let distill = Distill { rows: &rows, share: 1.0, seed: 5 };
    let added = distill.added(&[]).rows;
    let switched: Vec<&Row> = added.iter().filter(|row| row.task == "switched").collect();
    let known = |word: &str| pairs.iter().find(|(own, _)| *own == word).map(|(_, english)| *english);
    let mut single = 0;
    for row in &switched {
        let at: usize = row.id.split('-').next().unwrap().parse().unwrap();
        let bare = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_string();
        let words = row.instruction.split_whitespace().zip(rows[at].instruction.split_whitespace());
        let changed: Vec<(String, String)> =
            words.map(|(new, old)| (bare(new), bare(old))).filter(|(new, old)| new != old).collect();
        // Where chance chose no word, the second half is English.
        if row.instruction.starts_with("Je,")
            && row.instruction.ends_with('?')
            && changed.iter().all(|(new, old)| known(old) == Some(new))
        {
            single += 1;
        }
    }
    assert!(single >= 8, "{single} of {}: {switched:?}", switched.len());
    assert!(switched.iter().all(|row| row.output == "ndiyo" && row.lang == "sw"));
}

#[test]
fn the_verb_lets_a_model_answer_and_says_what_a_file_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let rows: Vec<Row> = (0..8).map(|at| row(at, "sw", "a b c", "a b", "c d")).collect();
    write(dir.path(), "rows.jsonl", &rows);
    let build = |out: &str| {
        let arguments = ["data", "build", "rows.jsonl", "--setting", "sdrrl", "--model", "model", "--out", out];
        let built = trainer(dir.path(), &[&arguments[..], &["--set", "eval.max_new_tokens=4"]].concat());
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        std::fs::read(dir.path().join(out)).unwrap()
    };
    assert_eq!(build("a.jsonl"), build("b.jsonl"), "the same seed gave other rows");
    let built = read_rows(&dir.path().join("a.jsonl")).unwrap();
    assert_eq!(built[..8], rows);
    let beside: Value = serde_json::from_slice(&std::fs::read(dir.path().join("a.jsonl.json")).unwrap()).unwrap();
    assert_eq!(beside["rows_added"], built.len() - 8);
    assert_eq!(beside["setting"], "sdrrl");
    // A random model's answer does not end within four tokens: it is counted, and no row.
    assert_eq!(beside["unended_answers"], 1);
    assert!(built.iter().all(|row| row.task != "self"));
}

fn kept(dir: &Path, file: &Path, reading: &Reading, cutoff: usize) -> Vec<trainer::sample::Sample> {
    let tokenizer: Tokenizer = tokenizer();
    let renderer = Renderer {
        tokenizer: &tokenizer,
        template: ChatTemplate::detect(&tokenizer).unwrap_or(ChatTemplate::PLAIN),
        anchor: AnchorRule::LastPrompt,
        cutoff,
        english_cutoff: 64,
    };
    let (samples, rendered) =
        token_cache::samples(dir, file, reading, &renderer, tokenizer_json().to_string().as_bytes()).unwrap();
    let made = renderer.samples(&trainer::data::read_rows_as(file, reading).unwrap()).unwrap();
    assert_eq!((&samples, &rendered), (&made.0, &made.1));
    samples
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn kept_tokens_are_never_stale_and_a_damaged_file_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("tokens");
    let file = write(dir.path(), "rows.jsonl", &[row(1, "sw", "a b", "c", "d"), row(2, "sw", "b", "c", "d")]);
    let reading = Reading::default();
    let first = kept(&cache, &file, &reading, 64);
    let path = files(&cache).remove(0);
    let whole = std::fs::read(&path).unwrap();
    assert!(!whole.starts_with(b"cctok001"), "a DATE and an `input` meant another row then");
    assert_eq!(kept(&cache, &file, &reading, 64), first);
    assert_eq!(files(&cache).len(), 1, "the same content has one file");
    for at in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged[..]).unwrap();
        kept(&cache, &file, &reading, 64);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "byte {at}");
        std::fs::write(&path, &whole[..at]).unwrap();
        kept(&cache, &file, &reading, 64);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {at}");
    }
    kept(&cache, &file, &reading, 63);
    kept(&cache, &file, &Reading { lang: "es".into(), ..Reading::default() }, 64);
    write(dir.path(), "rows.jsonl", &[row(1, "sw", "b a", "c", "d"), row(2, "sw", "b", "c", "d")]);
    assert_ne!(kept(&cache, &file, &reading, 64), first);
    assert_eq!(files(&cache).len(), 4);
}
