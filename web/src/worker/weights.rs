//! Fetches the bundle: the manifest, then its files, a few at a time, each checked against its hash before use.
//!
//! Must not know: what is in the files, which device they go to.

use crate::scope::{pause, post};
use cctuning::bundle::{FileEntry, Manifest};
use js_sys::{Array, Promise, Uint8Array};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, future_to_promise};
use web::protocol::{Event, FileSize};
use web_sys::{ReadableStreamDefaultReader, RequestCache, RequestInit, Response};

/// Requests under way at once.
const CONCURRENT: usize = 3;
/// Tries per file before the visitor is told.
const TRIES: u32 = 4;
/// Bytes between two progress events of a file.
const REPORT_EVERY: u64 = 64 * 1024;

#[wasm_bindgen]
extern "C" {
    // The worker has no `window`; its global scope offers the same function.
    #[wasm_bindgen(js_name = fetch)]
    fn global_fetch(url: &str, init: &RequestInit) -> Promise;
}

/// A bundle's files by path, every byte checked.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Fetches the manifest of the bundle at `base`, an address with a trailing slash.
///
/// # Errors
/// It could not be reached, or is not a manifest.
pub async fn manifest(base: &str) -> Result<Manifest, String> {
    let bytes =
        download(&format!("{base}manifest.json"), RequestCache::NoCache, |_| ()).await.map_err(|miss| miss.text)?;
    Manifest::parse(&bytes).map_err(|error| error.to_string())
}

/// Fetches and checks the files that the manifest names.
///
/// # Errors
/// Names the file, and whether it could not be reached or is not what the manifest promises.
pub async fn files(base: &str, entries: Vec<FileEntry>) -> Result<Files, String> {
    post(&Event::Files(
        entries.iter().map(|entry| FileSize { path: entry.path.clone(), bytes: entry.bytes }).collect(),
    ));
    let queue = Rc::new(RefCell::new(entries));
    let files = Rc::new(RefCell::new(BTreeMap::new()));
    let lanes = Array::new();
    for _ in 0..CONCURRENT {
        let (base, queue, files) = (base.to_owned(), queue.clone(), files.clone());
        lanes.push(&future_to_promise(async move {
            loop {
                let next = queue.borrow_mut().pop();
                let Some(entry) = next else { return Ok(JsValue::UNDEFINED) };
                let data = fetch_verified(&base, &entry).await?;
                files.borrow_mut().insert(entry.path, data);
            }
        }));
    }
    let all = JsFuture::from(Promise::all(&lanes)).await;
    all.map_err(|error| error.as_string().unwrap_or_else(|| format!("{error:?}")))?;
    Ok(files.take())
}

/// One file, and once more past the browser's cache if its bytes are wrong: a cache may keep a broken copy.
async fn fetch_verified(base: &str, entry: &FileEntry) -> Result<Vec<u8>, String> {
    let url = format!("{base}{}", entry.path);
    let data = fetch_patiently(&url, entry, RequestCache::Default).await?;
    let data = match entry.verify(&data) {
        Ok(()) => data,
        Err(_) => {
            let again = fetch_patiently(&url, entry, RequestCache::Reload).await?;
            entry.verify(&again).map_err(|error| error.to_string())?;
            again
        }
    };
    post(&Event::Verified { path: entry.path.clone() });
    Ok(data)
}

async fn fetch_patiently(url: &str, entry: &FileEntry, cache: RequestCache) -> Result<Vec<u8>, String> {
    let mut tries = 1;
    loop {
        let progress = |bytes| post(&Event::Received { path: entry.path.clone(), bytes });
        match download(url, cache, progress).await {
            Ok(data) => return Ok(data),
            Err(miss) if miss.final_word || tries == TRIES => return Err(miss.text),
            Err(_) => pause(0.5 * f64::from(tries * tries)).await,
        }
        tries += 1;
    }
}

/// A download that did not come.
struct Miss {
    text: String,
    /// The server has answered, and asking again will not change its mind.
    final_word: bool,
}

async fn download(url: &str, cache: RequestCache, mut progress: impl FnMut(u64)) -> Result<Vec<u8>, Miss> {
    let lost =
        |error: JsValue| Miss { text: format!("{url}: the connection failed ({})", words(&error)), final_word: false };
    let init = RequestInit::new();
    init.set_cache(cache);
    let response: Response = JsFuture::from(global_fetch(url, &init)).await.map_err(lost)?.unchecked_into();
    if !response.ok() {
        let text = format!("{url}: the server answered {} {}", response.status(), response.status_text());
        return Err(Miss { text, final_word: response.status() < 500 });
    }
    let mut data = Vec::new();
    let Some(body) = response.body() else { return Ok(data) };
    let reader: ReadableStreamDefaultReader = body.get_reader().unchecked_into();
    let mut reported = 0;
    loop {
        let chunk = JsFuture::from(reader.read()).await.map_err(lost)?;
        let field = |key: &str| js_sys::Reflect::get(&chunk, &key.into()).unwrap_or(JsValue::UNDEFINED);
        if field("done").is_truthy() {
            break;
        }
        let bytes: Uint8Array = field("value").unchecked_into();
        let start = data.len();
        data.resize(start + bytes.length() as usize, 0);
        bytes.copy_to(&mut data[start..]);
        if data.len() as u64 - reported >= REPORT_EVERY {
            reported = data.len() as u64;
            progress(reported);
        }
    }
    progress(data.len() as u64);
    Ok(data)
}

fn words(error: &JsValue) -> String {
    let error: Option<&js_sys::Error> = error.dyn_ref();
    error.map_or_else(|| "no reason given".into(), |error| String::from(error.message()))
}
