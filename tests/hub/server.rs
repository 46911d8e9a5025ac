//! A server with the Hub's addresses, headers and redirects, which notes what it is asked and can break off or refuse.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};
use trainer::hub::Hub;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_secret";

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub token: bool,
}

/// How the server treats whoever asks for a file.
#[derive(Clone, Copy, PartialEq)]
pub enum Door {
    Open,
    /// Status, and the Hub's word for it.
    Shut(u16, &'static str),
}

/// `org/name` on a server with the Hub's addresses, headers and redirects.
pub struct Server {
    pub endpoint: String,
    pub files: BTreeMap<String, Vec<u8>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Bytes after which a transfer of weights breaks off, and how often it does.
    pub cuts: Arc<Mutex<(usize, usize)>>,
    pub door: Arc<Mutex<Door>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
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

    pub fn hub(&self, cache: &Path) -> Hub {
        Hub { endpoint: self.endpoint.clone(), cache: cache.into(), token: Some(TOKEN.into()), offline: false }
    }

    /// Every request since the last call.
    pub fn asked(&self) -> Vec<Asked> {
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
