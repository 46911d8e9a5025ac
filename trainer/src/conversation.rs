//! A conversation with a model, line by line: prompts, and commands that begin with a slash.
//!
//! Knows no model: it reads lines, changes what the [`Speaker`] is asked with, and lets it answer.

use std::io::{BufRead, Write};

use anyhow::Result;
use cctuning::generate::Source;
use clap::ValueEnum;

use crate::generate::{ModelArg, SourceArg, Speaker};
use crate::interrupt::AnswerInterrupt;

const HELP: &str = "\
Every line is a prompt of its own. Commands:
  /source NAME    none, parallel, transform, identity, zero, random, shuffled; `auto` is the model's habit
  /layer N        take layer N, counted from 1; `auto` leaves it to the Decision Maker
  /model NAME     vanilla or cc, of a bundle
  /english TEXT   the English twin of the next prompts, for the source `parallel`
  /other TEXT     the prompt whose activations `shuffled` takes; without it the prompt before
  /help, /quit
Ctrl-C stops an answer, Ctrl-D leaves. A space before a slash makes it a prompt.";

/// What one line asks for.
enum Turn<'l> {
    Prompt(&'l str),
    Command(&'l str, &'l str),
    Nothing,
}

fn turn(line: &str) -> Turn<'_> {
    let line = line.trim_end();
    match line.strip_prefix('/') {
        Some(command) => {
            let (name, value) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
            Turn::Command(name, value.trim())
        }
        None if line.trim().is_empty() => Turn::Nothing,
        None => Turn::Prompt(line.trim_start()),
    }
}

/// Reads and answers until the input or the person ends. A prompt that cannot be answered costs one line, no more.
///
/// # Errors
/// The input or the output fails.
pub fn converse(
    speaker: &mut Speaker,
    input: &mut dyn BufRead,
    terminal: bool,
    interrupt: &AnswerInterrupt,
) -> Result<()> {
    if terminal {
        eprintln!("A prompt, or /help. Source: {}.", source_name(speaker.source()));
    }
    let mut line = Vec::new();
    let mut previous: Option<String> = None;
    loop {
        if terminal {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            if terminal {
                eprintln!();
            }
            return Ok(());
        }
        let Ok(text) = std::str::from_utf8(&line) else {
            eprintln!("that line is not UTF-8; nothing was asked");
            continue;
        };
        match turn(text) {
            Turn::Nothing => {}
            Turn::Command("quit" | "exit", _) => return Ok(()),
            Turn::Command(name, value) => match command(speaker, name, value) {
                Ok(said) => eprintln!("{said}"),
                Err(error) => eprintln!("{error:#}"),
            },
            Turn::Prompt(prompt) => {
                let given = speaker.other.clone();
                if speaker.other.is_none() {
                    speaker.other.clone_from(&previous);
                }
                let answering = interrupt.answering();
                if let Err(error) = speaker.answer(prompt, &|| answering.stopped()) {
                    eprintln!("{error:#}{}", remedy(speaker));
                }
                speaker.other = given;
                previous = Some(prompt.to_string());
            }
        }
    }
}

/// What to do when the source lacked something that a command can give it.
fn remedy(speaker: &Speaker) -> &'static str {
    match speaker.source() {
        Source::Parallel if speaker.english.is_none() => "; say it with /english TEXT",
        Source::Shuffled if speaker.other.is_none() => "; say it with /other TEXT, or ask something else first",
        _ => "",
    }
}

/// Does what a command says and tells what holds now.
fn command(speaker: &mut Speaker, name: &str, value: &str) -> Result<String> {
    let spoken = |value: &str| (!value.is_empty()).then(|| value.to_string());
    match name {
        "help" => return Ok(HELP.into()),
        "source" => match (value, SourceArg::from_str(value, true)) {
            ("", _) => {}
            ("auto", _) => speaker.source = None,
            (_, Ok(source)) => speaker.source = Some(source.into()),
            _ => anyhow::bail!("there is no source {value:?}; /help lists them"),
        },
        "layer" => match (value, value.parse()) {
            ("", _) => {}
            ("auto", _) => speaker.set_layer(None)?,
            (_, Ok(layer)) => speaker.set_layer(Some(layer))?,
            _ => anyhow::bail!("{value:?} is no layer: 1 to {}, or auto", speaker.n_layers()),
        },
        "model" if !speaker.has_two_models() => anyhow::bail!("a model folder holds one model; a bundle has two"),
        "model" => match (value, ModelArg::from_str(value, true)) {
            ("", _) => {}
            (_, Ok(model)) => speaker.model = model,
            _ => anyhow::bail!("there is no model {value:?}: vanilla or cc"),
        },
        "english" => speaker.english = spoken(value),
        "other" => speaker.other = spoken(value),
        _ => anyhow::bail!("there is no command /{name}; /help lists them"),
    }
    let layer = speaker.layer.map_or("auto".to_string(), |layer| layer.to_string());
    let model = match (speaker.has_two_models(), speaker.model) {
        (false, _) => "",
        (true, ModelArg::Vanilla) => ", model vanilla",
        (true, ModelArg::Cc) => ", model cc",
    };
    Ok(format!("source {}, layer {layer}{model}", source_name(speaker.source())))
}

fn source_name(source: Source) -> String {
    serde_json::to_value(source).ok().and_then(|name| name.as_str().map(String::from)).unwrap_or_default()
}
