//! Proves that a model is fetched by its name from a server with the Hub's layout: only the files that are needed, on from
//! where a connection broke, never twice, and with the sentence that helps where it cannot be.

mod server;
#[path = "../small_model.rs"]
mod small_model;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use burn::tensor::Device;
use cctuning::checkpoint::{Storage, save_tensors};
use serde_json::json;
use server::{Asked, COMMIT, Door, Server, TOKEN, sha256};
use trainer::hub::{Hub, Reference, resolve};
use trainer::model_folder::ModelFolder;

/// A small model in two shards, with what else lies in such repositories.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    small_model::write_folder(dir.path(), 1);
    let mut files: BTreeMap<String, Vec<u8>> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.remove("model.safetensors");
    let all = small_model::tensors(&small_model::model(&small_model::config(cctuning::config::Family::Llama, true), 1));
    let all: Vec<_> = all.into_iter().map(|(name, (shape, values))| (name, shape, values)).collect();
    let mut map = BTreeMap::new();
    for (at, tensors) in all.chunks(all.len().div_ceil(2)).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", at + 1);
        map.extend(tensors.iter().map(|(name, ..)| (name.clone(), shard.clone())));
        files.insert(shard, save_tensors(tensors.to_vec(), Storage::F32).unwrap());
    }
    files.insert("model.safetensors.index.json".into(), json!({"metadata": {}, "weight_map": map}).to_string().into());
    for name in ["pytorch_model.bin", "README.md", "consolidated.safetensors", "original/tokenizer.model"] {
        files.insert(name.into(), b"never fetched".to_vec());
    }
    files
}

fn main_branch() -> Reference {
    Reference::parse("org/name").unwrap()
}

fn refusal(hub: &Hub, reference: &str) -> String {
    format!("{:#}", hub.folder(&Reference::parse(reference).unwrap()).unwrap_err())
}

fn assert_model(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files.iter().filter(|(name, _)| folder.join(name).exists()) {
        assert!(fs::read(folder.join(name)).unwrap() == *bytes, "{name}");
    }
    let loaded = ModelFolder::load(folder, None, 0, &Device::flex()).unwrap();
    let made = small_model::model(&loaded.config, 1);
    assert_eq!(small_model::tensors(&loaded.model), small_model::tensors(&made));
}

#[test]
fn a_model_is_fetched_once_with_the_files_it_needs_and_is_then_taken_from_here() {
    let server = Server::new(repository());
    let cache = tempfile::tempdir().unwrap();
    let folder = server.hub(cache.path()).folder(&main_branch()).unwrap();
    assert_model(&folder, &server.files);
    let asked = server.asked();
    for never in ["pytorch_model.bin", "README.md", "consolidated.safetensors", "tokenizer.model"] {
        assert!(asked.iter().all(|asked| !asked.path.contains(never)), "{never} was fetched");
    }
    assert!(asked.iter().filter(|asked| !asked.path.starts_with("/cdn/")).all(|asked| asked.token));
    // The layout of Python's huggingface_hub.
    assert!(folder.ends_with(format!("models--org--name/snapshots/{COMMIT}")));
    assert_eq!(fs::read_to_string(cache.path().join("models--org--name/refs/main")).unwrap(), COMMIT);

    for reference in ["org/name", &format!("org/name@{COMMIT}")] {
        let hub = Hub { endpoint: "http://127.0.0.1:9".into(), ..server.hub(cache.path()) };
        assert_eq!(hub.folder(&Reference::parse(reference).unwrap()).unwrap(), folder);
        assert_eq!(Hub { offline: true, ..hub }.folder(&main_branch()).unwrap(), folder);
    }
    assert!(server.asked().is_empty());

    // What is lost is fetched again, and nothing else.
    let shard = "model-00002-of-00002.safetensors";
    fs::remove_file(folder.join(shard)).unwrap();
    let hub = server.hub(cache.path());
    assert!(refusal(&Hub { offline: true, ..hub.clone() }, "org/name").contains(shard));
    assert_model(&hub.folder(&main_branch()).unwrap(), &server.files);
    let another = |asked: &Asked| asked.path.contains("/resolve/") && !asked.path.ends_with(shard);
    assert!(!server.asked().iter().any(another));
}

