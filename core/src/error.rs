//! What fails at the edges: files, formats and prompts that come from outside. Shape bugs of our own panic instead.

/// Everything this crate reports about input that it cannot use. Each message names the item and both values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` cannot be used.
    #[error("config.json: {0}")]
    Config(String),
    /// A safetensors file cannot be read as one.
    #[error("{file}: not a complete safetensors file ({reason}); fetch or export it again")]
    Safetensors {
        /// The file as the caller named it.
        file: String,
        /// What the parser found.
        reason: String,
    },
    /// A tensor the model needs is absent.
    #[error(
        "`{name}`: missing from the checkpoint, which holds {found} tensors; is config.json the one of these weights?"
    )]
    MissingTensor {
        /// Hugging Face name.
        name: String,
        /// Number of tensors that the checkpoint does hold.
        found: usize,
    },
    /// A tensor has another shape than config.json implies.
    #[error("`{name}`: expected shape {expected:?} from config.json, found {found:?}")]
    Shape {
        /// Hugging Face name.
        name: String,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that is not read.
    #[error("`{name}`: stored as {found}, expected F32, BF16, F16 or block-quantized I8 with `{name}.scale`")]
    DType {
        /// Hugging Face name.
        name: String,
        /// Type in the file.
        found: String,
    },
    /// A checkpoint holds tensors that the model has no place for.
    #[error("unexpected tensor `{name}`: the architecture in config.json has no such parameter")]
    UnexpectedTensor {
        /// Name in the file.
        name: String,
    },
    /// A checkpoint gives the same rows of a tensor more than once.
    #[error("`{name}`: its rows {start} to {end} come a second time; every row belongs in one file")]
    Repeated {
        /// Hugging Face name.
        name: String,
        /// First of them.
        start: usize,
        /// Behind the last.
        end: usize,
    },
    /// tokenizer.json cannot be used, or a text cannot be tokenised.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The tokenizer lacks a token that the chat template is made of.
    #[error(
        "chat template {template}: the tokenizer has no token `{token}`; choose the template this tokenizer was made for"
    )]
    MissingToken {
        /// Name of the template.
        template: String,
        /// The control token.
        token: String,
    },
    /// The released code's anchor was asked for where that code has none.
    #[error(
        "chat template {template}: the anchor `role_token` is known for llama3, qwen2, mistral and plain; choose \
         `last_prompt` or `before_answer_tag`"
    )]
    NoRoleToken {
        /// Name of the template.
        template: String,
    },
    /// The template has no words for what was said before.
    #[error(
        "chat template {template}: it has no place for a {turn}; leave it out, or choose a template and a model that have one"
    )]
    NoPlace {
        /// Name of the template.
        template: String,
        /// What it was to hold.
        turn: &'static str,
    },
    /// The prompt holds no text.
    #[error("the prompt is empty; type a question first")]
    EmptyPrompt,
    /// The prompt does not fit.
    #[error(
        "the prompt has {found} tokens and the model reads at most {limit} of them before it answers; shorten it, or ask for \
         fewer new tokens"
    )]
    PromptTooLong {
        /// Tokens of the rendered prompt.
        found: usize,
        /// Tokens that fit beside the answer.
        limit: usize,
    },
    /// A text to be judged as the answer does not fit.
    #[error(
        "a continuation of {found} tokens is to be judged where the answer has room for {limit}; raise max_new_tokens"
    )]
    ContinuationTooLong {
        /// Tokens of the longest continuation.
        found: usize,
        /// Tokens that fit, the last of which is only predicted.
        limit: usize,
    },
    /// The connection was asked for in a way that this model or these prompts do not allow.
    #[error("connection: {0}")]
    Connection(String),
    /// The connection was asked for without its Transform Matrix, or one of another width.
    #[error("transform matrix: {0}")]
    Transform(String),
    /// A bundle manifest cannot be used.
    #[error("manifest.json: {0}")]
    Manifest(String),
    /// A bundle file does not hold what the manifest says.
    #[error("{path}: {reason}; reload it or export the bundle again")]
    BundleFile {
        /// Path inside the bundle.
        path: String,
        /// Expected and found size or hash.
        reason: String,
    },
    /// The device failed while computing.
    #[error("the device stopped computing: {0}")]
    Device(String),
}

/// Result with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;
