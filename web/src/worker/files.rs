//! A bundle's files, one at a time and every byte checked, from wherever they come: the store, the network, or a folder of
//! the visitor's. What the network brings goes to the store first, a few files ahead of whoever takes them.
//!
//! Must not know: what is in the files, which device they go to.

use crate::download::{Download, Miss};
use crate::opfs::{Appending, File, append, is_full, is_locked, make_room, words};
use crate::scope::post;
use crate::store::Store;
use crate::tries::Tries;
use cctuning::bundle::{FileEntry, Manifest};
use cctuning::config::ModelConfig;
use js_sys::{Promise, Uint8Array};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::{JsFuture, future_to_promise};
use web::folder::{bundle_inside, no_bundle, quoted};
use web::keep::{Found, found};
use web::protocol::{BundleSource, Event, FileSize};
use web_sys::RequestCache;

/// Files on their way into the store at once.
const LANES: usize = 3;
/// Bytes between two progress events of a file.
const REPORT_EVERY: u64 = 256 * 1024;

/// The files of one bundle.
pub struct Files {
    pub manifest: Manifest,
    origin: Origin,
    /// What is under way into the store, by path; each resolves when it is there or known not to come.
    coming: BTreeMap<String, Promise>,
}

enum Origin {
    Folder { name: String, files: BTreeMap<String, File> },
    Network(Rc<Network>),
}

/// A bundle at an address, and where its files are kept.
struct Network {
    address: String,
    /// `None` once it turned out to keep nothing.
    store: RefCell<Option<Store>>,
    /// Where each file's bytes came from so far, by path.
    counts: RefCell<BTreeMap<String, Count>>,
}

#[derive(Clone, Copy)]
struct Count {
    kept: u64,
    fetched: u64,
    reported: u64,
}

/// Why a file is not in the store.
enum Absent {
    /// It could not be had.
    Lost(Miss),
    /// It could not be kept.
    NotKept(JsValue),
}

impl Files {
    /// Reads the manifest and begins to fetch what it names.
    ///
    /// # Errors
    /// There is none, or it is not one that this page reads.
    pub async fn open(source: BundleSource, given: Vec<File>) -> Result<Files, String> {
        let mut bytes = Vec::new();
        let origin = match source {
            BundleSource::Folder { name, paths } => {
                let inside = bundle_inside(paths.iter().map(String::as_str))
                    .ok_or_else(|| no_bundle(&name, paths.len()))?
                    .to_owned();
                let files = paths.iter().zip(given);
                let files: BTreeMap<String, File> =
                    files.filter_map(|(path, file)| Some((path.strip_prefix(&inside)?.to_owned(), file))).collect();
                read(&name, "manifest.json", &files, &mut bytes).await?;
                Origin::Folder { name, files }
            }
            BundleSource::Address(address) => {
                let url = format!("{address}manifest.json");
                let mut tries = Tries::new();
                while let Err(miss) = whole(&url, &mut bytes).await {
                    if !tries.again(&miss, false).await {
                        return Err(miss.text);
                    }
                }
                let store = match Store::open().await {
                    Ok(store) => Some(store),
                    Err(reason) => {
                        post(&Event::NotKept(reason));
                        None
                    }
                };
                Origin::Network(Rc::new(Network { address, store: RefCell::new(store), counts: RefCell::default() }))
            }
        };
        let manifest = Manifest::parse(&bytes).map_err(|error| error.to_string())?;
        let size = |entry: &FileEntry| FileSize { path: entry.path.clone(), bytes: entry.bytes };
        let sizes = manifest.files.iter().map(size).collect();
        post(&Event::Files { title: manifest.title.clone(), files: sizes });
        let mut coming = BTreeMap::new();
        if let Origin::Network(network) = &origin {
            network.remember(&bytes).await;
            coming = network.fetch_ahead(&manifest.files);
        }
        Ok(Files { manifest, origin, coming })
    }

    /// The shape of both models.
    ///
    /// # Errors
    /// The manifest's configuration is of no model that is known here.
    pub fn config(&self) -> Result<ModelConfig, String> {
        self.manifest.config().map_err(|error| error.to_string())
    }

    /// Replaces what is in `buffer` with this file's bytes, which have the hash that the manifest names. A wrong one is
    /// fetched once more: a store or a cache may keep a broken copy.
    ///
    /// # Errors
    /// Names the file, and whether it could not be reached or is not what the manifest promises.
    pub async fn take(&self, entry: &FileEntry, buffer: &mut Vec<u8>) -> Result<(), String> {
        let mut repaired = false;
        match &self.origin {
            Origin::Folder { name, files } => {
                read(name, &entry.path, files, buffer).await?;
                entry.verify(buffer).map_err(|error| error.to_string())?;
                post(&Event::Received { path: entry.path.clone(), kept: entry.bytes, fetched: 0 });
            }
            Origin::Network(network) => {
                if let Some(coming) = self.coming.get(&entry.path) {
                    JsFuture::from(coming.clone()).await.ok();
                }
                network.obtain(entry, false, buffer).await?;
                if entry.verify(buffer).is_err() {
                    repaired = true;
                    network.obtain(entry, true, buffer).await?;
                    entry.verify(buffer).map_err(|error| error.to_string())?;
                }
            }
        }
        post(&Event::Verified { path: entry.path.clone(), repaired });
        Ok(())
    }
}

