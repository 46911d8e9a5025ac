//! Models by name: `org/name` or `org/name@revision` to a folder, from the Hugging Face Hub or its cache on this machine.
//!
//! The cache has the layout of Python's `huggingface_hub`, and both use what the other has fetched. Knows no tensor and
//! of files' contents only which weights an index names, and whether a config is one that we compute.
//!
//! `hf-hub` 0.5 and not 1.0: the latter starts an interrupted file over, and needs an asynchronous runtime and a C build.

use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cctuning::config::ModelConfig;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::{HumanBytes, ProgressBar};

use crate::run_folder::file_sha256;
use crate::weight_files::{self, INDEX_FILE, SINGLE_FILE};

/// What a folder cannot do without beside its weights.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// What is taken along where there is one, before the tokenizer: a folder with a tokenizer has all that is said of text.
const OF_TEXT: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "cctuning.json",
];
/// The same, before the weights: a folder with weights is complete.
const OF_WEIGHTS: [&str; 1] = ["transform_matrix.safetensors"];
/// Further attempts at a file whose connection breaks; each goes on where the one before ended.
const RETRIES: u32 = 4;

/// How much of a model is needed, each with those before it; the text is tokenizer, template and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Part {
    Config,
    Text,
    Weights,
}

/// Where models come from.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Without a slash at the end.
    pub endpoint: String,
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Nothing is asked of the network.
    pub offline: bool,
}

/// A model on the Hub.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// `org/name`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// The folder that a person means: an existing one, else a model of the Hub, fetched if it is not here yet.
///
/// # Errors
/// It is neither, or cannot be fetched.
pub fn resolve(model: &Path) -> Result<PathBuf> {
    resolve_part(model, Part::Weights)
}

/// As [`resolve`], where no more than a part is read.
pub fn resolve_part(model: &Path, part: Part) -> Result<PathBuf> {
    if model.is_dir() {
        return Ok(model.to_owned());
    }
    Hub::from_env()?.part(&Reference::parse(&model.to_string_lossy())?, part)
}

impl Reference {
    /// Reads `org/name` or `org/name@revision`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |word: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let edge = |c: char| c == '-' || c == '.';
            (1..=96).contains(&word.len())
                && word.chars().all(plain)
                && !word.starts_with(edge)
                && !word.ends_with(edge)
                && !word.contains("..")
                && !word.contains("--")
        };
        let named = id.split_once('/').is_some_and(|(org, name)| word(org) && word(name));
        ensure!(
            named && revision.len() <= 200 && revision.split('/').all(word),
            "{text:?}: there is no such folder, and it is not the name of a model on the Hub, which is org/name or \
             org/name@revision, as in Qwen/Qwen2.5-0.5B-Instruct"
        );
        Ok(Self { id: id.into(), revision: revision.into() })
    }
}

