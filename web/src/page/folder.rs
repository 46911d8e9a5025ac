//! Folders that a visitor chooses or drops, as lists of files with their paths inside.
//!
//! Must not know: bundles, the worker, how anything looks.

use js_sys::{Array, Function, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

/// A bundle has some hundred files at most; whoever drops a whole disk should hear of it soon.
const MOST_FILES: usize = 5000;

/// Files with their paths inside the folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    pub name: String,
    pub files: Vec<(String, JsValue)>,
}

impl Folder {
    /// What an `<input type=file webkitdirectory>` holds, or `None` if nothing was chosen.
    pub fn chosen(input: &JsValue) -> Option<Folder> {
        let files = Array::from(&get(input, "files"));
        // `folder/sub/file`; only the name where the browser chooses single files.
        let path = |file: &JsValue| {
            let path = get(file, "webkitRelativePath").as_string().filter(|path| !path.is_empty());
            path.or_else(|| get(file, "name").as_string()).unwrap_or_default()
        };
        let first = path(&files.iter().next()?);
        let name = first.split_once('/').map(|(name, _)| name.to_owned());
        let inside = |path: String| match &name {
            Some(name) => path.strip_prefix(name).and_then(|path| path.strip_prefix('/')).unwrap_or(&path).to_owned(),
            None => path,
        };
        let files = files.iter().map(|file| (inside(path(&file)), file)).collect();
        Some(Folder { name: name.unwrap_or_else(|| "chosen files".into()), files })
    }

    /// Whether a drag carries files at all, and not a piece of text.
    pub fn is_dragged(event: &JsValue) -> bool {
        Array::from(&get(&get(event, "dataTransfer"), "types")).iter().any(|kind| kind == "Files")
    }

    /// What was dropped: one folder, or the files of one. To be called from the event's own listener; the walk through the
    /// folder comes later.
    pub fn dropped(event: &JsValue) -> impl Future<Output = Result<Folder, String>> + use<> {
        let items = Array::from(&get(&get(event, "dataTransfer"), "items"));
        let entries: Vec<JsValue> =
            items.iter().map(|item| call(&item, "webkitGetAsEntry", &[])).filter(JsValue::is_object).collect();
        walk(entries)
    }
}

async fn walk(entries: Vec<JsValue>) -> Result<Folder, String> {
    let name_of = |entry: &JsValue| get(entry, "name").as_string().unwrap_or_default();
    let is_folder = |entry: &JsValue| get(entry, "isDirectory").is_truthy();
    let (name, mut waiting) = match &entries[..] {
        [] => return Err("What was dropped is no folder.".into()),
        [folder] if is_folder(folder) => (name_of(folder), vec![(String::new(), folder.clone())]),
        files => {
            let named = files.iter().map(|entry| (name_of(entry), entry.clone())).collect();
            ("dropped files".to_owned(), named)
        }
    };
    let mut folder = Folder { name, files: Vec::new() };
    while let Some((path, entry)) = waiting.pop() {
        if !is_folder(&entry) {
            let file = settled(&entry, "file").await.map_err(|error| unreadable(&folder.name, &path, &error))?;
            folder.files.push((path, file));
        } else {
            let reader = call(&entry, "createReader", &[]);
            loop {
                // A reader gives a hundred at a time, and none at the end.
                let batch = settled(&reader, "readEntries").await;
                let batch = Array::from(&batch.map_err(|error| unreadable(&folder.name, &path, &error))?);
                if batch.length() == 0 {
                    break;
                }
                let inside = if path.is_empty() { String::new() } else { format!("{path}/") };
                waiting.extend(batch.iter().map(|entry| (format!("{inside}{}", name_of(&entry)), entry)));
            }
        }
        if folder.files.len() + waiting.len() > MOST_FILES {
            return Err(format!("“{}” holds more than {MOST_FILES} files: it is no web bundle.", folder.name));
        }
    }
    Ok(folder)
}

fn unreadable(folder: &str, path: &str, error: &JsValue) -> String {
    let reason = get(error, "message").as_string().unwrap_or_else(|| "no reason given".into());
    format!("{path} of “{folder}” cannot be read: {reason}")
}

/// Waits for a method of the old kind, which takes a listener for success and one for failure.
async fn settled(object: &JsValue, method: &str) -> Result<JsValue, JsValue> {
    let promise = Promise::new(&mut |resolve, reject| {
        call(object, method, &[resolve.into(), reject.into()]);
    });
    JsFuture::from(promise).await
}

fn call(object: &JsValue, method: &str, arguments: &[JsValue]) -> JsValue {
    let Ok(method) = get(object, method).dyn_into::<Function>() else { return JsValue::UNDEFINED };
    method.apply(object, &arguments.iter().collect()).unwrap_or(JsValue::UNDEFINED)
}

fn get(object: &JsValue, key: &str) -> JsValue {
    Reflect::get(object, &key.into()).unwrap_or(JsValue::UNDEFINED)
}
