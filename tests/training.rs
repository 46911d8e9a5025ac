//! Proves that a run repeats itself, that an interrupted one goes on to the same losses, that checkpoints are not taken
//! for another run's, and that training learns from real rows, through the built program.

mod shared_data;
mod small_model;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::checkpoint::Storage;
use cctuning::config::{Family, ModelConfig};
use cctuning::generate::{ConnectionOptions, Source};
use cctuning::model::TokenBatch;
use cctuning::tokenizer::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use trainer::model_folder::{ModelFolder, Settings};
use trainer::recipe::Recipe;

use shared_data::shared;
use small_model::{config, folder, model, values, write_folder};

/// Forty short rows in three languages, and the model folder `model`.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("model"), 1);
    let row = |i: usize| {
        let lang = ["es", "sw", "en"][i % 3];
        json!({"id": format!("r{i}"), "task": "qa", "lang": lang,
               "instruction": format!("¿{} más {}?", i % 7, i % 5), "instruction_en": format!("{} plus {}?", i % 7, i % 5),
               "output": format!("{}", i % 7 + i % 5)})
    };
    let rows: Vec<String> = (0..40).map(|i| row(i).to_string()).collect();
    fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    dir
}

/// `trainer train` in `dir`, writing to `out`.
fn train(dir: &Path, method: &str, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(dir).env("BURN_DEVICE", "flex").stdin(Stdio::null());
    command.args(["train", "--method", method, "--set", &format!("run.out={out}")]);
    let fixed =
        ["model.path=model", "data.train=rows.jsonl", "optim.batch_size=8", "optim.epochs=6", "optim.micro_tokens=150"];
    for assignment in fixed.iter().chain(more) {
        command.args(["--set", assignment]);
    }
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn finished(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// The entries of a log without what a clock decides.
fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    let mut entries: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for entry in &mut entries {
        entry.as_object_mut().unwrap().remove("tokens_per_second").expect("a rate");
    }
    entries
}

fn losses(out: &Path) -> Vec<f64> {
    log(out).iter().map(|entry| entry["loss"].as_f64().unwrap()).collect()
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn the_same_seed_writes_the_same_log_and_weights_twice_and_another_seed_does_not() {
    let dir = workplace();
    for method in ["sft", "cc", "dft"] {
        let out = |name: &str| dir.path().join(format!("{method}-{name}"));
        for (name, seed) in [("a", "0"), ("b", "0"), ("c", "1")] {
            let seeds = [format!("cc.seed={seed}"), format!("data.seed={seed}")];
            finished(train(dir.path(), method, &format!("{method}-{name}"), &[&seeds[0], &seeds[1]]));
        }
        assert_eq!(log(&out("a")).len(), 30);
        assert_eq!(log(&out("a")), log(&out("b")));
        assert_eq!(weights(&out("a/model")), weights(&out("b/model")));
        assert_ne!(losses(&out("a")), losses(&out("c")));
        let (first, last) = (losses(&out("a"))[0], losses(&out("a"))[29]);
        assert!(last < 0.75 * first, "{method}: the loss went from {first} to {last}");
    }
    // What the connection did stands beside every loss.
    for entry in log(&dir.path().join("cc-a")) {
        let number = |key: &str| entry[key].as_f64().unwrap_or_else(|| panic!("no {key} in {entry}"));
        let selected: Vec<u64> = entry["selected"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        assert_eq!((selected.len(), selected.iter().sum::<u64>()), (3, 8), "{entry}");
        assert!(number("entropy") > 0.0 && number("entropy") < 3f64.ln() + 1e-6, "{entry}");
        assert!(number("vector_norm") > 0.0 && number("stream_norm") > 0.0, "{entry}");
        assert!((0.0..=1.0).contains(&number("moved")) && (0.0..=1.0).contains(&number("english_share")), "{entry}");
    }
}

#[test]
fn a_temperature_that_falls_changes_what_is_learnt_from_the_second_step_on() {
    let dir = workplace();
    let runs = [("steady", "cc.tau_end=0"), ("falling", "cc.tau_end=0.05")].map(|(name, tau_end)| {
        finished(train(dir.path(), "cc", name, &["cc.tau=1", tau_end]));
        log(&dir.path().join(name))
    });
    assert_eq!(runs[0][0], runs[1][0]);
    let norm = |run: usize| runs[run][20]["grad_norm"].as_f64().unwrap();
    assert_ne!(norm(0), norm(1));
}

#[cfg(target_os = "linux")]
#[test]
fn one_core_takes_the_same_steps_as_several() {
    let dir = workplace();
    finished(train(dir.path(), "cc", "several", &[]));
    let one = train(dir.path(), "cc", "one", &[]);
    let mut pinned = Command::new("taskset");
    pinned.current_dir(dir.path()).env("BURN_DEVICE", "flex").args(["-c", "0"]).arg(one.get_program());
    pinned.args(one.get_args());
    finished(pinned);
    assert_eq!(log(&dir.path().join("one")), log(&dir.path().join("several")));
    assert_eq!(weights(&dir.path().join("one/model")), weights(&dir.path().join("several/model")));
}

#[test]
fn a_finished_run_and_a_refused_export_leave_the_fitted_matrix() {
    let dir = workplace();
    let trainer = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.current_dir(dir.path()).env("BURN_DEVICE", "flex").args(args);
        finished(command);
    };
    finished(train(dir.path(), "cc", "run", &[]));
    trainer(&["fit", "run/model", "--set", "data.train=rows.jsonl", "--set", "transform.ridge=1e-3"]);
    let matrix = || fs::read(dir.path().join("run/model/transform_matrix.safetensors")).unwrap();
    let fitted = matrix();
    finished(train(dir.path(), "cc", "run", &[]));
    assert_eq!(matrix(), fitted);
    let whole = weights(&dir.path().join("run/model"));
    for dtype in ["bf16", "f32"] {
        let mut in_place = Command::new(env!("CARGO_BIN_EXE_trainer"));
        in_place.current_dir(dir.path()).args(["export", "hf", "run/model", "--out", "run/model", "--dtype", dtype]);
        assert!(stderr(&in_place.output().unwrap()).contains("name another"));
        assert_eq!((matrix(), weights(&dir.path().join("run/model"))), (fitted.clone(), whole.clone()));
    }
    // A folder of other weights is no witness of this run, and their matrix goes with all that was said of it.
    fs::copy(dir.path().join("model/model.safetensors"), dir.path().join("run/model/model.safetensors")).unwrap();
    finished(train(dir.path(), "cc", "run", &[]));
    let left = fs::read_dir(dir.path().join("run/model")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("transform")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_losses_and_weights() {
    goes_on("optim.moments=f32");
}

/// The chance in the rounding is drawn anew by the resumed process.
#[cfg(unix)]
#[test]
fn an_interrupted_run_with_moments_in_bf16_goes_on_to_the_same_losses_and_weights() {
    goes_on("optim.moments=bf16");
}

#[cfg(unix)]
fn goes_on(moments: &str) {
    let dir = workplace();
    let more = ["optim.epochs=60", moments];
    finished(train(dir.path(), "cc", "whole", &more));
    let out = dir.path().join("cut");
    let mut stops = 0;
    for at in [15, 120, usize::MAX] {
        let mut child =
            train(dir.path(), "cc", "cut", &more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "the run does not end");
            if log(&out).len() >= at {
                interrupt(&child);
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(130) => {
                stops += 1;
                let done = log(&out).len();
                assert!(done < 300 && out.join(format!("checkpoints/step-{done}")).exists(), "{done}");
                assert!(stderr(&output).contains(&format!("stopped after step {done} of 300")), "{}", stderr(&output));
                assert!(!out.join("model").exists());
            }
            Some(0) => assert_eq!(at, usize::MAX, "the run ended before it was interrupted"),
            _ => panic!("{:?}: {}", output.status, stderr(&output)),
        }
    }
    assert_eq!(stops, 2);
    assert_eq!(log(&out), log(&dir.path().join("whole")));
    assert_eq!(weights(&out.join("model")), weights(&dir.path().join("whole/model")));
}

#[test]
fn twenty_kills_at_random_moments_change_neither_a_loss_nor_a_weight() {
    let dir = workplace();
    let more = ["optim.epochs=12", "run.save_every=2"];
    finished(train(dir.path(), "cc", "whole", &more));
    let (whole, out) = (dir.path().join("whole"), dir.path().join("killed"));
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut kills, mut wholes) = (0, 0);
    while kills < 20 || wholes == 0 {
        let mut child =
            train(dir.path(), "cc", "killed", &more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Past some steps, then anywhere: in a pass, in the midst of a checkpoint, in the final save. Or at once, while it
        // takes up what the one before has left.
        let (steps, pause) = if random.random_bool(0.4) { (0, 300_000) } else { (random.random_range(1..8), 30_000) };
        let after = log(&out).len() + steps;
        let started = Instant::now();
        while kills < 20 && child.try_wait().unwrap().is_none() && log(&out).len() < after {
            assert!(started.elapsed() < Duration::from_secs(60), "the run does not go on");
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..pause)));
        if kills < 20 && child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            continue;
        }
        assert!(child.wait().unwrap().success(), "a killed run does not go on");
        assert_eq!(log(&out), log(&whole), "after {kills} kills");
        assert_eq!(weights(&out.join("model")), weights(&whole.join("model")), "after {kills} kills");
        wholes += 1;
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before() {
    let dir = workplace();
    let more = ["run.save_every=10"];
    finished(train(dir.path(), "cc", "a", &more));
    let out = dir.path().join("a");
    let (before, model) = (log(&out), weights(&out.join("model")));
    fs::write(out.join("checkpoints/step-30/optimizer.safetensors"), "damaged").unwrap();
    fs::remove_dir_all(out.join("model")).unwrap();
    let output = train(dir.path(), "cc", "a", &more).output().unwrap();
    assert!(stderr(&output).contains("after step 20 of 30"), "{}", stderr(&output));
    assert_eq!((log(&out), weights(&out.join("model"))), (before, model));
}

#[test]
fn a_checkpoint_of_another_recipe_or_method_is_refused_and_its_recipe_left_alone() {
    let dir = workplace();
    finished(train(dir.path(), "cc", "out", &["run.save_every=20"]));
    let recipe = fs::read(dir.path().join("out/recipe.toml")).unwrap();
    let cases = [
        ("cc", "optim.lr=3e-3", "lr = 0.002 (now lr = 0.003)"),
        ("cc", "cc.alpha=0.5", "alpha = 1.0 (now alpha = 0.5)"),
        ("sft", "run.keep=2", "method = \"cc\" (now method = \"sft\")"),
    ];
    for (method, change, difference) in cases {
        let output = train(dir.path(), method, "out", &[change]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{method} {change} was accepted");
        let error = stderr(&output);
        assert!(error.contains(difference) && error.contains("step-30"), "{error}");
        assert_eq!(fs::read(dir.path().join("out/recipe.toml")).unwrap(), recipe, "{change}");
    }
    let rows = fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    fs::write(dir.path().join("rows.jsonl"), rows.replacen("output\":\"", "output\":\"x", 1)).unwrap();
    let output = train(dir.path(), "cc", "out", &[]).output().unwrap();
    assert!(stderr(&output).contains("is of another run: samples = "), "{}", stderr(&output));
    // The same rows under another name are the same rows.
    fs::write(dir.path().join("same.jsonl"), rows).unwrap();
    finished(train(dir.path(), "cc", "out", &["data.train=same.jsonl"]));
    fs::rename(dir.path().join("same.jsonl"), dir.path().join("rows.jsonl")).unwrap();
    // Where and how often a run writes decides no loss.
    finished(train(dir.path(), "cc", "out", &["run.save_every=7", "run.keep=5"]));
}

fn unzip(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn training_on_real_rows_with_the_real_qwen_tokenizer_learns_and_its_export_gives_the_same_logits() {
    let Some(shared) = shared("data") else { return };
    let dir = tempfile::tempdir().unwrap();
    let rows = unzip(&shared.join("train/triples_mini.jsonl.gz"));
    // Rows from all over the file.
    let short = std::str::from_utf8(&rows).unwrap().lines().filter(|row| row.len() < 500);
    let rows: Vec<&str> = short.step_by(20).take(240).collect();
    assert_eq!(rows.len(), 240);
    fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();

    let mut config = config(Family::Qwen2, true);
    config.vocab_size = 151_936;
    (config.n_layers, config.d_model) = (2, 16);
    let tokenizer_json = unzip(&shared.join("models/qwen2.5/tokenizer.json.gz"));
    let settings = Settings {
        template: ChatTemplate::QWEN2,
        anchor: AnchorRule::LastPrompt,
        connection: ConnectionOptions::default(),
    };
    let folder = ModelFolder {
        source: Default::default(),
        model: model(&config, 1),
        config,
        tokenizer: Tokenizer::from_json(&tokenizer_json).unwrap(),
        tokenizer_json,
        settings: settings.clone(),
        transform: None,
    };
    folder.save_model(&folder.model, &dir.path().join("model"), Storage::F32).unwrap();

    let more = [
        "optim.epochs=1",
        "optim.lr=1e-2",
        "data.cutoff=160",
        "data.english_cutoff=96",
        "run.save_every=0",
        "optim.micro_tokens=400",
    ];
    finished(train(dir.path(), "cc", "out", &more));
    let losses = losses(&dir.path().join("out"));
    assert_eq!(losses.len(), 30);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..5]), mean(&losses[25..]));
    assert!(last < first - 1.0, "the loss went from {first} to {last}");

    let trained = ModelFolder::load(&dir.path().join("out/model"), None, 0, &Device::flex()).unwrap();
    assert_eq!((&trained.settings, trained.tokenizer.vocab_size()), (&settings, 151_665));
    let mut export = Command::new(env!("CARGO_BIN_EXE_trainer"));
    export.current_dir(dir.path()).args(["export", "hf", "out/model", "--out", "export", "--dtype", "f32"]);
    finished(export);
    let again = ModelFolder::load(&dir.path().join("export"), None, 0, &Device::flex()).unwrap();
    let prompt = settings.template.render(&trained.tokenizer, "¿Dónde está Nairobi?", AnchorRule::LastPrompt).unwrap();
    let batch = TokenBatch::new(&[prompt.ids], &Device::flex());
    let logits = |folder: &ModelFolder| {
        let stream = folder.model.forward(&batch, None);
        let last = stream.dims()[1] - 1;
        values(&folder.model.logits(stream.narrow(1, last, 1).squeeze_dim(1)))
    };
    assert_eq!(logits(&again), logits(&trained));
    assert_ne!(logits(&trained), logits(&folder), "training changed nothing");
    let stop: Value =
        serde_json::from_slice(&fs::read(dir.path().join("export/generation_config.json")).unwrap()).unwrap();
    assert_eq!(stop["eos_token_id"], json!([151_645]));
}

/// What the program prints.
fn printed(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    let output = command.current_dir(dir).env("BURN_DEVICE", "flex").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output)
}

#[test]
fn outside_training_a_prompt_may_have_the_context_and_its_gold_answer_takes_none_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let roomy = ModelConfig { max_positions: 640, ..config(Family::Llama, true) };
    let folder = folder(roomy, ChatTemplate::PLAIN, 1);
    folder.save_model(&folder.model, &dir.path().join("model"), Storage::F32).unwrap();
    let text = |i: usize| format!("{i} más {}", "a ".repeat(200));
    let row = |i: usize| json!({"lang": "es", "instruction": text(i), "instruction_en": text(i + 8), "output": "c ".repeat(200)});
    fs::write(dir.path().join("rows.jsonl"), (0..8).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
    let eval = ["eval", "model", "--data", "rows.jsonl", "--set", "eval.max_new_tokens=2"];
    let fit = ["fit", "model", "--set", "data.train=rows.jsonl", "--set", "transform.ridge=1e-3"];
    for (verb, done) in [(&eval[..], "mean"), (&fit[..], "written")] {
        let whole = printed(dir.path(), verb);
        assert!(whole.contains(done) && !whole.contains("cut to fit") && !whole.contains("left out"), "{whole}");
        // Who names a cutoff gets it, for the prompt alone.
        let cut = printed(dir.path(), &[verb, &["--set", "data.cutoff=100"]].concat());
        assert!(cut.contains(done) && cut.contains("cut to fit: 8 prompts and 0 English twins"), "{cut}");
    }
}

#[test]
fn another_anchor_is_asked_of_an_evaluation_and_a_fit_refuses_it_by_name() {
    let dir = workplace();
    let mut folder = ModelFolder::load(&dir.path().join("model"), None, 0, &Device::flex()).unwrap();
    let recipe = Recipe::default().with(&["eval.max_new_tokens=6".into()]).unwrap();
    let texts: Vec<String> = (0..12).map(|i| format!("¿{i} y algo?")).collect();
    // Rows whose gold answers are those that this anchor makes the model give.
    folder.settings.anchor = AnchorRule::BeforeAnswerTag;
    let Settings { template, anchor, .. } = &folder.settings;
    let render = |text: &str| template.render(&folder.tokenizer, text, *anchor).unwrap();
    let prompts: Vec<_> = texts.iter().map(|text| (render(text), render(&format!("{text}?")))).collect();
    let pairs: Vec<_> = prompts.iter().map(|(own, english)| (own, english)).collect();
    let options = trainer::run::options(&recipe, &folder, Source::Parallel).unwrap();
    let answers = trainer::evaluate::answer(&folder.model, &folder.config, None, &pairs, &options).unwrap();
    let answered = texts.iter().zip(answers.iter().map(|answer| folder.tokenizer.decode(answer).unwrap()));
    let rows = answered.filter(|(_, output)| !output.trim().is_empty()).map(|(text, output)| {
        json!({"lang": "es", "instruction": text, "instruction_en": format!("{text}?"), "output": output}).to_string()
    });
    fs::write(dir.path().join("gold.jsonl"), rows.collect::<Vec<_>>().join("\n")).unwrap();
    let eval = ["eval", "model", "--data", "gold.jsonl", "--source", "parallel", "--set", "eval.max_new_tokens=6"];
    let usual = printed(dir.path(), &eval);
    assert!(usual.contains("mean") && !usual.contains("100.0 %"), "{usual}");
    let asked = printed(dir.path(), &[&eval[..], &["--set", "cc.anchor=before_answer_tag"]].concat());
    assert!(asked.contains("100.0 %"), "{asked}");

    let fit = ["fit", "model", "--set", "data.train=rows.jsonl", "--set", "transform.ridge=1e-3"];
    let refused = printed(dir.path(), &[&fit[..], &["--set", "cc.tau=0.5"]].concat());
    assert!(refused.contains("--set cc.tau=0.5") && refused.contains("as it was trained"), "{refused}");
    fs::write(dir.path().join("other.toml"), "[cc]\nanchor = 'before_answer_tag'\ntau = 0.5\n").unwrap();
    let refused = printed(dir.path(), &[&fit[..], &["--recipe", "other.toml"]].concat());
    assert!(refused.contains("cc.anchor = \"before_answer_tag\", trained with \"last_prompt\""), "{refused}");
    assert!(!dir.path().join("model/transform_matrix.safetensors").exists());
    // The recipe of the training itself may be given, with what only training heeds.
    fs::write(dir.path().join("same.toml"), "[cc]\nanchor = 'last_prompt'\ntau = 0.5\n").unwrap();
    let done = printed(dir.path(), &[&fit[..], &["--recipe", "same.toml"]].concat());
    assert!(done.contains("written"), "{done}");
}

#[test]
fn what_is_seldom_meant_is_said() {
    let mut folder = folder(config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    let doubts = |folder: &ModelFolder, lr| {
        let mut recipe = Recipe::default();
        recipe.optim.lr = lr;
        trainer::train::doubts(folder, &recipe).join("\n")
    };
    let small = Recipe::default().optim.lr;
    assert_eq!(doubts(&folder, small), "");
    folder.config.d_ff = 1 << 20;
    let said = doubts(&folder, small);
    assert!(said.contains("optim.lr") && said.contains("paper-hparams") && !said.contains('\n'), "{said}");
    assert_eq!(doubts(&folder, 1e-5), "");
    folder.source.config = json!({"attention_dropout": 0.1});
    assert!(doubts(&folder, 1e-5).contains("attention_dropout 0.1"));
}
