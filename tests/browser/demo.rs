//! The demo page as a visitor uses it: the one place that knows how the page names its parts.
//! Every wait and every click of the tests goes through here.

use crate::webdriver::Browser;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use xtask::site::Site;
use xtask::steps::target_dir;
use xtask::{page, steps, suite};

/// Loading, compiling and the self-test, on a graphics card that two cores play.
const READY_S: u64 = 600;
const ANSWER_S: u64 = 120;

/// The page open in a browser, and the site that serves it.
pub struct Demo {
    pub site: Site,
    pub browser: Browser,
}

/// Which of the two models.
#[derive(Clone, Copy, Debug)]
pub enum Model {
    Vanilla,
    Cc,
}

impl Model {
    fn pane(self) -> &'static str {
        match self {
            Model::Vanilla => "#pane-vanilla",
            Model::Cc => "#pane-cc",
        }
    }
}

impl Demo {
    /// Opens the built page; `query` is empty or `?device=cpu`.
    pub fn open(browser: Browser, query: &str) -> Demo {
        let demo = Demo { site: serve(), browser };
        demo.load(query);
        demo
    }

    /// Loads the page anew.
    pub fn load(&self, query: &str) {
        self.browser.open(&format!("{}{query}", self.site.address()));
    }

    /// Waits until a prompt can be asked, and returns the self-test's verdict as a visitor sees it.
    pub fn wait_until_ready(&self) -> String {
        let settled = "['ready', 'dead'].includes(document.querySelector('main')?.dataset.phase)";
        self.browser.wait_for("the models are loaded and tested", settled, READY_S);
        assert_eq!(self.visible_text("#failure"), None, "the page reports an error");
        let verdict =
            self.visible_text("#self-test").expect("the self-test's verdict is visible before the first answer");
        let ready_ms = self.browser.run("return Math.round(performance.now())");
        println!("measured: ready within {ready_ms} ms of opening the page; {verdict}");
        verdict
    }

    /// Waits until the page is in this phase, whatever else it reports.
    pub fn wait_for_the_phase(&self, phase: &str) {
        let expression = format!("document.querySelector('main')?.dataset.phase === '{phase}'");
        self.browser.wait_for(&format!("the page is {phase}"), &expression, READY_S);
    }

    /// Types a prompt in place of what stands there.
    pub fn type_prompt(&self, prompt: &str) {
        self.browser.write("#prompt", prompt);
    }

    /// Presses the button that asks both models.
    pub fn ask(&self) {
        self.browser.click("#ask");
    }

    /// Sets the connection's switch: a source, and a layer counted from 0 or the Decision Maker's choice.
    pub fn connect(&self, source: &str, layer: Option<usize>) {
        let layer = layer.map_or(String::new(), |layer| layer.to_string());
        self.browser.run(&format!(
            "document.querySelector('input[name=source][value={source}]').click();
             const layer = document.querySelector('#layer');
             layer.value = '{layer}';
             layer.dispatchEvent(new Event('change', {{ bubbles: true }}));"
        ));
    }

    /// Types a prompt, asks it and waits until both panes have answered.
    pub fn answer(&self, prompt: &str) {
        self.type_prompt(prompt);
        self.ask();
        let done = "document.querySelectorAll('[id^=pane-][data-state=complete]').length === 2";
        self.browser.wait_for("both panes have answered", done, ANSWER_S);
    }

    /// The tokens of a pane's complete answer.
    pub fn tokens(&self, model: Model) -> Vec<u32> {
        let value = self.pane_data(model, "ids");
        let ids = value.as_str().expect("a complete answer lists its tokens");
        let ids = ids.split(',').filter(|id| !id.is_empty());
        ids.map(|id| id.parse().expect("a token is a number")).collect()
    }

    /// The text of a pane's complete answer; empty where the model ended it at once.
    pub fn answer_text(&self, model: Model) -> String {
        let script = format!("return document.querySelector('{} .answer').textContent", model.pane());
        self.browser.run(&script).as_str().expect("an answer is a text").to_owned()
    }

