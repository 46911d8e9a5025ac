//! What a person reads when the Hub refuses, or has something else than a model.

use std::time::Duration;

use anyhow::anyhow;
use hf_hub::api::sync::ApiError;

use super::{Hub, Reference};

impl Hub {
    /// The sentence that helps.
    pub fn explain(&self, reference: &Reference, file: Option<&str>, url: &str, error: &ApiError) -> anyhow::Error {
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

/// The status of an answer that is none.
pub fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// What a repository without the needed files is instead.
pub fn kind(offered: &[&str]) -> String {
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