/// Replaces what is in `buffer` with what is at an address now.
async fn whole(url: &str, buffer: &mut Vec<u8>) -> Result<(), Miss> {
    buffer.clear();
    let mut download = Download::open(url, 0, RequestCache::NoCache).await?;
    while let Some(piece) = download.next().await? {
        append(buffer, &piece);
    }
    Ok(())
}

async fn read(folder: &str, path: &str, files: &BTreeMap<String, File>, buffer: &mut Vec<u8>) -> Result<(), String> {
    let file =
        files.get(path).ok_or_else(|| format!("{} has no file {path}, which its manifest names.", quoted(folder)))?;
    file.read_into(buffer)
        .await
        .map_err(|error| format!("{path} of {} cannot be read: {}", quoted(folder), words(&error)))
}

impl Network {
    fn store(&self) -> Option<Store> {
        self.store.borrow().clone()
    }

    /// Files that are already kept stay so; no more are added.
    fn keep_no_more(&self, error: &JsValue) {
        if self.store.take().is_some() {
            let reason = if is_full(error) {
                "the browser grants this page no more space".to_owned()
            } else {
                format!("the browser's store failed ({})", words(error))
            };
            post(&Event::NotKept(reason));
        }
    }

    async fn remember(&self, manifest: &[u8]) {
        let Some(store) = self.store() else { return };
        if let Err(error) = store.remember(&self.address, manifest).await {
            self.keep_no_more(&error);
        }
    }

    /// Brings all files into the store, [`LANES`] at a time and in this order.
    fn fetch_ahead(self: &Rc<Self>, entries: &[FileEntry]) -> BTreeMap<String, Promise> {
        let mut order: Vec<Promise> = Vec::new();
        if self.store().is_some() {
            for entry in entries {
                let before = order.len().checked_sub(LANES).map(|turn| order[turn].clone());
                let (network, entry) = (Rc::clone(self), entry.clone());
                order.push(future_to_promise(async move {
                    if let Some(before) = before {
                        JsFuture::from(before).await.ok();
                    }
                    // What goes wrong here goes wrong again, and is reported, when the file is taken.
                    if let Some(store) = network.store() {
                        network.keep(&store, &entry).await.ok();
                    }
                    Ok(JsValue::UNDEFINED)
                }));
            }
        }
        entries.iter().map(|entry| entry.path.clone()).zip(order).collect()
    }

    /// Puts one file into `buffer`, from the store if there is one. `anew` trusts no copy.
    async fn obtain(&self, entry: &FileEntry, anew: bool, buffer: &mut Vec<u8>) -> Result<(), String> {
        if let Some(store) = self.store() {
            if anew {
                store.remove(&entry.sha256).await;
            }
            let kept = match self.keep(&store, entry).await {
                Ok(()) => match store.read(&entry.sha256).await {
                    Ok(file) => file.read_into(buffer).await,
                    Err(error) => Err(error),
                },
                Err(Absent::Lost(miss)) => return Err(miss.text),
                Err(Absent::NotKept(error)) => Err(error),
            };
            match kept {
                Ok(()) => return Ok(()),
                // Another tab keeps this one; the next may be free.
                Err(error) if is_locked(&error) => {}
                Err(error) => self.keep_no_more(&error),
            }
        }
        let cache = if anew { RequestCache::Reload } else { RequestCache::Default };
        make_room(buffer, entry.bytes);
        let fetched = self.fetch(entry, cache, &mut Sink::Memory(buffer)).await;
        fetched.map_err(|absent| match absent {
            Absent::Lost(miss) => miss.text,
            Absent::NotKept(error) => words(&error),
        })
    }

    /// Completes a file in the store. Where space is short, other bundles give way first.
    async fn keep(&self, store: &Store, entry: &FileEntry) -> Result<(), Absent> {
        match self.complete(store, entry).await {
            Err(Absent::NotKept(error)) if is_full(&error) => {
                store.forget_all_but(&self.address).await.map_err(Absent::NotKept)?;
                let again = self.complete(store, entry).await;
                if matches!(again, Err(Absent::NotKept(_))) {
                    store.remove(&entry.sha256).await;
                }
                again
            }
            other => other,
        }
    }

