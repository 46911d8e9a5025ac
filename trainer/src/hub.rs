//! Models by name: `org/name` or `org/name@revision` to a folder, from the Hugging Face Hub or its cache on this machine.
//!
//! The cache has the layout of Python's `huggingface_hub`, and both use what the other has fetched. Knows no tensor and
//! of files' contents only which weights an index names, and whether a config is one that we compute.
//!
//! `hf-hub` 0.5 and not 1.0: the latter starts an interrupted file over, and needs an asynchronous runtime and a C build.

mod refusal;

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

use crate::model_folder::TRANSFORM_FILE;
use crate::run_folder::{file_sha256, write_file_atomically};
use crate::weight_files::{self, INDEX_FILE, SINGLE_FILE};
use refusal::{kind, status};

/// What a folder cannot do without beside its weights.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// What is taken along with the tokenizer where there is one.
const OF_TEXT: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "cctuning.json",
];
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
    /// As the environment says, in the words of Python's `huggingface_hub`: HF_ENDPOINT, HF_HUB_CACHE or HF_HOME, HF_TOKEN
    /// or the file that HF_TOKEN_PATH names, HF_HUB_OFFLINE; and those that it has given up.
    ///
    /// # Errors
    /// There is no place for the cache.
    pub fn from_env() -> Result<Self> {
        Self::of(|name| env::var(name).ok())
    }

    /// As these variables say.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let home = home.context("there is no home folder to keep models in; set HF_HOME to a folder that may grow")?;
        let stored = || fs::read_to_string(set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from)).ok();
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(stored)
            .map(|token| token.trim().to_owned());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let on = |value: String| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(on),
        })
    }

    /// The folder of a model. What is here in full is taken as it is, without asking the network, once it is known what
    /// belongs to it.
    ///
    /// # Errors
    /// It is not here, and cannot be fetched.
    pub fn folder(&self, reference: &Reference) -> Result<PathBuf> {
        self.part(reference, Part::Weights)
    }

    /// A part of it. Of a folder that another program has filled nobody may have asked yet what else belongs to it.
    fn part(&self, reference: &Reference, part: Part) -> Result<PathBuf> {
        let Reference { id, revision } = reference;
        let here = self.cached(reference);
        let missing = match &here {
            Some(folder) => missing(folder, part).map(|file| format!("{} has no {file}", folder.display())),
            None => Some(format!("{} does not hold it", self.cache.display())),
        };
        let Some(folder) = here.filter(|_| missing.is_none()) else {
            ensure!(
                !self.offline,
                "{id}@{revision}: {}, and HF_HUB_OFFLINE keeps the network out; unset it once to fetch the model, or name a \
                 folder that has it",
                missing.unwrap_or_default()
            );
            return self.fetch_part(reference, part);
        };
        let Some(unasked) = optional(part).find(|file| !folder.join(file).exists() && !absent(&folder, file).exists())
        else {
            return Ok(folder);
        };
        let commit = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let asked = if self.offline {
            Err(anyhow!("HF_HUB_OFFLINE keeps the network out"))
        } else {
            self.fetch_part(&Reference { id: id.clone(), revision: commit }, part)
        };
        asked.or_else(|error| {
            eprintln!(
                "warning: {id}@{revision} is taken as it is here, without {unasked}, though the model may have one: {error:#}"
            );
            Ok(folder)
        })
    }

    /// Fetches what is not here of a part; the config is judged before anything larger is fetched.
    fn fetch_part(&self, reference: &Reference, part: Part) -> Result<PathBuf> {
        let Reference { id, revision } = reference;
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
        let cached = cache.repo(repo(&info.sha));
        let folder = cached.pointer_path(&info.sha);
        // Asked of the folder: the library looks for a ref of the commit's own, which Python's does not write.
        let fetch = |file: &str| match folder.join(file).exists() {
            true => Ok(()),
            false => self.fetch(reference, &api, &at_commit, &cached, file),
        };
        let [config, tokenizer] = NEEDED;
        fetch(config)?;
        ModelConfig::from_json(&fs::read(folder.join(config))?)
            .with_context(|| format!("{id}@{revision}: {config}"))?;
        for file in optional(part) {
            if has(file) {
                fetch(file)?;
            } else {
                write_file_atomically(&absent(&folder, file), b"")?;
            }
        }
        if part >= Part::Text {
            fetch(tokenizer)?;
        }
        if part >= Part::Weights {
            if !has(SINGLE_FILE) {
                fetch(INDEX_FILE)?;
            }
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

/// What belongs to a part where there is one.
fn optional(part: Part) -> impl Iterator<Item = &'static str> {
    let text = OF_TEXT.into_iter().filter(move |_| part >= Part::Text);
    text.chain(Some(TRANSFORM_FILE).filter(|_| part >= Part::Weights))
}

/// The empty file by which the cache remembers that a commit has no such file.
fn absent(snapshot: &Path, file: &str) -> PathBuf {
    let root = snapshot.ancestors().nth(2).unwrap_or(snapshot);
    root.join(".no_exist").join(snapshot.file_name().unwrap_or_default()).join(file)
}

/// The first file of a part that a folder lacks.
fn missing(folder: &Path, part: Part) -> Option<String> {
    let weights = || weight_files::names(folder).unwrap_or_else(|_| [INDEX_FILE.into()].into());
    let weights = (part == Part::Weights).then(weights).into_iter().flatten();
    let needed = NEEDED.into_iter().take(part as usize + 1).map(String::from);
    needed.chain(weights).find(|file| !folder.join(file).exists())
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
