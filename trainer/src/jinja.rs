//! A model's own Jinja chat template, turned into a [`ChatTemplate`] by rendering it: with a known user's text, with and
//! without the answer tag. Knows the files that hold such templates; knows nothing of weights.
//!
//! A template comes from a stranger: it gets no files, no clock, so many instructions and so much memory.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cctuning::chat::ChatTemplate;
use cctuning::tokenizer::Tokenizer;
use indicatif::HumanBytes;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::run_folder::read_if_there;

/// Published templates are below 20 kB and need a few hundred instructions for a turn.
const LONGEST_SOURCE: usize = 256 * 1024;
const FUEL: u64 = 100_000;
const LONGEST_PROMPT: usize = 64 * 1024;
const MOST_MEMORY: u64 = 1 << 30;
const LONGEST_RUN: Duration = Duration::from_secs(30);

/// User's texts that tell whether a template keeps what it is given. The first is found again in every rendering.
const PROBES: [&str; 3] = ["Qx7 vf", " \n Qx7\tvf \n ", "Qx7 <b>&\"'\\ {{ x }} {% y %} vf 你好 नि"];
const ANSWER: &str = "Wk3 jz";
const SYSTEM: &str = "Bp5 dh";

/// A template's text and the tokens that it may name.
#[derive(Clone)]
pub struct Source {
    pub text: String,
    /// `bos_token` and its like.
    pub tokens: BTreeMap<String, String>,
}

/// The template that a model folder carries, if it carries one.
///
/// # Errors
/// It cannot be run, or is more than a text around the user's.
pub fn of_folder(path: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let Some((file, source)) = read(path)? else { return Ok(None) };
    let derived = derive(&source, tokenizer).with_context(|| {
        let file = path.join(file);
        let names = ChatTemplate::BUILT_IN.map(|(name, _)| name).join(", ");
        format!("the chat template in {} cannot be used; set model.template to one of {names}", file.display())
    })?;
    Ok(Some(derived))
}

/// The text of that template.
///
/// # Errors
/// The file that holds it cannot be read.
pub fn text_of_folder(path: &Path) -> Result<Option<String>> {
    Ok(read(path)?.map(|(_, source)| source.text))
}

/// `chat_template.jinja`, else what `tokenizer_config.json` says.
fn read(path: &Path) -> Result<Option<(&'static str, Source)>> {
    const CONFIG: &str = "tokenizer_config.json";
    const FILE: &str = "chat_template.jinja";
    let config: serde_json::Value = match read_if_there(&path.join(CONFIG))? {
        Some(bytes) => serde_json::from_slice(&bytes).with_context(|| path.join(CONFIG).display().to_string())?,
        None => serde_json::Value::Null,
    };
    let mut tokens = BTreeMap::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        // Either the token itself, or an object about it.
        if let (true, Some(token)) = (key.ends_with("_token"), value.as_str().or_else(|| value["content"].as_str())) {
            tokens.insert(key.clone(), token.to_owned());
        }
    }
    if let Some(bytes) = read_if_there(&path.join(FILE))? {
        let text = String::from_utf8(bytes).with_context(|| format!("{}: not UTF-8", path.join(FILE).display()))?;
        return Ok(Some((FILE, Source { text, tokens })));
    }
    let text = match &config["chat_template"] {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::String(text) => text.clone(),
        several => {
            let named = |wanted: Option<&str>| {
                let mut all = several.as_array().into_iter().flatten();
                all.find(|one| wanted.is_none_or(|name| one["name"] == name))?["template"].as_str()
            };
            let chosen = named(Some("default")).or_else(|| named(None));
            chosen
                .with_context(|| format!("{CONFIG}: `chat_template` is neither a text nor a list with one"))?
                .to_owned()
        }
    };
    Ok(Some((CONFIG, Source { text, tokens })))
}