impl Hub {
    /// As the environment says: HF_ENDPOINT, HF_HUB_CACHE or HF_HOME, HF_TOKEN or the token file, HF_HUB_OFFLINE.
    ///
    /// # Errors
    /// There is no place for the cache.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let home = home.context("there is no home folder to keep models in; set HF_HOME to a folder that may grow")?;
        let stored = || fs::read_to_string(home.join("token")).ok();
        let token = set("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let on = |value: String| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(on),
        })
    }

    /// The folder of a model. What is here in full is taken as it is, without asking the network.
    ///
    /// # Errors
    /// It is not here, and cannot be fetched.
    pub fn folder(&self, reference: &Reference) -> Result<PathBuf> {
        self.part(reference, Part::Weights)
    }

    /// A part of it; the config is judged before anything larger is fetched.
    fn part(&self, reference: &Reference, part: Part) -> Result<PathBuf> {
        let Reference { id, revision } = reference;
        let missing = match self.cached(reference) {
            Some(folder) => match missing(&folder, part) {
                None => return Ok(folder),
                Some(file) => format!("{} has no {file}", folder.display()),
            },
            None => format!("{} does not hold it", self.cache.display()),
        };
        ensure!(
            !self.offline,
            "{id}@{revision}: {missing}, and HF_HUB_OFFLINE keeps the network out; unset it once to fetch the model, or \
             name a folder that has it"
        );
        let cache = Cache::new(self.cache.clone());
        let builder = ApiBuilder::from_cache(cache.clone());
        let api = builder.with_endpoint(self.endpoint.clone()).with_token(self.token.clone()).build()?;
        let repo = |revision: &str| Repo::with_revision(id.clone(), RepoType::Model, revision.into());

        let about = format!("{}/api/models/{id}/revision/{}", self.endpoint, repo(revision).url_revision());
        let info = api.repo(repo(revision)).info().map_err(|error| self.explain(reference, None, &about, &error))?;
        ensure!(
            info.sha.len() >= 7 && info.sha.chars().all(|c| c.is_ascii_hexdigit()),
            "{id}: {} gave {:?} for a commit; is HF_ENDPOINT the address of a Hub?",
            self.endpoint,
            info.sha
        );
        let offered: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let has = |file: &str| offered.contains(&file);
        for file in NEEDED {
            ensure!(has(file), "{id}@{revision} has no {file}, which this trainer needs: {}", kind(&offered));
        }
        ensure!(has(INDEX_FILE) || has(SINGLE_FILE), "{id}@{revision} has no safetensors weights: {}", kind(&offered));

        // All files are of one commit, whatever happens to the branch meanwhile.
        let at_commit = api.repo(repo(&info.sha));
        let fetch = |file: &str| self.fetch(reference, &api, &at_commit, &cache.repo(repo(&info.sha)), file);
        let [config, tokenizer] = NEEDED;
        fetch(config)?;
        let folder = cache.repo(repo(revision)).pointer_path(&info.sha);
        ModelConfig::from_json(&fs::read(folder.join(config))?)
            .with_context(|| format!("{id}@{revision}: {config}"))?;
        if part >= Part::Text {
            OF_TEXT.into_iter().filter(|file| has(file)).chain([tokenizer]).try_for_each(fetch)?;
        }
        if part >= Part::Weights {
            let shards = Some(INDEX_FILE).filter(|_| !has(SINGLE_FILE));
            OF_WEIGHTS.into_iter().chain(shards).filter(|file| has(file)).try_for_each(fetch)?;
            for file in weight_files::names(&folder)? {
                ensure!(has(&file), "{id}@{revision}: {INDEX_FILE} names {file}, which the repository does not have");
                fetch(&file)?;
            }
        }
        cache.repo(repo(revision)).create_ref(&info.sha)?;
        Ok(folder)
    }

    /// The folder of a revision in the cache, complete or not.
    fn cached(&self, Reference { id, revision }: &Reference) -> Option<PathBuf> {
        let repo = Repo::with_revision(id.clone(), RepoType::Model, revision.clone());
        let root = self.cache.join(repo.folder_name());
        let commit = fs::read_to_string(root.join("refs").join(revision)).map_or(revision.clone(), |c| c.trim().into());
        let folder = root.join("snapshots").join(commit);
        folder.is_dir().then_some(folder)
    }

    /// Gets one file into the cache and proves it, where its hash is known.
    fn fetch(
        &self,
        reference: &Reference,
        api: &Api,
        repo: &ApiRepo,
        cached: &hf_hub::CacheRepo,
        file: &str,
    ) -> Result<()> {
        if cached.get(file).is_some() {
            return Ok(());
        }
        let url = repo.url(file);
        let mut attempt = 0;
        let path = loop {
            let done = resumable(api, cached, &url).and_then(|()| {
                if std::io::stderr().is_terminal() {
                    repo.download_with_progress(file, ProgressBar::new(0))
                } else {
                    repo.download_with_progress(file, Lines::default())
                }
            });
            match done {
                Ok(path) => break path,
                Err(error) if attempt == RETRIES || !passing(&error) => {
                    return Err(self.explain(reference, Some(file), &url, &error));
                }
                Err(_) => attempt += 1,
            }
            std::thread::sleep(Duration::from_millis(300) * attempt);
        };
        let blob = fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))?;
        let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The Hub names large files by their sha256, small ones by git's.
        if name.len() == 64 {
            let found = file_sha256(&blob)?;
            if found != name {
                fs::remove_file(&path).and_then(|()| fs::remove_file(&blob))?;
                bail!(
                    "{}: {file} came damaged (sha256 {found}, expected {name}); run again to fetch it anew",
                    reference.id
                );
            }
        }
        Ok(())
    }

    /// The sentence that helps.
    fn explain(&self, reference: &Reference, file: Option<&str>, url: &str, error: &ApiError) -> anyhow::Error {
        let Reference { id, revision } = reference;
        let Self { endpoint, token, .. } = self;
        let what = file.map_or(format!("{id}@{revision}"), |file| format!("{id}@{revision}: {file}"));
        let page = format!("{endpoint}/{id}");
        let Some(status) = status(error) else {
            return match error {
                ApiError::IoError(_) | ApiError::RequestError(_) => anyhow!(
                    "{what}: no folder of that name is here, and {endpoint} cannot be reached or broke off ({error}); try \
                     again, what has arrived is kept; or set HF_ENDPOINT to a mirror, or name a folder that has the model"
                ),
                ApiError::LockAcquisition(_) => {
                    anyhow!("{what}: another process is fetching it; wait for that one, then run again")
                }
                _ => anyhow!("{what}: {endpoint} answers as no Hub does ({error}); is HF_ENDPOINT right?"),
            };
        };
        let code = self.reason(url);
        match (status, &*code) {
            (401 | 403, "GatedRepo") => {
                let then = match token {
                    Some(_) => "then run again; the token in use must be of that account and may read gated models",
                    None => "and set HF_TOKEN to a token of that account",
                };
                anyhow!("{what}: the model is gated; accept its terms on {page}, {then}")
            }
            (404, "RevisionNotFound") => {
                anyhow!("{what}: the model has no revision {revision:?}; {page}/tree/main lists what there is")
            }
            (404, "EntryNotFound") => anyhow!("{what}: the model has no such file; {page}/tree/{revision} lists them"),
            // Who is not logged in is not told what exists.
            (401 | 404, _) if token.is_none() => anyhow!(
                "{what}: no folder of that name is here, and {endpoint} shows no such model (status {status}); check the \
                 spelling, or, if it is private or gated, set HF_TOKEN to a token from {endpoint}/settings/tokens"
            ),
            (404, _) => anyhow!(
                "{what}: no folder of that name is here, and {endpoint} has no such model, or none that the token in use \
                 may see; check the spelling"
            ),
            (401 | 403, _) => anyhow!(
                "{what}: {endpoint} refuses the token in use (status {status}); make one that may read this model on \
                 {endpoint}/settings/tokens and set HF_TOKEN to it"
            ),
            (429, _) => anyhow!("{what}: {endpoint} asks for fewer requests; wait some minutes, or set HF_TOKEN"),
            _ => anyhow!("{what}: {endpoint} answers with status {status}; try again later, what has arrived is kept"),
        }
    }

    /// The Hub's own word for a refusal, which `hf-hub` drops.
    fn reason(&self, url: &str) -> String {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(Duration::from_secs(10)))
            .build()
            .into();
        let mut request = agent.get(url).header("Range", "bytes=0-0");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = request.call().ok();
        let code = answer.as_ref().and_then(|answer| answer.headers().get("X-Error-Code")?.to_str().ok());
        code.unwrap_or_default().to_owned()
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the same request may do better in a moment.
fn passing(error: &ApiError) -> bool {
    match (status(error), error) {
        (Some(status), _) => status >= 500,
        (None, ApiError::IoError(_)) => true,
        (None, ApiError::RequestError(error)) => !matches!(**error, ureq::Error::HostNotFound | ureq::Error::BadUri(_)),
        _ => false,
    }
}

