//! A static web server for the built page on 127.0.0.1, and the faults that the browser tests put into it.
//! It knows files and requests, not what they mean.

use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tiny_http::{Header, Method, Request, Response, Server, StatusCode};

/// Browsers open up to six connections to one host.
const THREADS: usize = 6;
/// A page's policy does not reach into its worker, so scripts carry one of their own. The worker fetches bundles, and
/// `?bundle=` may name one on any https server or on another port of this machine; the page itself asks this host only.
const SCRIPT_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; \
                             connect-src 'self' https: http://127.0.0.1:* http://localhost:*";
/// Bytes in one piece of a slow answer.
const SLOW_PIECE: usize = 16 * 1024;

/// What goes wrong with one file, named by its path below the served folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The byte in the middle of the file arrives with its lowest bit turned over.
    FlippedBit(String),
    /// The file is answered with 404.
    Missing(String),
    /// These files have another content.
    Replaced(BTreeMap<String, Vec<u8>>),
    /// Files below this folder travel with so many bytes a second each.
    Slow(String, u32),
    /// Of files below this folder no answer has more than so many bytes.
    Cut(String, usize),
}

/// A request for a file that was answered with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub path: String,
    /// The first byte that was asked for.
    pub from: u64,
}

/// A folder being served until this value is dropped.
pub struct Site {
    address: String,
    server: Arc<Server>,
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    root: PathBuf,
    fault: Mutex<Option<Fault>>,
    asked: Mutex<Vec<Asked>>,
    /// Whether pages of other addresses may read these files.
    is_public: AtomicBool,
}

impl Site {
    /// Serves `folder` on this port of 127.0.0.1; port 0 takes any free one.
    pub fn open(folder: &Path, port: u16) -> Result<Site> {
        let root = folder
            .canonicalize()
            .with_context(|| format!("there is no folder {} to serve; build the page first", folder.display()))?;
        let server =
            Server::http(("127.0.0.1", port)).map_err(|error| anyhow!("cannot listen on 127.0.0.1:{port}: {error}"))?;
        let server = Arc::new(server);
        let shared = Arc::new(Shared::of(root));
        let threads = (0..THREADS).map(|_| {
            let (server, shared) = (Arc::clone(&server), Arc::clone(&shared));
            std::thread::spawn(move || {
                while let Ok(request) = server.recv() {
                    shared.answer(request);
                }
            })
        });
        let threads = threads.collect();
        Ok(Site { address: format!("http://{}/", server.server_addr()), server, shared, threads })
    }

    /// Where the page is, with a slash at the end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on this goes wrong, instead of what went wrong before.
    pub fn break_with(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// From now on nothing goes wrong.
    pub fn mend(&self) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Lets pages of other addresses read the files.
    pub fn make_public(&self) {
        self.shared.is_public.store(true, Ordering::Relaxed);
    }

    /// What was asked for since the last call, in the order of the answers.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves until the process is ended from outside.
    pub fn serve_forever(mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it; the others go on serving.
            let _ = thread.join();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for _ in 0..THREADS {
            self.server.unblock();
        }
    }
}

impl Shared {
    fn of(root: PathBuf) -> Shared {
        Shared { root, fault: Mutex::default(), asked: Mutex::default(), is_public: AtomicBool::new(false) }
    }

    fn answer(&self, request: Request) {
        let path = request.url().split(['?', '#']).next().unwrap_or_default().to_owned();
        let sent = match (request.method(), self.read(&path)) {
            (Method::Get | Method::Head, Some((file, bytes))) => {
                let range = request.headers().iter().find(|field| field.field.equiv("Range"));
                let from = range.and_then(|field| first_byte(field.value.as_str()));
                self.send(request, &path, &file, bytes, from)
            }
            (Method::Get | Method::Head, None) => {
                request.respond(Response::from_string("not found").with_status_code(404))
            }
            _ => request.respond(Response::from_string("only GET and HEAD").with_status_code(405)),
        };
        // The visitor closed the page while it was loading: nobody is left to tell.
        drop(sent);
    }

    /// Sends a file, or what follows its byte `from`.
    fn send(
        &self,
        request: Request,
        path: &str,
        file: &Path,
        mut bytes: Vec<u8>,
        from: Option<usize>,
    ) -> std::io::Result<()> {
        let total = bytes.len();
        let kind = media_type(file);
        let mut fields = vec![
            ("Content-Type", kind.to_owned()),
            ("Cache-Control", "no-cache".into()),
            ("X-Content-Type-Options", "nosniff".into()),
            ("Accept-Ranges", "bytes".into()),
        ];
        if kind.starts_with("text/javascript") {
            fields.push(("Content-Security-Policy", SCRIPT_POLICY.into()));
        }
        if self.is_public.load(Ordering::Relaxed) {
            fields.push(("Access-Control-Allow-Origin", "*".into()));
        }
        let status = match from {
            None => 200,
            Some(from) if from < total => {
                fields.push(("Content-Range", format!("bytes {from}-{}/{total}", total - 1)));
                bytes.drain(..from);
                206
            }
            Some(_) => {
                fields.push(("Content-Range", format!("bytes */{total}")));
                bytes.clear();
                416
            }
        };
        let fields = fields
            .into_iter()
            .map(|(name, value)| Header::from_bytes(name, value).expect("our header fields are plain ASCII"));
        let asked = Asked { path: path.trim_start_matches('/').into(), from: from.unwrap_or(0) as u64 };
        let pace = self.pace(&asked.path);
        bytes.truncate(self.longest(&asked.path));
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        let length = bytes.len();
        let body = Paced { bytes: Cursor::new(bytes), pace };
        let response = Response::new(StatusCode(status), fields.collect(), body, Some(length), None);
        // A body that is cut into chunks has no length, and nobody could tell that a part of it is missing.
        request.respond(response.with_chunked_threshold(usize::MAX))
    }