/// The template as data: what stands before and after the user's text, the answer tag, and what ends an answer.
///
/// # Errors
/// It cannot be run, or is more than a text around the user's.
pub fn derive(source: &Source, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    ensure!(
        source.text.len() <= LONGEST_SOURCE,
        "it is {} bytes long; at most {LONGEST_SOURCE} are read",
        source.text.len()
    );
    let Rendered { turns, answered, again, with_system, all } = rendered(source)?;

    let mut found: Option<(String, String, String)> = None;
    let mut trim = false;
    for (probe, (closed, open)) in PROBES.into_iter().zip(turns) {
        // Some end a conversation that is not to go on.
        let end = source.tokens.get("eos_token").map_or("", String::as_str);
        let open_ended = closed.strip_suffix(end).filter(|_| !open.starts_with(&closed));
        let closed = open_ended.unwrap_or(&closed);
        let (before, after) = match (around(closed, probe)?, around(closed, probe.trim())?) {
            (Some(sides), _) => sides,
            (None, Some(sides)) => {
                trim = true;
                sides
            }
            (None, None) => bail!("it changes the user's text: {probe:?} is not in {closed:?}"),
        };
        let Some(tag) = open.strip_prefix(closed) else {
            bail!("with the answer tag it is another text: {open:?} does not begin with {closed:?}");
        };
        let parts = (before.to_owned(), after.to_owned(), tag.to_owned());
        match &found {
            Some(first) => ensure!(*first == parts, "its own text depends on the user's: {first:?} and {parts:?}"),
            None => found = Some(parts),
        }
    }
    let (before, after, answer_tag) = found.context("no text was tried")?;
    for (_, known) in ChatTemplate::BUILT_IN {
        if (&*known.before, &*known.after, &*known.answer_tag, known.trim) == (&before, &after, &answer_tag, trim) {
            return Ok(known);
        }
    }

    let turn = [PROBES[0], &after, &answer_tag].concat();
    // An answer may be set apart by a space, which its first token has anyway.
    let second = |text: &str, before: &str| -> Option<String> {
        let (first, rest) = text.split_once(ANSWER)?;
        let next = rest.strip_suffix(&turn)?;
        let expected = [before, &turn].concat();
        (first == expected || first.strip_suffix(' ') == Some(&expected)).then(|| next.to_owned())
    };
    let next = again.and_then(|text| second(&text, &before));
    let system = with_system.and_then(|text| {
        let (open, rest) = text.split_once(SYSTEM)?;
        let close = rest.strip_suffix(&turn)?;
        // Some write it into the last question, wherever that is.
        let stays = next.is_none() || second(&all?, &[open, SYSTEM, close].concat()) == next;
        stays.then(|| [open.to_owned(), close.to_owned()])
    });

    let control = tokenizer.control_tokens();
    let within =
        |text: &str| -> Vec<String> { control.iter().filter(|token| text.contains(&***token)).cloned().collect() };
    let mut fixed = [&*before, &*after, &*answer_tag].concat();
    for (name, token) in source.tokens.iter().filter(|(_, token)| !token.is_empty()) {
        let known = control.contains(token) || !fixed.contains(&**token);
        ensure!(known, "it writes the {name} {token:?}, which is no control token of the tokenizer");
    }
    let family = ChatTemplate::BUILT_IN.into_iter().map(|(_, known)| known).find(|known| {
        if answer_tag.is_empty() {
            known.answer_tag.is_empty() && known.after == after
        } else {
            known.answer_tag == answer_tag
        }
    });
    let ended = answered.as_deref().and_then(|text| text.split_once(ANSWER)).map(|(_, end)| end.trim_start());
    let first =
        |end: &str| control.iter().filter(|token| end.starts_with(&***token)).max_by_key(|token| token.len()).cloned();
    let stop = ended.and_then(first).or_else(|| source.tokens.get("eos_token").cloned());
    let stop =
        stop.context("nothing says what ends an answer: no control token follows one, and there is no eos_token")?;
    ensure!(tokenizer.id(&stop).is_some(), "it ends an answer with {stop:?}, which the tokenizer does not have");
    fixed.extend(next.iter().chain(system.iter().flatten()).map(String::as_str));
    Ok(ChatTemplate {
        control: within(&fixed).into_iter().map(Into::into).collect(),
        before: before.into(),
        after: after.into(),
        answer_tag: answer_tag.into(),
        next: next.map(Into::into),
        system: system.map(|parts| parts.map(Into::into)),
        stop: stop.into(),
        trim,
        role_token_from_end: family.and_then(|known| known.role_token_from_end),
    })
}

/// What stands on both sides of `text`; none where it is absent.
fn around<'a>(whole: &'a str, text: &str) -> Result<Option<(&'a str, &'a str)>> {
    let Some((before, after)) = whole.split_once(text) else { return Ok(None) };
    ensure!(!after.contains(text), "it repeats the user's text: {whole:?}");
    Ok(Some((before, after)))
}

/// What a template makes of the probes, without and with the answer tag, and of longer conversations, which it may refuse.
struct Rendered {
    turns: Vec<(String, String)>,
    /// A question and its answer.
    answered: Option<String>,
    /// The question again, after both.
    again: Option<String>,
    /// A system text and the question.
    with_system: Option<String>,
    /// A system text and all three.
    all: Option<String>,
}

