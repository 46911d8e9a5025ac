//! Building the page, and showing it.

use crate::site::Site;
use crate::steps::{command, output_of, root, run, step, target_dir};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wasm_bindgen_cli_support::Bindgen;

const WASM: &str = "wasm32-unknown-unknown";
/// The programs of the package `web`, and what lies beside them.
const PROGRAMS: [&str; 2] = ["page", "worker"];
const FILES: [&str; 5] =
    ["index.html", "assets/boot.js", "assets/icon.svg", "assets/start_worker.js", "assets/style.css"];
const BUNDLE: &str = "assets/bundle";
/// Tried in turn when no port was asked for.
const PORTS: std::ops::Range<u16> = 8080..8090;

/// Where the built page lies: one folder of static files, for any web server.
pub fn dist() -> PathBuf {
    root().join("dist")
}

/// Builds the page into `dist`; `flags` are for Cargo.
pub fn build(flags: &[&str]) -> Result<()> {
    for_wasm()?;
    step("build the page (the first time takes many minutes, most of them for Burn)", || {
        let web = ["build", "--locked", "--package", "web", "--profile", "web", "--target", WASM];
        run(command("cargo").args(web).args(flags))?;
        // Made beside it and moved there whole: a page that was being served stays one.
        let fresh = root().join("dist.new");
        remove(&fresh)?;
        copy_files(&root().join(BUNDLE), &fresh.join("bundle"))?;
        for file in FILES.map(|file| root().join(file)) {
            copy(&file, &fresh)?;
        }
        for program in PROGRAMS {
            let wasm = target_dir().join(WASM).join("web").join(format!("{program}.wasm"));
            let mut bindgen = Bindgen::new();
            bindgen.input_path(&wasm).web(true)?.typescript(false);
            bindgen.omit_default_module_path(false).remove_name_section(true);
            bindgen.generate(&fresh).with_context(|| format!("wasm-bindgen refused {}", wasm.display()))?;
        }
        remove(&dist())?;
        fs::rename(&fresh, dist()).with_context(|| format!("cannot rename {} to dist", fresh.display()))
    })
}

/// Makes sure that Rust can build for browsers.
fn for_wasm() -> Result<()> {
    let libraries = output_of(command("rustc").args(["--print", "target-libdir", "--target", WASM]));
    if libraries.is_some_and(|folder| Path::new(&folder).is_dir()) {
        return Ok(());
    }
    step(&format!("add the {WASM} target"), || {
        run(command("rustup").args(["target", "add", WASM]))
            .with_context(|| format!("without rustup, install the {WASM} target the way Rust itself was installed"))
    })
}

/// Builds the page, serves it with the shipped bundle or another, and opens it; Ctrl-C ends it.
pub fn demo(bundle: Option<&Path>, port: Option<u16>, open: bool) -> Result<()> {
    if let Some(bundle) = bundle {
        ensure!(bundle.join("manifest.json").is_file(), "{}: no manifest.json; is it a web bundle?", bundle.display());
    }
    build(&[])?;
    if let Some(bundle) = bundle {
        copy_files(bundle, &dist().join("bundle"))?;
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

/// Copies every file of a folder, which holds nothing else.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        copy(&entry?.path(), to)?;
    }
    Ok(())
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    let name = file.file_name().with_context(|| format!("{} names no file", file.display()))?;
    fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
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
