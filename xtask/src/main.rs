//! `cargo xtask demo` and `cargo xtask test`: reads the command line, nothing else.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;
use xtask::{USAGE, page, suite};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut arguments = arguments.iter().map(String::as_str);
    match arguments.next() {
        Some("demo") => {
            let (mut port, mut open, mut bundle) = (None, true, None);
            while let Some(argument) = arguments.next() {
                match argument {
                    "--no-open" => open = false,
                    "--port" => port = Some(port_number(arguments.next())?),
                    "--bundle" => bundle = Some(arguments.next().context("--bundle needs a folder after it")?),
                    other => {
                        bail!("`demo` has no argument `{other}`; it takes --bundle DIR, --port N and --no-open")
                    }
                }
            }
            page::demo(bundle.map(Path::new), port, open)?;
            Ok(ExitCode::SUCCESS)
        }
        Some("test") => match arguments.next() {
            None => suite::run(),
            Some(other) => bail!("`test` takes no argument, found `{other}`"),
        },
        None | Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        Some(other) => bail!("there is no command `{other}`\n\n{USAGE}"),
    }
}

fn port_number(text: Option<&str>) -> Result<u16> {
    let text = text.context("--port needs a number after it")?;
    text.parse().with_context(|| format!("--port: expected a number from 0 to 65535, found `{text}`"))
}
