//! Building the page with trunk, and showing it.

use crate::site::Site;
use crate::steps::{command, root, run, step};
use crate::tools;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tried in turn when no port was asked for.
const PORTS: std::ops::Range<u16> = 8080..8090;

/// Where trunk leaves the built page.
pub fn dist() -> PathBuf {
    root().join("dist")
}

/// Builds the page into `dist`.
pub fn build() -> Result<()> {
    tools::for_the_page()?;
    step("fetch the crates that Cargo.lock names", || run(command("cargo").args(["fetch", "--locked", "--quiet"])))?;
    step("build the page (the first time takes many minutes, most of them for Burn)", || {
        // Offline: a tool that does not fit must be an error here, not a download.
        let mut trunk = command("trunk");
        // This trunk reads the customary NO_COLOR=1 as a wrong argument and stops.
        run(trunk.args(["build", "--release", "--locked", "--offline"]).env_remove("NO_COLOR"))
    })
}

/// Builds the page, serves it with the shipped bundle or another, and opens it; Ctrl-C ends it.
pub fn demo(bundle: Option<&Path>, port: Option<u16>, open: bool) -> Result<()> {
    if let Some(bundle) = bundle {
        ensure!(bundle.join("manifest.json").is_file(), "{}: no manifest.json; is it a web bundle?", bundle.display());
    }
    build()?;
    if let Some(bundle) = bundle {
        let place = dist().join("bundle");
        for entry in fs::read_dir(bundle).with_context(|| format!("cannot read {}", bundle.display()))? {
            let entry = entry?;
            fs::copy(entry.path(), place.join(entry.file_name()))
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    let site = match port {
        Some(port) => Site::open(&dist(), port)?,
        None => PORTS.filter_map(|port| Site::open(&dist(), port).ok()).next().with_context(|| {
            format!("all ports from {} to {} are taken; choose one with --port", PORTS.start, PORTS.end - 1)
        })?,
    };
    println!("\nThe page is at {}\nCtrl-C ends it.", site.address());
    if open && !show_in_browser(site.address()) {
        println!("No browser could be opened from here; open the address yourself.");
    }
    site.serve_forever();
    Ok(())
}

fn show_in_browser(address: &str) -> bool {
    let opener: &[&str] = match std::env::consts::OS {
        "macos" => &["open"],
        "windows" => &["cmd", "/C", "start"],
        _ => &["xdg-open"],
    };
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().is_ok();
    quiet(Command::new(opener[0]).args(&opener[1..]).arg(address))
}
