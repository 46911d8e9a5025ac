//! Checkpoints and files that are either whole or absent, whenever the process is killed.
//!
//! A checkpoint is a folder with a `MANIFEST.sha256` that lists every other file in it (`sha256sum -c` reads it too).
//! Names that begin with a dot are unfinished business; nobody reads them, and `sweep` clears them at start.
//! This room knows nothing of what the files mean.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use cctuning::bundle::hex;
use sha2::{Digest, Sha256};

const MANIFEST: &str = "MANIFEST.sha256";
/// Being written.
const WRITING: &str = ".writing-";
/// The former holder of a name, until its successor has taken it.
const REPLACED: &str = ".replaced-";
/// Being deleted.
const DELETING: &str = ".deleting-";
/// Locked by the process that works in a folder.
const LOCK: &str = ".lock";

/// Writes the checkpoint folder `dir/name`: `fill` gets an empty folder and writes files, sub-folders included.
///
/// # Errors
/// When `fill` fails or the disk does; `dir/name` is then as it was.
pub fn write_atomically(dir: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let (target, writing, replaced) =
        (dir.join(name), dir.join(format!("{WRITING}{name}")), dir.join(format!("{REPLACED}{name}")));
    remove(&writing)?;
    fs::create_dir_all(&writing).with_context(|| format!("cannot create {}", writing.display()))?;
    let filled = fill(&writing).and_then(|()| seal(&writing));
    if let Err(error) = filled {
        // The first error is the one worth reading; what stays behind is swept at the next start.
        let _ = remove(&writing);
        return Err(error.context(format!("cannot write {}", target.display())));
    }
    if target.exists() {
        remove(&replaced)?;
        rename(&target, &replaced)?;
    }
    rename(&writing, &target)?;
    sync(dir)?;
    remove(&replaced)?;
    Ok(target)
}

/// Writes one file whole; readers see the old content or the new.
pub fn write_file_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    stream_file_atomically(path, |out| out.write_all(bytes))
}

/// Writes one file whole, from what `fill` has to say as it goes.
pub fn stream_file_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default().to_string_lossy());
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let writing = dir.join(format!("{WRITING}{name}"));
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut file = File::create(&writing)?;
        fill(&mut file)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    rename(&writing, path)?;
    sync(dir)
}

/// Keeps other processes from working in `dir` for as long as the result lives.
///
/// # Errors
/// Another one does, or there can be no such folder.
pub fn hold(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = dir.join(LOCK);
    let file = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!(
                "{}: another process is at work there; wait until it has ended, or name another folder",
                dir.display()
            )
        }
        // Some network file systems know no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Clears what killed writes left in `dir`; call once at start, before anything is read. A missing `dir` is clean.