/// Makes what an earlier attempt left something that the library can go on from: it asks for the bytes after those it has,
/// and a file that is complete but not renamed has none.
fn resumable(api: &Api, cached: &hf_hub::CacheRepo, url: &str) -> Result<(), ApiError> {
    let blobs = cached.blob_path("");
    let left = fs::read_dir(blobs).into_iter().flatten().flatten();
    if !left.into_iter().any(|entry| entry.path().extension().is_some_and(|extension| extension == "part")) {
        return Ok(());
    }
    let metadata = api.metadata(url)?;
    let part = cached.blob_path(metadata.etag()).with_extension("part");
    let (size, arrived) = (metadata.size() as u64, fs::metadata(&part).map_or(0, |part| part.len()));
    if arrived > size {
        fs::remove_file(&part)?;
    } else if arrived == size && size > 0 {
        fs::OpenOptions::new().write(true).open(&part)?.set_len(size - 1)?;
    }
    Ok(())
}

/// The first file of a part that a folder lacks.
fn missing(folder: &Path, part: Part) -> Option<String> {
    let weights = || weight_files::names(folder).unwrap_or_else(|_| [INDEX_FILE.into()].into());
    let weights = (part == Part::Weights).then(weights).into_iter().flatten();
    let needed = NEEDED.into_iter().take(part as usize + 1).map(String::from);
    needed.chain(weights).find(|file| !folder.join(file).exists())
}

/// What a repository without the needed files is instead.
fn kind(offered: &[&str]) -> String {
    let holds = |ending: &str| offered.iter().any(|file| file.ends_with(ending));
    if holds(".gguf") {
        "it holds GGUF files; take the repository that they were made from".into()
    } else if holds("adapter_config.json") {
        "it is an adapter; merge it into its base model first".into()
    } else if holds(".bin") || holds(".pth") {
        "it holds pickled weights, which are never loaded; a revision such as refs/pr/1 may hold safetensors".into()
    } else if holds("tokenizer.model") {
        "its tokenizer is a SentencePiece file; save it once as a fast tokenizer with transformers".into()
    } else {
        format!("it holds {} files: {}", offered.len(), offered[..offered.len().min(8)].join(", "))
    }
}

/// Progress for a log file: one line a file.
#[derive(Default)]
struct Lines {
    told: bool,
}

impl hf_hub::api::Progress for Lines {
    fn init(&mut self, size: usize, filename: &str) {
        if !std::mem::replace(&mut self.told, true) {
            eprintln!("fetching {filename}, {}", HumanBytes(size as u64));
        }
    }

    fn update(&mut self, _size: usize) {}

    fn finish(&mut self) {}
}
