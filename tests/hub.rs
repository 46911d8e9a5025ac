//! Proves that a model is fetched by its name from a server with the Hub's layout: only the files that are needed, on from
//! where a connection broke, never twice, and with the sentence that helps where it cannot be.

mod small_model;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use burn::tensor::Device;
use cctuning::checkpoint::{Storage, save_tensors};
use serde_json::json;
use sha2::{Digest, Sha256};
use trainer::hub::{Hub, Reference, resolve};
use trainer::model_folder::ModelFolder;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// One request as the server saw it.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    range: Option<String>,
    token: bool,
}

/// How the server treats whoever asks for a file.
#[derive(Clone, Copy, PartialEq)]
enum Door {
    Open,
    /// Status, and the Hub's word for it.
    Shut(u16, &'static str),
}

/// `org/name` on a server with the Hub's addresses, headers and redirects.
struct Server {
    endpoint: String,
    files: BTreeMap<String, Vec<u8>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Bytes after which a transfer of weights breaks off, and how often it does.
    cuts: Arc<Mutex<(usize, usize)>>,
    door: Arc<Mutex<Door>>,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            files,
            asked: Arc::default(),
            cuts: Arc::default(),
            door: Arc::new(Mutex::new(Door::Open)),
        };
        let Self { endpoint, files, asked, cuts, door } = &server;
        let (endpoint, files) = (endpoint.clone(), files.clone());
        let (asked, cuts, door) = (asked.clone(), cuts.clone(), door.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let door = *door.lock().unwrap();
                // A client that hangs up early is part of the test.
                answer(stream, &endpoint, &files, &asked, &cuts, door).ok();
            }
        });
        server
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub { endpoint: self.endpoint.clone(), cache: cache.into(), token: Some(TOKEN.into()), offline: false }
    }

    /// Every request since the last call.
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer(
    mut stream: TcpStream,
    endpoint: &str,
    files: &BTreeMap<String, Vec<u8>>,
    asked: &Mutex<Vec<Asked>>,
    cuts: &Mutex<(usize, usize)>,
    door: Door,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let range = headers.get("range").cloned();
    let token = headers.get("authorization").is_some_and(|value| *value == format!("Bearer {TOKEN}"));
    asked.lock().unwrap().push(Asked { path: path.clone(), range: range.clone(), token });

    let mut refuse = |status: u16, code: &str| {
        write!(stream, "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    if let Some(digest) = path.strip_prefix("/cdn/") {
        let (name, bytes) = files.iter().find(|(_, bytes)| sha256(bytes) == digest).unwrap();
        let mut cuts = cuts.lock().unwrap();
        let limit = if cuts.1 > 0 && name.ends_with(".safetensors") && range.as_deref() != Some("bytes=0-0") {
            cuts.1 -= 1;
            cuts.0
        } else {
            usize::MAX
        };
        return send(&mut stream, bytes, range.as_deref(), "", limit);
    }
    if path == "/api/models/org/name/revision/main" || path == format!("/api/models/org/name/revision/{COMMIT}") {
        let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
        let info = json!({"id": "org/name", "sha": COMMIT, "siblings": siblings}).to_string();
        return send(&mut stream, info.as_bytes(), None, "Content-Type: application/json\r\n", usize::MAX);
    }
    if path.starts_with("/api/models/org/name/") {
        return refuse(404, "RevisionNotFound");
    }
    let Some(name) = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
        return refuse(if token { 404 } else { 401 }, "RepoNotFound");
    };
    if let Door::Shut(status, code) = door {
        return refuse(status, code);
    }
    let Some(bytes) = files.get(name) else { return refuse(404, "EntryNotFound") };
    if name.ends_with(".safetensors") || name == "tokenizer.json" {
        let digest = sha256(bytes);
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {endpoint}/cdn/{digest}\r\nX-Repo-Commit: {COMMIT}\r\n\
             X-Linked-Etag: \"{digest}\"\r\nX-Linked-Size: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
    }
    let headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\n", &sha256(bytes)[..40]);
    send(&mut stream, bytes, range.as_deref(), &headers, usize::MAX)
}

/// Sends the bytes that are asked for, or no more than `limit` of them and hangs up.
fn send(stream: &mut TcpStream, bytes: &[u8], range: Option<&str>, headers: &str, limit: usize) -> std::io::Result<()> {
    let whole = bytes.len();
    let (status, part, place) = match range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        None => ("200 OK", bytes, String::new()),
        Some((from, to)) => {
            let from: usize = from.parse().unwrap();
            let to = to.parse().map_or(whole - 1, |to: usize| to.min(whole - 1));
            if from > to {
                return write!(stream, "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            ("206 Partial Content", &bytes[from..=to], format!("Content-Range: bytes {from}-{to}/{whole}\r\n"))
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\n{headers}{place}Content-Length: {}\r\nConnection: close\r\n\r\n", part.len())?;
    stream.write_all(&part[..part.len().min(limit)])
}

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
