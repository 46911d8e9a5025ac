//! One file over HTTP, from any byte on, piece by piece.
//!
//! Must not know: bundles, where the bytes go.

use crate::opfs::words;
use js_sys::{Object, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web::keep::begins_at;
use web_sys::{ReadableStreamDefaultReader, RequestCache, RequestInit, Response};

#[wasm_bindgen]
extern "C" {
    // The worker has no `window`; its global scope offers the same function.
    #[wasm_bindgen(js_name = fetch)]
    fn global_fetch(url: &str, init: &RequestInit) -> Promise;

    #[wasm_bindgen(js_name = Headers)]
    type AnswerHeaders;
    #[wasm_bindgen(method)]
    fn get(this: &AnswerHeaders, name: &str) -> Option<String>;
}

/// A download that did not come.
pub struct Miss {
    pub text: String,
    /// The server has answered, and asking again will not change its mind.
    pub final_word: bool,
}

/// An answer whose body is being read.
pub struct Download {
    url: String,
    reader: Option<ReadableStreamDefaultReader>,
    /// The byte of the file that comes first: the one asked for, or 0 from a server that knows no ranges.
    pub begins_at: u64,
}

impl Download {
    /// Asks for everything from byte `from` on.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn open(url: &str, from: u64, cache: RequestCache) -> Result<Download, Miss> {
        let init = RequestInit::new();
        init.set_cache(cache);
        if from > 0 {
            let headers = Object::new();
            Reflect::set(&headers, &"Range".into(), &format!("bytes={from}-").into()).ok();
            Reflect::set(&init, &"headers".into(), &headers).ok();
        }
        let answer = JsFuture::from(global_fetch(url, &init)).await.map_err(|error| lost(url, &error))?;
        let response: Response = answer.unchecked_into();
        let status = response.status();
        let headers: AnswerHeaders = Reflect::get(&response, &"headers".into()).unwrap_or_default().unchecked_into();
        let begins_at = begins_at(status, headers.get("Content-Range").as_deref(), from);
        match begins_at {
            Some(begins_at) if response.ok() && begins_at <= from => {
                let reader = response.body().map(|body| body.get_reader().unchecked_into());
                Ok(Download { url: url.into(), reader, begins_at })
            }
            // What is kept is not a beginning of this file; the whole of it may still be had. A server that says so of the
            // whole would say it for ever.
            _ if from > 0 && (status == 206 || status == 416) => {
                Box::pin(Download::open(url, 0, RequestCache::Reload)).await
            }
            _ => {
                let text = format!("{url}: the server answered {status} {}", response.status_text());
                // Too slow and too many (RFC 9110 and 6585) are said of the moment.
                Err(Miss { text, final_word: status < 500 && status != 408 && status != 429 })
            }
        }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Uint8Array>, Miss> {
        let Some(reader) = &self.reader else { return Ok(None) };
        let piece = JsFuture::from(reader.read()).await.map_err(|error| lost(&self.url, &error))?;
        let field = |key: &str| Reflect::get(&piece, &key.into()).unwrap_or(JsValue::UNDEFINED);
        Ok((!field("done").is_truthy()).then(|| field("value").unchecked_into()))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Nobody will read the rest; a stream that has already broken refuses even this, which is as good.
        if let Some(reader) = self.reader.take() {
            spawn_local(async move { drop(JsFuture::from(reader.cancel()).await) });
        }
    }
}

fn lost(url: &str, error: &JsValue) -> Miss {
    Miss {
        text: format!(
            "{url}: the connection failed ({}). A server of another address must also allow this page to read its files (CORS).",
            words(error)
        ),
        final_word: false,
    }
}
