//! Proves that the held-out prompts which the page offers earn in a browser what they earn natively with the same bundle, by
//! the rules that the tables are made with, family by family; and that the page's own mark says so.

use crate::demo::{Demo, Model, answers_of_the_trainer, examples};
use crate::webdriver::{Browser, WITHOUT_WEBGPU};
use std::collections::{BTreeMap, HashMap};
use trainer::corpus::{Item, generate};
use trainer::evaluate::credit;
use trainer::inputs::CORPUS_SEED;

/// What all prompts of a family earn.
type Table = BTreeMap<String, f64>;

pub fn on_the_cpu() {
    let demo = Demo::open(Browser::chromium(WITHOUT_WEBGPU), "");
    demo.wait_until_ready();
    let prompts = held_out(|_| true);
    assert_eq!(prompts.len(), 22 * 6);
    assert!(prompts.iter().filter(|item| item.output.chars().count() == 1).count() >= 22 * 3);
    let mut gains: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (item, [vanilla, cc]) in prompts.iter().zip(as_the_trainer(&demo, &prompts)) {
        gains.entry(&item.lang).or_default().push(cc - vanilla);
    }
    // The bundle's maker put first of each language what the connection helped most, then what it harmed most, where there is
    // such: of English there may be none that it helped.
    assert!(gains.len() == 22 && gains.values().all(|gains| gains[0] >= 0.0 && gains[1] <= 0.0), "{gains:?}");
    assert!(gains.values().filter(|gains| gains[0] > 0.0 && gains[1] < 0.0).count() >= 20, "{gains:?}");
}

/// One prompt of each family whose answer is a letter or a digit: software that plays a graphics card is slow.
pub fn on_webgpu(demo: &Demo) {
    let prompts = held_out(|item| item.lang == "sw" && item.output.chars().count() == 1);
    assert_eq!(prompts.len(), 3);
    as_the_trainer(demo, &prompts);
}

/// The page's examples as what they are: test items of the corpus.
fn held_out(keep: impl Fn(&Item) -> bool) -> Vec<Item> {
    let corpus = generate(CORPUS_SEED).expect("the shipped tables are sound");
    let test: HashMap<&str, &Item> = corpus.test.iter().map(|item| (item.instruction.as_str(), item)).collect();
    let of_example = |example: &serde_json::Value| {
        let prompt = example["prompt"].as_str().expect("an example has a prompt");
        let item = *test.get(prompt).unwrap_or_else(|| panic!("`{prompt}` is no test prompt of the corpus"));
        assert_eq!(example["gold"], item.output.as_str(), "{}", item.id);
        item.clone()
    };
    examples().iter().map(of_example).filter(keep).collect()
}

/// Asks the page and the trainer, and returns what both models earn with each prompt when the two agree.
fn as_the_trainer(demo: &Demo, items: &[Item]) -> Vec<[f64; 2]> {
    let prompts: Vec<&str> = items.iter().map(|item| item.instruction.as_str()).collect();
    let models = [Model::Vanilla, Model::Cc];
    let native = models.map(|model| answers_of_the_trainer(model, &prompts));
    let (mut found, mut expected) = ([Table::new(), Table::new()], [Table::new(), Table::new()]);
    let mut earned = Vec::new();
    for (at, item) in items.iter().enumerate() {
        demo.answer(&item.instruction);
        let mut both = [0.0; 2];
        for (of, model) in models.into_iter().enumerate() {
            let (tokens, text) = &native[of][at];
            assert_eq!(&demo.tokens(model), tokens, "{}, {model:?}", item.id);
            // The page leaves bytes that make no character out, which the tables' text has a mark for.
            let answer = demo.answer_text(model);
            assert_eq!(answer.trim(), text.replace('\u{fffd}', "").trim(), "{}, {model:?}", item.id);
            let worth = |answer: &str| credit(&item.task, &item.lang, answer, &item.output);
            let (shown, native) = (worth(&answer), worth(text));
            *found[of].entry(item.task.clone()).or_default() += shown;
            *expected[of].entry(item.task.clone()).or_default() += native;
            both[of] = native;
            // What contains the answer to a question on a text is credited, and not marked as the answer itself.
            let is_marked = demo.is_marked_right(model);
            let agrees = if item.task == "reading" { !is_marked || shown == 1.0 } else { is_marked == (shown == 1.0) };
            assert!(agrees, "{}, {model:?}: marked {is_marked}, worth {shown}: `{text}`", item.id);
        }
        earned.push(both);
    }
    println!("measured: vanilla {:?}, CC-Tuned {:?} of {} prompts", found[0], found[1], items.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found.keys().eq(expected.keys()));
        // Answers are right or wrong; in a summary such a mark counts as one more word or character.
        assert!(found.iter().all(|(family, sum)| (sum - expected[family]).abs() < 0.1), "{found:?} {expected:?}");
    }
    earned
}