    async fn complete(&self, store: &Store, entry: &FileEntry) -> Result<(), Absent> {
        let here = store.read(&entry.sha256).await.map_or(0, |file| file.len());
        if found(here, entry.bytes) == Found::Whole {
            self.count(entry, |count| count.kept = entry.bytes - count.fetched.min(entry.bytes));
            return Ok(());
        }
        let mut file = store.append_to(&entry.sha256).await.map_err(Absent::NotKept)?;
        if found(file.len(), entry.bytes) == Found::Foreign {
            file.truncate(0).map_err(Absent::NotKept)?;
        }
        // The store is the cache; the browser's own would hold everything a second time.
        self.fetch(entry, RequestCache::NoStore, &mut Sink::Store(file)).await
    }

    /// Fetches what the sink lacks of a file, and goes on where a broken connection ended.
    async fn fetch(&self, entry: &FileEntry, cache: RequestCache, sink: &mut Sink<'_>) -> Result<(), Absent> {
        let begins_with = sink.len();
        self.count(entry, |count| count.kept = begins_with);
        let mut tries = Tries::new();
        while sink.len() < entry.bytes {
            let before = sink.len();
            // Some servers refuse what goes on in the middle. What is here stays until the answer has begun.
            let from = if tries.is_last() { 0 } else { before };
            if let Err(absent) = self.fetch_rest(entry, from, cache, sink).await {
                match absent {
                    Absent::Lost(miss) if tries.again(&miss, sink.len() > before).await => {}
                    absent => return Err(absent),
                }
            }
        }
        self.report(entry);
        Ok(())
    }

    async fn fetch_rest(
        &self,
        entry: &FileEntry,
        from: u64,
        cache: RequestCache,
        sink: &mut Sink<'_>,
    ) -> Result<(), Absent> {
        let url = format!("{}{}", self.address, entry.path);
        let mut download = Download::open(&url, from, cache).await.map_err(Absent::Lost)?;
        sink.truncate(download.begins_at).map_err(Absent::NotKept)?;
        if download.begins_at == 0 {
            self.count(entry, |count| count.kept = 0);
        }
        while let Some(piece) = download.next().await.map_err(Absent::Lost)? {
            sink.append(&piece).map_err(Absent::NotKept)?;
            self.count(entry, |count| count.fetched += u64::from(piece.length()));
            if sink.len() > entry.bytes {
                return Err(wrong_length(entry, &format!("more than {} bytes", entry.bytes)));
            }
        }
        match sink.len() {
            found if found < entry.bytes => Err(wrong_length(entry, &format!("{found} bytes"))),
            _ => Ok(()),
        }
    }
}

impl Network {
    /// Counts bytes, and tells the page now and then.
    fn count(&self, entry: &FileEntry, change: impl FnOnce(&mut Count)) {
        let mut counts = self.counts.borrow_mut();
        let known = counts.contains_key(&entry.path);
        let count = counts.entry(entry.path.clone()).or_insert(Count { kept: 0, fetched: 0, reported: 0 });
        let kept = count.kept;
        change(count);
        let report = !known || count.kept != kept || count.fetched >= count.reported + REPORT_EVERY;
        drop(counts);
        if report {
            self.report(entry);
        }
    }

    fn report(&self, entry: &FileEntry) {
        if let Some(count) = self.counts.borrow_mut().get_mut(&entry.path) {
            count.reported = count.fetched;
            post(&Event::Received { path: entry.path.clone(), kept: count.kept, fetched: count.fetched });
        }
    }
}

fn wrong_length(entry: &FileEntry, found: &str) -> Absent {
    let text = format!("{}: the manifest says {} bytes, the server sent {found}", entry.path, entry.bytes);
    // A shorter file may be one that was cut off on its way.
    Absent::Lost(Miss { text, final_word: found.starts_with("more") })
}

/// Where a download goes.
enum Sink<'b> {
    Store(Appending),
    Memory(&'b mut Vec<u8>),
}

impl Sink<'_> {
    fn len(&self) -> u64 {
        match self {
            Sink::Store(file) => file.len(),
            Sink::Memory(buffer) => buffer.len() as u64,
        }
    }

    fn truncate(&mut self, length: u64) -> Result<(), JsValue> {
        match self {
            Sink::Store(file) if file.len() == length => Ok(()),
            Sink::Store(file) => file.truncate(length),
            Sink::Memory(buffer) => {
                buffer.truncate(length as usize);
                Ok(())
            }
        }
    }

    fn append(&mut self, bytes: &Uint8Array) -> Result<(), JsValue> {
        match self {
            Sink::Store(file) => file.append(bytes),
            Sink::Memory(buffer) => {
                append(buffer, bytes);
                Ok(())
            }
        }
    }
}
