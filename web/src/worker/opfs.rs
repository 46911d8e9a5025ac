//! The browser's own file system for this page (OPFS), and files that a visitor gave: as much of both as is needed.
//!
//! Must not know: bundles, hashes, the network.

use crate::scope::pause;
use js_sys::{ArrayBuffer, Function, Object, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

/// Bytes read at once: few calls, and little beside the caller's own copy.
const PIECE: u64 = 4 << 20;
/// A worker that was just ended holds its files a moment longer.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE_S: f64 = 0.1;

#[wasm_bindgen]
extern "C" {
    /// A file that can be read, on the visitor's disk or in the store.
    #[wasm_bindgen(js_name = Blob)]
    #[derive(Clone)]
    pub type File;
    #[wasm_bindgen(method, getter)]
    fn size(this: &File) -> f64;
    #[wasm_bindgen(method)]
    fn slice(this: &File, start: f64, end: f64) -> File;
    #[wasm_bindgen(method, js_name = arrayBuffer)]
    fn array_buffer(this: &File) -> Promise;

    #[wasm_bindgen(js_name = FileSystemDirectoryHandle)]
    #[derive(Clone)]
    type DirectoryHandle;
    #[wasm_bindgen(method, catch, js_name = getDirectoryHandle)]
    fn directory(this: &DirectoryHandle, name: &str, options: &JsValue) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, catch, js_name = getFileHandle)]
    fn file(this: &DirectoryHandle, name: &str, options: &JsValue) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, catch, js_name = removeEntry)]
    fn remove_entry(this: &DirectoryHandle, name: &str) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn keys(this: &DirectoryHandle) -> Result<JsValue, JsValue>;

    #[wasm_bindgen(js_name = FileSystemFileHandle)]
    type FileHandle;
    #[wasm_bindgen(method, catch, js_name = getFile)]
    fn get_file(this: &FileHandle) -> Result<Promise, JsValue>;
    #[wasm_bindgen(method, catch, js_name = createSyncAccessHandle)]
    fn access(this: &FileHandle) -> Result<Promise, JsValue>;

    #[wasm_bindgen(js_name = FileSystemSyncAccessHandle)]
    type AccessHandle;
    #[wasm_bindgen(method, catch, js_name = getSize)]
    fn size(this: &AccessHandle) -> Result<f64, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn truncate(this: &AccessHandle, size: f64) -> Result<(), JsValue>;
    #[wasm_bindgen(method, catch)]
    fn write(this: &AccessHandle, bytes: &Uint8Array, options: &JsValue) -> Result<f64, JsValue>;
    #[wasm_bindgen(method)]
    fn close(this: &AccessHandle);
}

/// A folder of the store.
#[derive(Clone)]
pub struct Folder(DirectoryHandle);

impl Folder {
    /// The store's folder of this name, made if it is not there.
    ///
    /// # Errors
    /// The browser's words: it has no store, or none for this page.
    pub async fn open(name: &str) -> Result<Folder, JsValue> {
        let navigator = Reflect::get(&js_sys::global(), &"navigator".into())?;
        let storage = Reflect::get(&navigator, &"storage".into())?;
        let open = Reflect::get(&storage, &"getDirectory".into())?;
        let open: Function = open.dyn_into().map_err(|_| JsValue::from_str("it has no private file system"))?;
        let root: DirectoryHandle = settled(open.call0(&storage)?.dyn_into()?).await?.unchecked_into();
        Ok(Folder(settled(root.directory(name, &creating())?).await?.unchecked_into()))
    }

    /// Names of the files in it.
    pub async fn names(&self) -> Result<Vec<String>, JsValue> {
        let keys = self.0.keys()?;
        let next: Function = Reflect::get(&keys, &"next".into())?.dyn_into()?;
        let mut names = Vec::new();
        loop {
            let step = settled(next.call0(&keys)?.dyn_into()?).await?;
            if Reflect::get(&step, &"done".into())?.is_truthy() {
                return Ok(names);
            }
            names.extend(Reflect::get(&step, &"value".into())?.as_string());
        }
    }

    /// A file as it is now.
    pub async fn read(&self, name: &str) -> Result<File, JsValue> {
        let handle: FileHandle = settled(self.0.file(name, &Object::new())?).await?.unchecked_into();
        Ok(settled(handle.get_file()?).await?.unchecked_into())
    }