#[test]
fn what_another_program_did_not_ask_for_is_asked_for_once() {
    let server = Server::new(repository());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let folder = hub.folder(&main_branch()).unwrap();
    let text = ["tokenizer_config.json", "cctuning.json"];
    text.iter().for_each(|file| fs::remove_file(folder.join(file)).unwrap());
    fs::remove_dir_all(cache.path().join("models--org--name/.no_exist")).unwrap();
    // Python's library has a ref for a branch alone.
    fs::remove_file(cache.path().join("models--org--name/refs").join(COMMIT)).unwrap();
    let nowhere = Hub { endpoint: "http://127.0.0.1:9".into(), ..hub.clone() };
    for hub in [nowhere, Hub { offline: true, ..hub.clone() }] {
        assert_eq!(hub.folder(&main_branch()).unwrap(), folder, "what is here is enough where nobody can be asked");
        assert!(text.iter().all(|file| !folder.join(file).exists()));
    }
    server.asked();
    assert_eq!(hub.folder(&main_branch()).unwrap(), folder);
    assert_model(&folder, &server.files);
    let fetched: Vec<String> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert!(text.iter().all(|file| fetched.iter().any(|path| path.ends_with(file))), "{fetched:?}");
    assert!(!fetched.iter().any(|path| path.contains("model-0000")), "{fetched:?}");
    assert!(folder.join("../../.no_exist").join(COMMIT).join("chat_template.jinja").exists());
    assert_eq!(hub.folder(&main_branch()).unwrap(), folder);
    assert!(server.asked().is_empty());
}

#[test]
fn the_environment_is_read_as_pythons_library_reads_it() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    fs::write(at("token"), "stored\n").unwrap();
    fs::write(at("other"), "named").unwrap();
    let hub = |set: &[(&str, &str)]| {
        let value = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        Hub::of(|name| value(name).or_else(|| (name == "HF_HOME").then(|| home.path().display().to_string()))).unwrap()
    };
    let plain = hub(&[]);
    assert_eq!((&*plain.endpoint, plain.offline), ("https://huggingface.co", false));
    assert_eq!((plain.token.as_deref(), plain.cache), (Some("stored"), home.path().join("hub")));
    assert_eq!(hub(&[("HF_HUB_CACHE", "/models")]).cache, Path::new("/models"));
    assert_eq!(hub(&[("HF_HOME", ""), ("XDG_CACHE_HOME", "/c")]).cache, Path::new("/c/huggingface/hub"));
    assert_eq!(hub(&[("HF_ENDPOINT", "https://mirror/")]).endpoint, "https://mirror");
    assert_eq!(hub(&[("HF_TOKEN_PATH", &at("other"))]).token.as_deref(), Some("named"));
    assert_eq!(hub(&[("HF_TOKEN", " t "), ("HUGGING_FACE_HUB_TOKEN", "old")]).token.as_deref(), Some("t"));
    assert_eq!(hub(&[("HUGGING_FACE_HUB_TOKEN", "old")]).token.as_deref(), Some("old"));
    for (name, value, offline) in
        [("HF_HUB_OFFLINE", "1", true), ("TRANSFORMERS_OFFLINE", "YES", true), ("HF_HUB_OFFLINE", "0", false)]
    {
        assert_eq!(hub(&[(name, value)]).offline, offline, "{name}={value}");
    }
}

#[test]
fn a_transfer_that_breaks_off_goes_on_from_where_it_was() {
    let server = Server::new(repository());
    let cache = tempfile::tempdir().unwrap();
    *server.cuts.lock().unwrap() = (3000, 2);
    let folder = server.hub(cache.path()).folder(&main_branch()).unwrap();
    assert_model(&folder, &server.files);
    let ranges: Vec<String> = server.asked().into_iter().filter_map(|asked| asked.range).collect();
    assert!(ranges.contains(&"bytes=3000-".into()) && ranges.contains(&"bytes=6000-".into()), "{ranges:?}");
}

#[test]
fn a_process_that_gave_up_leaves_what_the_next_goes_on_with() {
    let server = Server::new(repository());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    *server.cuts.lock().unwrap() = (1000, 5);
    let error = refusal(&hub, "org/name");
    for part in ["org/name@main", &server.endpoint, "what has arrived is kept", "HF_ENDPOINT"] {
        assert!(error.contains(part), "{error}");
    }
    server.asked();
    assert_model(&hub.folder(&main_branch()).unwrap(), &server.files);
    assert!(server.asked().iter().any(|asked| asked.range.as_deref() == Some("bytes=5000-")));
}

