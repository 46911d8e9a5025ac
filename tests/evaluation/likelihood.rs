//! The likelihood of options is that of their tokens, however many a tokenizer makes of them.

use std::fs;
use std::path::Path;

use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::config::Family;
use cctuning::tokenizer::Tokenizer;
use serde_json::Value;
use trainer::answers::{answer_loss, main_tokens};
use trainer::benchmarks::{Benchmark, Item, load};
use trainer::results::{Record, cells, csv, read_records, terminal};
use trainer::sample::Sample;
use trainer::scorers::{self, choice};

use crate::{small_model, succeed, write_benchmarks};

/// A model folder whose tokenizer writes every text, an option too, behind a blank: two tokens to an option.
fn write_folder_of_long_options(path: &Path) {
    small_model::write_folder(path, 1);
    let file = path.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    json["normalizer"] = serde_json::json!({"type": "Prepend", "prepend": " "});
    fs::write(file, json.to_string()).unwrap();
}

#[test]
fn the_likeliest_option_is_the_one_whose_tokens_cost_the_least() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model::write_folder(&dir.join("one"), 1);
    write_folder_of_long_options(&dir.join("two"));
    write_benchmarks(&dir.join("sets"));
    for (model, tokens) in [("one", 1), ("two", 2)] {
        succeed(dir, &format!("eval {model} --benchmarks sets --set eval.max_new_tokens=2 --out out-{model}"));
        let folder = small_model::folder(small_model::config(Family::Llama, true), ChatTemplate::PLAIN, 1);
        let tokenizer = Tokenizer::from_json(&fs::read(dir.join(model).join("tokenizer.json")).unwrap()).unwrap();
        let items = load(&dir.join("sets"), Benchmark::Xnli, &[]).unwrap();
        let records = read_records(&dir.join(format!("out-{model}/items.jsonl"))).unwrap();
        for item in &items {
            let cost = |option: &&str| {
                let rule = AnchorRule::LastPrompt;
                let prompt = folder.settings.template.render(&tokenizer, &item.prompt, rule).unwrap();
                let answer = tokenizer.encode(option).unwrap();
                assert_eq!(answer.len(), tokens);
                let (id, lang, english) = (item.id.clone(), item.lang.clone(), prompt.clone());
                let sample = Sample { id, lang, prompt, english, answer };
                let tokens = main_tokens(&folder.model, &[&sample]);
                answer_loss(&folder.model, &[&sample], &tokens, None).into_scalar::<f32>()
            };
            let mut costs: Vec<(f32, &str)> = Benchmark::Xnli.options().iter().map(|one| (cost(one), *one)).collect();
            costs.sort_by(|a, b| a.0.total_cmp(&b.0));
            let record = records.iter().find(|record| record.id == item.id).unwrap();
            for rule in scorers::LIKELIHOODS {
                let judged = &record.scores[rule];
                assert_eq!(judged.extracted.as_deref(), Some(costs[0].1), "{} {rule}", item.id);
                let gap = f64::from(costs[1].0 - costs[0].0);
                assert!(
                    (judged.gap.unwrap() - gap).abs() < 1e-4,
                    "{} {rule}: {:?}, expected {gap}",
                    item.id,
                    judged.gap
                );
            }
        }
    }
}

#[test]
fn likelihoods_count_by_token_sums_and_by_bytes_and_near_ties_are_reported() {
    let judged = scorers::judge_likelihoods(&["no", "perhaps", "ja"], "perhaps", &[-2.0, -3.5, -2.05]);
    let [(sum, by_sum), (per_byte, by_byte)] = &judged;
    assert_eq!([sum.as_str(), per_byte.as_str()], scorers::LIKELIHOODS);
    assert_eq!((by_sum.extracted.as_deref(), by_sum.score), (Some("no"), 0.0));
    assert!((by_sum.gap.unwrap() - 0.05).abs() < 1e-12, "nearer than {}", scorers::NEAR_TIE);
    assert_eq!((by_byte.extracted.as_deref(), by_byte.score), (Some("perhaps"), 1.0));
    assert!((by_byte.gap.unwrap() - 0.5).abs() < 1e-12);
    // The first of equals.
    assert_eq!(choice::likeliest(&[-1.0, -0.5, -0.5]), (1, Some(0.0)));

    let dir = tempfile::tempdir().unwrap();
    write_benchmarks(dir.path());
    let items: Vec<Item> =
        load(dir.path(), Benchmark::Xnli, &[]).unwrap().into_iter().filter(|item| item.lang == "en").collect();
    let record = |(item, gap): (&Item, f64)| {
        let likely = [-1.0, -1.0 - gap, -9.0];
        Record {
            id: item.id.clone(),
            lang: item.lang.clone(),
            benchmark: "XNLI".into(),
            prompt_sha256: String::new(),
            tokens: Vec::new(),
            text: String::new(),
            stopped: true,
            scores: scorers::judge_likelihoods(item.benchmark.options(), &item.gold[0], &likely).into(),
        }
    };
    let records: Vec<Record> = items.iter().zip([0.0, 0.06, 0.07, 3.0]).map(record).collect();
    let cells = cells(&items, &records);
    assert_eq!(cells[0].metrics["acc_loglik"].near_ties, Some(0.5));
    assert_eq!(cells[0].metrics["acc_loglik"].unparsable, None);
    assert!(terminal(&cells).contains("  50.0") && csv(&cells).contains(",0.500000,"), "{}", terminal(&cells));
}