    fn pace(&self, path: &str) -> Option<u32> {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Fault::Slow(folder, pace)) if path.starts_with(folder.as_str()) => Some(*pace),
            _ => None,
        }
    }

    fn longest(&self, path: &str) -> usize {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Fault::Cut(folder, longest)) if path.starts_with(folder.as_str()) => *longest,
            _ => usize::MAX,
        }
    }

    fn read(&self, path: &str) -> Option<(PathBuf, Vec<u8>)> {
        let relative = plain_path(path)?;
        let file = self.root.join(relative).canonicalize().ok()?;
        // A link inside the folder must not lead out of it.
        if !file.starts_with(&self.root) {
            return None;
        }
        let mut bytes = std::fs::read(&file).ok()?;
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Fault::Missing(name)) if name == relative => return None,
            Some(Fault::FlippedBit(name)) if name == relative => {
                let middle = bytes.len() / 2;
                *bytes.get_mut(middle)? ^= 1;
            }
            Some(Fault::Replaced(files)) => bytes = files.get(relative).cloned().unwrap_or(bytes),
            _ => {}
        }
        Some((file, bytes))
    }
}

/// A file's bytes at the speed of a slow line, so many a second.
struct Paced {
    bytes: Cursor<Vec<u8>>,
    pace: Option<u32>,
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(pace) = self.pace else { return self.bytes.read(buffer) };
        let most = buffer.len().min(SLOW_PIECE);
        let count = self.bytes.read(&mut buffer[..most])?;
        std::thread::sleep(Duration::from_secs_f64(count as f64 / f64::from(pace)));
        Ok(count)
    }
}

/// The byte that `bytes=N-` begins with; other ranges are answered with the whole file, as HTTP allows.
fn first_byte(range: &str) -> Option<usize> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// The path below the served folder, or `None` for one that could name anything else.
/// All our files have plain names, so an encoded character is refused too.
fn plain_path(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some("index.html");
    }
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    path.split('/').all(is_plain).then_some(path)
}

fn media_type(file: &Path) -> &'static str {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_the_served_folder() {
        for path in [
            "/../Cargo.toml",
            "/a/../../b",
            "//etc/passwd",
            "/.git/config",
            "/%2e%2e/x",
            "/a\\..\\b",
            "/c:/x",
            "etc/passwd",
        ] {
            assert_eq!(plain_path(path), None, "{path}");
        }
        assert_eq!(plain_path("/"), Some("index.html"));
        assert_eq!(plain_path("/bundle/weights-0.safetensors"), Some("bundle/weights-0.safetensors"));
    }

    #[test]
    fn a_flipped_bit_reaches_the_named_file_only_and_changes_one_byte() {
        let shared = Shared::of(Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap());
        *shared.fault.lock().unwrap() = Some(Fault::FlippedBit("Cargo.toml".into()));
        let expected = std::fs::read(shared.root.join("Cargo.toml")).unwrap();
        let (_, found) = shared.read("/Cargo.toml").unwrap();
        assert_eq!(expected.iter().zip(&found).filter(|(a, b)| a != b).count(), 1);
        let (_, whole) = shared.read("/src/main.rs").unwrap();
        assert_eq!(whole, std::fs::read(shared.root.join("src/main.rs")).unwrap());
    }

    #[test]
    fn every_answer_names_its_media_type_and_is_asked_for_again() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let site = Site::open(folder, 0).unwrap();
        let answer = ureq::get(format!("{}src/site.rs?v=1", site.address())).call().unwrap();
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        assert_eq!(media_type(Path::new("worker_bg.wasm")), "application/wasm");
        site.break_with(Fault::Missing("src/site.rs".into()));
        let gone = ureq::get(format!("{}src/site.rs", site.address())).call();
        assert!(matches!(gone, Err(ureq::Error::StatusCode(404))), "{gone:?}");
    }

    #[test]
    fn a_file_is_sent_from_any_byte_on_and_every_request_is_remembered() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let whole = std::fs::read(folder.join("Cargo.toml")).unwrap();
        let site = Site::open(folder, 0).unwrap();
        let ask = |range: &str| {
            let config = ureq::Agent::config_builder().http_status_as_error(false).build();
            let agent: ureq::Agent = config.into();
            agent.get(format!("{}Cargo.toml", site.address())).header("Range", range).call().unwrap()
        };
        let mut rest = ask("bytes=10-");
        assert_eq!(rest.status(), 206);
        assert_eq!(rest.headers()["content-range"], format!("bytes 10-{}/{}", whole.len() - 1, whole.len()).as_str());
        assert_eq!(rest.body_mut().read_to_vec().unwrap(), whole[10..]);
        assert_eq!(ask(&format!("bytes={}-", whole.len())).status(), 416);
        assert_eq!(ask("bytes=3-5").body_mut().read_to_vec().unwrap(), whole);
        let asked: Vec<u64> = site.asked().iter().map(|asked| asked.from).collect();
        assert_eq!(asked, [10, whole.len() as u64, 0]);
        assert_eq!(site.asked(), []);
    }
}