    /// Opens a file to write at its end; it is made if it is not there. Nobody else can write to it meanwhile.
    pub async fn append_to(&self, name: &str) -> Result<Appending, JsValue> {
        let handle: FileHandle = settled(self.0.file(name, &creating())?).await?.unchecked_into();
        let mut tries = 1;
        loop {
            match settled(handle.access()?).await {
                Ok(access) => {
                    let access: AccessHandle = access.unchecked_into();
                    let length = access.size()? as u64;
                    return Ok(Appending { access, length });
                }
                Err(error) if tries == LOCK_TRIES || !is_locked(&error) => {
                    return Err(error);
                }
                Err(_) => pause(LOCK_PAUSE_S).await,
            }
            tries += 1;
        }
    }

    /// Removes a file; one that is not there, or that another tab is writing, is left as it is.
    pub async fn remove(&self, name: &str) {
        if let Ok(removing) = self.0.remove_entry(name) {
            settled(removing).await.ok();
        }
    }
}

/// A file of the store that grows.
pub struct Appending {
    access: AccessHandle,
    length: u64,
}

impl Appending {
    pub fn len(&self) -> u64 {
        self.length
    }

    pub fn truncate(&mut self, length: u64) -> Result<(), JsValue> {
        self.access.truncate(length as f64)?;
        self.length = length;
        Ok(())
    }

    pub fn append(&mut self, bytes: &Uint8Array) -> Result<(), JsValue> {
        let options = Object::new();
        Reflect::set(&options, &"at".into(), &(self.length as f64).into())?;
        let written = self.access.write(bytes, &options)?;
        self.length += written as u64;
        if written < f64::from(bytes.length()) {
            return Err(JsValue::from_str("QuotaExceededError"));
        }
        Ok(())
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        // Writes what is still in memory, and lets others at the file.
        self.access.close();
    }
}

impl File {
    pub fn len(&self) -> u64 {
        self.size() as u64
    }

    /// Replaces what is in `buffer` with the file's bytes.
    pub async fn read_into(&self, buffer: &mut Vec<u8>) -> Result<(), JsValue> {
        let length = self.len();
        make_room(buffer, length);
        while (buffer.len() as u64) < length {
            let start = buffer.len() as u64;
            let end = (start + PIECE).min(length);
            let piece: ArrayBuffer =
                settled(self.slice(start as f64, end as f64).array_buffer()).await?.unchecked_into();
            append(buffer, &Uint8Array::new(&piece));
        }
        Ok(())
    }
}

/// Empties `buffer` for so many bytes; a smaller one goes first, so that the two are never there together.
pub fn make_room(buffer: &mut Vec<u8>, length: u64) {
    let length = length as usize;
    buffer.clear();
    if buffer.capacity() < length {
        *buffer = Vec::new();
        buffer.reserve_exact(length);
    }
}

/// Copies what the browser holds behind what is in `buffer`.
pub fn append(buffer: &mut Vec<u8>, bytes: &Uint8Array) {
    let start = buffer.len();
    buffer.resize(start + bytes.length() as usize, 0);
    bytes.copy_to(&mut buffer[start..]);
}

/// Whether an error says that the browser grants no more space.
pub fn is_full(error: &JsValue) -> bool {
    name_of(error) == "QuotaExceededError" || error.as_string().as_deref() == Some("QuotaExceededError")
}

/// Whether an error says that a file is being written by another tab.
pub fn is_locked(error: &JsValue) -> bool {
    name_of(error) == "NoModificationAllowedError"
}

/// What the browser says of an error.
pub fn words(error: &JsValue) -> String {
    let message = Reflect::get(error, &"message".into()).ok().and_then(|text| text.as_string());
    error.as_string().or(message).filter(|text| !text.is_empty()).unwrap_or_else(|| "no reason given".into())
}

fn name_of(error: &JsValue) -> String {
    Reflect::get(error, &"name".into()).ok().and_then(|name| name.as_string()).unwrap_or_default()
}

fn creating() -> Object {
    let options = Object::new();
    Reflect::set(&options, &"create".into(), &JsValue::TRUE).ok();
    options
}

async fn settled(promise: Promise) -> Result<JsValue, JsValue> {
    JsFuture::from(promise).await
}
