//! What we export, `transformers` computes as we do. Continuous integration installs it under `target/`, as does
//! `CCTUNING_TRANSFORMERS=1 cargo test --release -p trainer --no-default-features --test weights hugging_face`.
//! Elsewhere nobody is given 200 MB of torch from PyTorch's own index, or 5.6 GB where only PyPI can be reached, unasked.
//! A machine that has both already names its Python: `CCTUNING_TRANSFORMERS=/path/to/python`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use cctuning::chat::{AnchorRule, ChatTemplate, History};
use cctuning::checkpoint::Storage;
use cctuning::config::Family;
use cctuning::model::TokenBatch;
use serde_json::{Value, json};
use trainer::model_folder::{Layout, ModelFolder};

use crate::small_model::{assert_close, config, folder, values};

/// A Python with torch and transformers, or none and a sentence that says why.
fn python() -> Option<PathBuf> {
    match std::env::var("CCTUNING_TRANSFORMERS") {
        Ok(python) if python != "1" => return Some(python.into()),
        Err(_) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: set CCTUNING_TRANSFORMERS=1 to install transformers under target/ and compare with it");
            return None;
        }
        _ => {}
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/transformers");
    let python = place.join("bin/python");
    let works = |python: &Path| {
        let import = Command::new(python).args(["-c", "import torch, transformers"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if !works(&python) {
        // A slow network costs a test run so much and no more; an index that cannot be reached is given up soon.
        let until = Instant::now() + Duration::from_secs(600);
        let run = |command: &mut Command| succeeds(command, until);
        let install = ["-m", "pip", "install", "--quiet", "--no-compile", "--retries", "1", "--timeout", "30"];
        let pip = |packages: &[&str]| run(Command::new(&python).args(install).args(packages));
        let installed = run(Command::new("python3").args(["-m", "venv"]).arg(&place))
            && (pip(&["torch", "--index-url", "https://download.pytorch.org/whl/cpu"]) || pip(&["torch"]))
            && pip(&["transformers>=4.56", "numpy"]);
        if !installed || !works(&python) {
            eprintln!("skipped: torch and transformers could not be installed into {}", place.display());
            return None;
        }
    }
    Some(python)
}

/// False also where it has not ended in time; it is ended then.
fn succeeds(command: &mut Command, until: Instant) -> bool {
    let Ok(mut child) = command.spawn() else { return false };
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < until => sleep(Duration::from_millis(100)),
            _ => return child.kill().and_then(|()| child.wait()).is_ok_and(|_| false),
        }
    }
}

#[test]
fn an_exported_folder_has_the_same_logits_and_prompts_for_us_and_for_transformers() {
    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/weights/logits.py");
    let ids: Vec<u32> = (0..24).map(|at| at * 37 % 250).collect();
    let cases = [
        (Family::Llama, ChatTemplate::LLAMA3, true, Storage::F32, usize::MAX),
        (Family::Qwen2, ChatTemplate::QWEN2, false, Storage::F32, 40_000),
        (Family::Qwen2, ChatTemplate::PLAIN, true, Storage::Bf16, usize::MAX),
        (Family::Mistral, ChatTemplate::MISTRAL, false, Storage::F16, usize::MAX),
    ];
    let exchanges = [["ποιο;", "Nil\n"].map(String::from)];
    for (family, template, tied, storage, shard_bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        let made = folder(config(family, tied), template.clone(), 5);
        made.save_as(&made.model, dir.path(), Layout { shard_bytes, ..Layout::of(storage) }).unwrap();
        let ours = ModelFolder::load(dir.path(), None, 0, &Device::flex()).unwrap();
        let batch = TokenBatch::new(&[&ids], &Device::flex());
        let logits = values(&ours.model.logits(ours.model.forward(&batch, None).squeeze_dim(0)));
        let system = template.system.is_some().then_some("Be brief.");
        let [[question, answer]] = &exchanges;
        let said = [("user", question.as_str()), ("assistant", answer), ("user", "why?")];
        let turns = system.map(|text| ("system", text)).into_iter().chain(said);
        let messages: Vec<Value> = turns.map(|(role, content)| json!({ "role": role, "content": content })).collect();
        let output = Command::new(&python)
            .arg(&script)
            .arg(dir.path())
            .arg(format!("{ids:?}"))
            .arg(json!(messages).to_string())
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", python.display()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |value: &Value| value.as_f64().unwrap() as f32;
        let expected: Vec<f32> = theirs["logits"].as_array().unwrap().iter().map(number).collect();
        assert_close(&logits, &expected, 1e-4, &format!("{family:?}, tied {tied}, {storage:?}"));
        let stop = made.settings.template.stop_ids(&made.tokenizer).unwrap();
        assert_eq!(theirs["stop"], json!(stop));
        let history = History { system, exchanges: &exchanges };
        let asked = template.render_after(&made.tokenizer, history, "why?", AnchorRule::LastPrompt).unwrap();
        assert_eq!(theirs["chat"], json!(asked.ids), "{}", template.name());
        if storage == Storage::F32 {
            let before = values(&made.model.logits(made.model.forward(&batch, None).squeeze_dim(0)));
            assert_close(&logits, &before, 0.0, "reloaded by us");
        }
    }
}