/// Runs the template beside this thread. Instructions and depth are counted, but one of them can ask for any memory; so
/// whoever takes too much is reported from here, and ends with the process.
fn rendered(source: &Source) -> Result<Rendered> {
    let (answer, answered) = mpsc::channel();
    let own = source.clone();
    thread::spawn(move || answer.send(render_all(&own)));
    let (started, before) = (Instant::now(), resident());
    loop {
        match answered.recv_timeout(Duration::from_millis(20)) {
            Ok(rendered) => return rendered,
            Err(RecvTimeoutError::Disconnected) => bail!("its interpreter failed over it"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let taken = resident().saturating_sub(before);
        ensure!(taken < MOST_MEMORY, "it takes {} of memory for a short question", HumanBytes(taken));
        ensure!(started.elapsed() < LONGEST_RUN, "it runs for more than {LONGEST_RUN:?} over a short question");
    }
}

/// Bytes of memory in use, where the system says so.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|pages| pages.split(' ').nth(1)?.parse::<u64>().ok());
    pages.map_or(0, |pages| pages * 4096)
}

fn render_all(source: &Source) -> Result<Rendered> {
    let jinja = environment(&source.text)?;
    let both = |probe| -> Result<_> {
        let turn = [("user", probe)];
        Ok((render(&jinja, source, &turn, false)?, render(&jinja, source, &turn, true)?))
    };
    let turns = PROBES.into_iter().map(both).collect::<Result<_>>()?;
    let conversation = [("system", SYSTEM), ("user", PROBES[0]), ("assistant", ANSWER), ("user", PROBES[0])];
    let some = |turns: Range<usize>, open| render(&jinja, source, &conversation[turns], open).ok();
    Ok(Rendered {
        turns,
        answered: some(1..3, false),
        again: some(1..4, true),
        with_system: some(0..2, true),
        all: some(0..4, true),
    })
}

fn render(jinja: &Environment, source: &Source, turns: &[(&str, &str)], open: bool) -> Result<String> {
    let messages: Vec<Value> = turns.iter().map(|&(role, content)| context! { role, content }).collect();
    let tokens = Value::from_pairs(source.tokens.iter().map(|(name, token)| (&**name, &**token)));
    let given = context! { messages, add_generation_prompt => open, ..tokens };
    let text = jinja.get_template("chat")?.render(given).map_err(said)?;
    ensure!(text.len() <= LONGEST_PROMPT, "it makes {} bytes of a short question", text.len());
    Ok(text)
}

/// Jinja as `transformers` sets it up.
fn environment(source: &str) -> Result<Environment<'static>> {
    let mut jinja = Environment::new();
    jinja.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    jinja.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    jinja.set_fuel(Some(FUEL));
    jinja.set_recursion_limit(100);
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.add_filter("tojson", tojson);
    jinja.add_function("strftime_now", |format: &str| strftime(format));
    jinja.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    // A mark for training masks; its text is what matters here.
    let source = source.replace("{%- generation", "{%- if true").replace("{% generation", "{% if true");
    let source = source.replace("{%- endgeneration", "{%- endif").replace("{% endgeneration", "{% endif");
    jinja.add_template_owned("chat", source).map_err(said)?;
    Ok(jinja)
}

fn said(error: minijinja::Error) -> anyhow::Error {
    let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
    anyhow::anyhow!("{line}{}{detail}", error.kind())
}

/// The date that Llama's templates name when nobody tells them one: prompts are the same tomorrow.
///
/// # Departures
/// `transformers` tells today's.
fn strftime(format: &str) -> String {
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('d')) => text += "26",
            ('%', Some('m')) => text += "07",
            ('%', Some('b')) => text += "Jul",
            ('%', Some('B')) => text += "July",
            ('%', Some('Y')) => text += "2024",
            ('%', Some('y')) => text += "24",
            ('%', Some('A')) => text += "Friday",
            ('%', Some('a')) => text += "Fri",
            ('%', Some('H' | 'I' | 'M' | 'S')) => text += "00",
            ('%', Some('%')) => text.push('%'),
            ('%', Some(other)) => text.extend(['%', other]),
            (c, _) => text.push(c),
        }
    }
    text
}

/// As Python's `json.dumps(ensure_ascii=False)`: a space after comma and colon, and nothing escaped for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let mut bytes = Vec::new();
    let indent = options.get::<Option<usize>>("indent")?.map(|width| " ".repeat(width.min(16)));
    let written = match &indent {
        Some(indent) => {
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