#[test]
fn a_part_that_is_whole_too_long_or_wrong_does_no_harm() {
    let server = Server::new(repository());
    let shard = &server.files["model-00001-of-00002.safetensors"];
    let start = |part: &[u8]| {
        let cache = tempfile::tempdir().unwrap();
        let blobs = cache.path().join("models--org--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.part", sha256(shard))), part).unwrap();
        cache
    };
    for part in [shard.clone(), [&shard[..], b"more"].concat()] {
        let cache = start(&part);
        assert_model(&server.hub(cache.path()).folder(&main_branch()).unwrap(), &server.files);
    }
    let cache = start(b"wrong from the first byte on");
    let hub = server.hub(cache.path());
    let error = refusal(&hub, "org/name");
    assert!(error.contains("model-00001-of-00002.safetensors came damaged"), "{error}");
    assert_model(&hub.folder(&main_branch()).unwrap(), &server.files);
}

#[test]
fn a_refusal_says_what_to_do_about_it() {
    let server = Server::new(repository());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let nobody = Hub { token: None, ..hub.clone() };
    let shut = |status, code| *server.door.lock().unwrap() = Door::Shut(status, code);
    let says = |error: String, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        assert!(!error.contains(TOKEN), "{error}");
    };
    shut(401, "GatedRepo");
    says(refusal(&nobody, "org/name"), &["org/name@main", "gated", "accept its terms", "/org/name,", "HF_TOKEN"]);
    shut(403, "GatedRepo");
    says(refusal(&hub, "org/name"), &["gated", "accept its terms", "/org/name,", "of that account"]);
    shut(401, "");
    says(refusal(&hub, "org/name"), &["refuses the token", "settings/tokens", "HF_TOKEN"]);
    shut(403, "");
    says(refusal(&hub, "org/name"), &["refuses the token", "403"]);
    shut(404, "EntryNotFound");
    says(refusal(&hub, "org/name"), &["config.json", "no such file", "/tree/main"]);
    shut(429, "");
    says(refusal(&hub, "org/name"), &["fewer requests"]);
    says(refusal(&hub, "org/other"), &["org/other@main", "no such model", "spelling"]);
    says(refusal(&nobody, "org/other"), &["org/other@main", "no such model", "private or gated", "HF_TOKEN"]);
    says(refusal(&hub, "org/name@v9"), &["no revision \"v9\"", "/tree/main"]);
    let nowhere = Hub { endpoint: "http://127.0.0.1:9".into(), ..hub.clone() };
    says(refusal(&nowhere, "org/name"), &["http://127.0.0.1:9", "cannot be reached", "HF_ENDPOINT", "folder"]);
    let offline = Hub { offline: true, ..hub.clone() };
    says(
        refusal(&offline, "org/name"),
        &["org/name@main", "HF_HUB_OFFLINE", "unset it", &cache.path().display().to_string()],
    );
    assert!(!cache.path().join("models--org--name/snapshots").exists(), "a refused model left files");
}