    /// Whether a pane marks its answer as the expected one.
    pub fn is_marked_right(&self, model: Model) -> bool {
        let script = format!("return document.querySelector('{} .verdict').className.includes('right')", model.pane());
        self.browser.run(&script) == true
    }

    /// A pane's own clock: tokens per second, time to the first token, tokens.
    pub fn speed(&self, model: Model) -> String {
        let pane = format!("{} .speed", model.pane());
        self.visible_text(&pane).expect("a complete answer shows its speed").replace('\n', " ")
    }

    /// How many tokens a pane has received so far.
    pub fn token_count(&self, model: Model) -> usize {
        let value = self.pane_data(model, "tokens");
        let count = value.as_str().and_then(|text| text.parse().ok());
        count.unwrap_or_else(|| panic!("a pane counts its tokens, found {value}"))
    }

    /// The text of an element that a visitor can see, or `None`.
    pub fn visible_text(&self, selector: &str) -> Option<String> {
        let script = format!(
            "const element = document.querySelector('{selector}');
             return element && element.checkVisibility() ? element.innerText.trim() : ''"
        );
        let value = self.browser.run(&script);
        value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Whether the models run on WebGPU, by the page's own account.
    pub fn is_on_webgpu(&self) -> bool {
        self.browser.run("return document.querySelector('#device').dataset.webgpu") == "true"
    }

    /// Waits for the page's one place for errors and returns what a visitor reads there.
    pub fn wait_for_error(&self) -> String {
        let expression = "document.querySelector('#failure')?.innerText.trim() || null";
        let text = self.browser.wait_for("the page reports an error", expression, READY_S);
        text.as_str().unwrap_or_default().to_owned()
    }

    /// A number that the page keeps about the bundle's files: `kept`, `fetched`, `repaired`, `total`, `memory`.
    pub fn files(&self, key: &str) -> u64 {
        let value = self.browser.run(&format!("return Number(document.querySelector('#files').dataset.{key})"));
        value.as_u64().unwrap_or_else(|| panic!("the page counts its files' `{key}`, found {value}"))
    }

    /// The names of all files in the browser's store.
    pub fn stored(&self) -> BTreeSet<String> {
        let names = self.browser.run(
            "return navigator.storage.getDirectory()
                 .then(root => root.getDirectoryHandle('bundle-files'))
                 .then(async folder => { const names = []; for await (const name of folder.keys()) names.push(name); return names; })",
        );
        names.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    }

    fn pane_data(&self, model: Model, key: &str) -> serde_json::Value {
        self.browser.run(&format!("return document.querySelector('{}').dataset.{key} ?? null", model.pane()))
    }
}

/// Serves the built page on a free port.
pub fn serve() -> Site {
    Site::open(&page::dist(), 0).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The bundle that the page opens by default.
pub fn bundle() -> PathBuf {
    steps::root().join("assets/bundle")
}

/// What the page offers to ask.
pub fn examples() -> Vec<serde_json::Value> {
    let mut examples = read_json(&bundle().join("examples.json"));
    std::mem::take(examples.as_array_mut().expect("examples are a list"))
}

/// An example prompt of the bundle in this language.
pub fn example(lang: &str) -> String {
    example_with_twin(lang).0
}

/// The example prompt in this language with the shortest answer of more than a letter or digit, and its English twin.
pub fn example_with_twin(lang: &str) -> (String, String) {
    let examples = examples();
    let length = |example: &&serde_json::Value| example["gold"].as_str().map_or(0, |gold| gold.chars().count());
    let own = examples.iter().filter(|example| example["lang"] == lang);
    let example = own.filter(|example| length(example) > 1).min_by_key(length);
    let example = example.unwrap_or_else(|| panic!("the bundle has no example prompt in `{lang}`"));
    let text = |key: &str| example[key].as_str().expect("an example's parts are texts").to_owned();
    (text("prompt"), text("english"))
}

/// Manifest and golden answers of a bundle that is whole and was made with other logits.
pub fn bundle_with_other_logits(other: fn(f64) -> f64) -> BTreeMap<String, Vec<u8>> {
    let mut golden = read_json(&bundle().join("golden.json"));
    for answer in golden.as_array_mut().expect("golden answers are a list") {
        let logit = &mut answer["vanilla"]["logits"][0];
        *logit = serde_json::json!(other(logit.as_f64().expect("a logit is a number")));
    }
    bundle_with("golden.json", golden.to_string().into_bytes())
}

/// Manifest and one file of a bundle that is whole and has another content in this file.
pub fn bundle_with(path: &str, content: Vec<u8>) -> BTreeMap<String, Vec<u8>> {
    let mut manifest = manifest();
    let files = manifest["files"].as_array_mut().expect("the bundle's manifest names its files");
    let entry = files.iter_mut().find(|file| file["path"] == path).expect("the file is among them");
    entry["bytes"] = content.len().into();
    let digest = Sha256::digest(&content);
    entry["sha256"] = digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    let manifest = manifest.to_string().into_bytes();
    BTreeMap::from([(format!("bundle/{path}"), content), ("bundle/manifest.json".into(), manifest)])
}

/// The shipped bundle's description.
pub fn manifest() -> serde_json::Value {
    read_json(&bundle().join("manifest.json"))
}

/// The hash that the manifest names for a file.
pub fn hash_of(path: &str) -> String {
    let manifest = manifest();
    let file = manifest["files"].as_array().into_iter().flatten().find(|file| file["path"] == path);
    let hash = file.and_then(|file| file["sha256"].as_str());
    hash.unwrap_or_else(|| panic!("the manifest names no {path}")).to_owned()
}

/// The bundle's biggest file, which is one of its weights.
pub fn biggest_file() -> String {
    let manifest = manifest();
    let biggest = manifest["files"].as_array().into_iter().flatten().max_by_key(|file| file["bytes"].as_u64());
    let path = biggest.and_then(|file| file["path"].as_str());
    path.expect("the bundle's manifest names its files").to_owned()
}

/// What the native trainer answers with the same bundle.
pub fn tokens_of_the_trainer(model: Model, prompt: &str, more: &[&str]) -> Vec<u32> {
    answers(model, Stdio::null(), &[&["--prompt", prompt], more].concat()).remove(0).0
}

/// Tokens and text of the native trainer's answers to many prompts.
pub fn answers_of_the_trainer(model: Model, prompts: &[&str]) -> Vec<(Vec<u32>, String)> {
    let path = target_dir().join("tmp/held-out-prompts.txt");
    fs::create_dir_all(path.parent().expect("the file lies in a folder")).expect("a folder can be made");
    fs::write(&path, prompts.join("\n")).expect("prompts can be written");
    let file = fs::File::open(&path).expect("what was written can be read");
    let answers = answers(model, file.into(), &["--interactive"]);
    assert_eq!(answers.len(), prompts.len(), "{model:?}: every line is answered");
    answers
}

fn answers(model: Model, prompts: Stdio, more: &[&str]) -> Vec<(Vec<u32>, String)> {
    let model = match model {
        Model::Vanilla => "vanilla",
        Model::Cc => "cc",
    };
    let output = Command::new(suite::trainer())
        .args(["generate", "--json", "--model", model, "--bundle"])
        .arg(bundle())
        .args(more)
        .stdin(prompts)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", suite::trainer().display()));
    assert!(output.status.success(), "`trainer generate` failed: {}", String::from_utf8_lossy(&output.stderr));
    let answer = |line: &str| {
        let answer: serde_json::Value = serde_json::from_str(line).expect("`generate --json` prints JSON lines");
        let tokens = answer["tokens"].as_array().expect("a line has `tokens`");
        let tokens = tokens.iter().map(|token| token.as_u64().expect("a token is a number") as u32);
        (tokens.collect(), answer["text"].as_str().expect("a line has `text`").to_owned())
    };
    String::from_utf8_lossy(&output.stdout).lines().map(answer).collect()
}

fn read_json(path: &Path) -> serde_json::Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
