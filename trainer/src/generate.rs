//! The `generate` verb: one prompt, answered as it is decoded.

use std::io::Write;

use anyhow::{Context, Result};
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::generate::{Connection, Decoding, GenerateOptions};
use cctuning::model::CcModel;
use cctuning::tokenizer::{TextStream, Tokenizer};
use cctuning::transform_matrix::FoldedTransform;
use serde::Serialize;

/// What a model is asked with.
pub struct Asked<'a> {
    pub model: &'a CcModel,
    pub config: &'a ModelConfig,
    pub tokenizer: &'a Tokenizer,
    pub transform: Option<&'a FoldedTransform>,
    pub prompt: &'a Prompt,
    pub english: Option<&'a Prompt>,
    pub options: GenerateOptions,
}

#[derive(Serialize)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    connection: Option<Connection>,
}

/// Streams the answer to the terminal, or prints it as one JSON line.
pub fn generate(asked: Asked, json: bool) -> Result<()> {
    let english: Vec<&Prompt> = asked.english.into_iter().collect();
    let mut decoding =
        Decoding::start(asked.model, asked.config, asked.transform, &[asked.prompt], &english, asked.options)?;
    let connection = burn::tensor::read_sync(decoding.connections())?.map(|mut rows| rows.remove(0));
    let mut stream = TextStream::new(asked.tokenizer);
    let mut tokens = Vec::new();
    while let Some(row) = burn::tensor::read_sync(decoding.next_tokens())? {
        let token = row[0].context("a single row goes on until it ends")?;
        tokens.push(token);
        if let (false, Some(text)) = (json, stream.push(token)?) {
            print!("{text}");
            std::io::stdout().flush()?;
        }
    }
    if json {
        let text = asked.tokenizer.decode(&tokens)?.trim().to_string();
        println!("{}", serde_json::to_string(&Answer { tokens, text, connection })?);
        return Ok(());
    }
    println!();
    if let Some(Connection { layer, probabilities, vector_norm, stream_norm }) = connection {
        let share = 100.0 * probabilities[layer];
        eprintln!(
            "layer {} chosen at {share:.0} %, vector {vector_norm:.2} on a stream of {stream_norm:.2}",
            layer + 1
        );
    }
    Ok(())
}