#[test]
fn a_repository_of_another_kind_is_refused_before_anything_is_fetched() {
    for (files, parts) in [
        (&["config.json", "tokenizer.json", "pytorch_model.bin"][..], ["no safetensors", "pickled"]),
        (&["config.json", "tokenizer.model", "model.safetensors"], ["no tokenizer.json", "SentencePiece"]),
        (&["model-Q4.gguf", "README.md"], ["no config.json", "GGUF"]),
        (&["adapter_config.json", "adapter_model.safetensors"], ["no config.json", "adapter"]),
        (&["notes.txt"], ["no config.json", "notes.txt"]),
    ] {
        let server = Server::new(files.iter().map(|name| (name.to_string(), b"{}".to_vec())).collect());
        let cache = tempfile::tempdir().unwrap();
        let error = refusal(&server.hub(cache.path()), "org/name");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
    // An index is a stranger's file; a shard outside the folder is none.
    let mut files = repository();
    let index = json!({"weight_map": {"a": "../../../config.safetensors"}}).to_string();
    files.insert("model.safetensors.index.json".into(), index.into());
    let server = Server::new(files);
    let cache = tempfile::tempdir().unwrap();
    let error = refusal(&server.hub(cache.path()), "org/name");
    assert!(error.contains("../../../config.safetensors"), "{error}");
}

#[test]
fn a_reference_is_a_folder_or_a_name_and_nothing_else() {
    let reference = Reference::parse("mistralai/Mistral-7B-v0.3@refs/pr/1").unwrap();
    assert_eq!((&*reference.id, &*reference.revision), ("mistralai/Mistral-7B-v0.3", "refs/pr/1"));
    for text in [
        "",
        "gpt2",
        "a/b/c",
        "/a/b",
        "../a",
        "a/..",
        "a b/c",
        "a/b@",
        "a/b@../c",
        "https://x/y",
        "-a/b",
        "a/b@x y",
        "a\\b",
    ] {
        let error = Reference::parse(text).unwrap_err().to_string();
        assert!(error.contains("no such folder") && error.contains("org/name@revision"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(resolve(dir.path()).unwrap(), dir.path());
}

#[test]
fn a_verb_takes_a_name_for_a_folder_and_a_folder_of_that_name_wins() {
    let server = Server::new(repository());
    let dir = tempfile::tempdir().unwrap();
    let generate = |home: &str, offline: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.current_dir(dir.path()).args(["generate", "--folder", "org/name", "--prompt", "x", "--json"]);
        command.args(["--max-new-tokens", "2", "--source", "none"]);
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", dir.path().join(home)).env("HF_ENDPOINT", &server.endpoint);
        let done = command.env("HF_TOKEN", TOKEN).env("HF_HUB_OFFLINE", offline).output().unwrap();
        (done.status.success(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (fetched, answer, error) = generate("home", "");
    assert!(fetched && error.contains("fetching model-00001-of-00002.safetensors"), "{error}");
    assert!(dir.path().join("home/hub/models--org--name/snapshots").exists());
    server.asked();
    assert_eq!(generate("home", "1").1, answer);
    let (refused, _, error) = generate("other", "1");
    assert!(!refused && error.contains("HF_HUB_OFFLINE"), "{error}");
    small_model::write_folder(&dir.path().join("org/name"), 1);
    assert_eq!(generate("other", "1"), (true, answer, String::new()));
    assert!(server.asked().is_empty());
}

/// A verb beside a cache of its own.
fn trainer(server: &Server, dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(dir).args(arguments).env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE");
    command.env("HF_HOME", dir.join("home")).env("HF_ENDPOINT", &server.endpoint).env("HF_TOKEN", TOKEN);
    command.output().unwrap()
}

fn files(asked: &[Asked]) -> Vec<&str> {
    asked
        .iter()
        .filter_map(|asked| asked.path.split_once(&format!("/resolve/{COMMIT}/")))
        .map(|(_, file)| file)
        .collect()
}

#[test]
fn a_config_that_is_not_computed_is_refused_by_name_before_anything_larger_is_asked_for() {
    let mut files_there = repository();
    let mut config: serde_json::Value = serde_json::from_slice(&files_there["config.json"]).unwrap();
    config["architectures"] = json!(["GemmaForCausalLM"]);
    config["model_type"] = json!("gemma");
    files_there.insert("config.json".into(), config.to_string().into());
    let server = Server::new(files_there);
    let cache = tempfile::tempdir().unwrap();
    // A second attempt, which finds the config here, is no bolder.
    for _ in 0..2 {
        let error = refusal(&server.hub(cache.path()), "org/name");
        assert!(error.contains("org/name@main: config.json") && error.to_lowercase().contains("gemma"), "{error}");
        assert!(files(&server.asked()).iter().all(|file| *file == "config.json"));
    }
}

#[test]
fn a_verb_fetches_no_more_of_a_model_than_it_reads() {
    let server = Server::new(repository());
    let dir = tempfile::tempdir().unwrap();
    let done = |arguments: &[&str]| {
        let output = trainer(&server, dir.path(), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.asked()
    };
    let plan = ["plan", "--set", "model.path=org/name"];
    let asked = done(&plan);
    assert!(!asked.is_empty() && files(&asked).iter().all(|file| *file == "config.json"), "{asked:?}");
    assert!(done(&plan).is_empty(), "what is here is not asked for again");

    let row = r#"{"id":"1","lang":"es","instruction":"¿Qué?","instruction_en":"What?","output":"Eso"}"#;
    fs::write(dir.path().join("rows.jsonl"), row).unwrap();
    let check = ["data", "check", "rows.jsonl", "--model", "org/name"];
    let asked = done(&check);
    assert!(files(&asked).contains(&"tokenizer.json") && files(&asked).contains(&"cctuning.json"), "{asked:?}");
    assert!(!asked.iter().any(|asked| asked.path.contains("safetensors")), "{asked:?}");
    assert!(done(&check).is_empty());

    // Who needs the weights fetches what is still missing.
    done(&["generate", "--folder", "org/name", "--prompt", "x", "--max-new-tokens", "2", "--source", "none"]);
    assert_model(&server.hub(&dir.path().join("home/hub")).folder(&main_branch()).unwrap(), &server.files);
}

#[test]
fn a_fit_writes_nothing_into_the_shared_cache_and_says_how_to_get_a_folder() {
    let server = Server::new(repository());
    let dir = tempfile::tempdir().unwrap();
    let refused = trainer(&server, dir.path(), &["fit", "org/name"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && error.contains("trainer export hf org/name --out"), "{error}");
    assert!(server.asked().is_empty() && !dir.path().join("home").exists());
}