pub fn sweep(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for (name, path) in entries(dir)? {
        if let Some(name) = name.strip_prefix(REPLACED)
            && !dir.join(name).exists()
        {
            // Killed between two renames: the former holder is still the newest whole one.
            rename(&path, &dir.join(name))?;
        } else if [WRITING, REPLACED, DELETING].iter().any(|prefix| name.starts_with(prefix)) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The newest checkpoint of `dir` whose checksums hold: `step-9` is older than `step-10`. None if there is no checkpoint at all.
///
/// # Errors
/// When there are checkpoints but not one is whole: starting afresh then is for a person to decide.
pub fn newest_valid(dir: &Path) -> Result<Option<PathBuf>> {
    let checkpoints = newest_first(dir)?;
    for checkpoint in &checkpoints {
        match verify(checkpoint) {
            Ok(()) => return Ok(Some(checkpoint.clone())),
            Err(fault) => eprintln!("warning: passing over a damaged checkpoint: {fault:#}"),
        }
    }
    ensure!(
        checkpoints.is_empty(),
        "{}: expected a whole checkpoint, found {} damaged; move them away to start afresh",
        dir.display(),
        checkpoints.len()
    );
    Ok(None)
}

/// Deletes all checkpoints older than the newest `keep` valid ones, of which at least one always stays.
pub fn prune(dir: &Path, keep: usize) -> Result<()> {
    let checkpoints = newest_first(dir)?;
    if checkpoints.len() <= keep {
        return Ok(());
    }
    let mut valid = 0;
    for checkpoint in checkpoints {
        if valid < keep.max(1) {
            valid += usize::from(verify(&checkpoint).is_ok());
            continue;
        }
        let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
        // Renamed first, so that a half-deleted folder is never taken for a checkpoint.
        let deleting = dir.join(format!("{DELETING}{name}"));
        remove(&deleting)?;
        rename(&checkpoint, &deleting)?;
        remove(&deleting)?;
    }
    Ok(())
}

/// Checks that a checkpoint holds exactly the files of its manifest, with their checksums.
///
/// # Errors
/// Names the first file that is missing, added or changed.
pub fn verify(checkpoint: &Path) -> Result<()> {
    let manifest = checkpoint.join(MANIFEST);
    let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let mut expected = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let Some((sum, name)) = line.split_once("  ") else {
            bail!("{}:{}: expected `SHA256  FILE`, found {line:?}", manifest.display(), number + 1);
        };
        expected.insert(name.to_string(), sum.to_string());
    }
    ensure!(!expected.is_empty(), "{}: expected at least one file, found none", manifest.display());
    let found = files(checkpoint)?;
    for name in expected.keys().chain(found.keys()) {
        let place = checkpoint.join(name);
        let (Some(sum), Some(path)) = (expected.get(name), found.get(name)) else {
            let fault =
                if found.contains_key(name) { "is not in the manifest" } else { "is in the manifest but missing" };
            bail!("{} {fault}", place.display());
        };
        let actual = file_sha256(path)?;
        ensure!(actual == *sum, "{}: expected sha256 {sum}, found {actual}", place.display());
    }
    Ok(())
}

/// Writes the manifest and forces everything to the disk.
fn seal(folder: &Path) -> Result<()> {
    let files = files(folder)?;
    ensure!(!files.is_empty(), "{}: expected at least one file, found none", folder.display());
    let mut manifest = String::new();
    for (name, path) in &files {
        ensure!(!name.contains('\n'), "{name:?}: a file name with a line break cannot be listed in a manifest");
        manifest += &format!("{}  {name}\n", file_sha256(path)?);
        // The folders too: they hold the names, and a file without its name is lost.
        for place in path.ancestors().take_while(|place| place.starts_with(folder)) {
            sync(place)?;
        }
    }
    write_file_atomically(&folder.join(MANIFEST), manifest.as_bytes())
}

/// Every file below `folder` but the manifest, by its path with forward slashes.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for (name, path) in entries(folder)? {
        if path.is_dir() {
            found.extend(files(&path)?.into_iter().map(|(inner, path)| (format!("{name}/{inner}"), path)));
        } else if name != MANIFEST {
            found.insert(name, path);
        }
    }
    Ok(found)
}

fn newest_first(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found: Vec<_> =
        entries(dir)?.into_iter().filter(|(name, path)| path.is_dir() && !name.starts_with('.')).collect();
    let number =
        |name: &str| name.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<u64>().ok());
    found.sort_by_cached_key(|(name, _)| std::cmp::Reverse((number(name), name.clone())));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let list = || -> io::Result<Vec<_>> {
        fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
            .collect()
    };
    list().with_context(|| format!("cannot list {}", dir.display()))
}

/// The bytes of a file; None where there is none.
///
/// # Errors
/// There is one that cannot be read.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The checksum of a file's bytes.
///
/// # Errors
/// It cannot be read.
pub fn file_sha256(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hasher))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

fn sync(path: &Path) -> Result<()> {
    // Only Unix can open a folder, and only Unix flushes what is open for reading alone.
    if cfg!(not(unix)) && path.is_dir() {
        return Ok(());
    }
    File::options()
        .read(true)
        .write(cfg!(not(unix)))
        .open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot write {} to the disk", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
