//! What building and testing the page needs beside Cargo, and how it is made when it is missing.
//! Everything comes from crates.io or the system's own packages; nothing is downloaded prebuilt.

use crate::steps::{command, find_program, output_of, root, run, step, target_dir};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// The newest trunk that the Rust version of this workspace builds.
const TRUNK: &str = "0.21.14";
/// Speaks WebDriver with Firefox; Debian does not package it.
const GECKODRIVER: &str = "0.36.0";
/// Debian's packages for the browser tests: two browsers, a Vulkan that runs on the CPU, letters for screenshots.
const DEBIAN_PACKAGES: [&str; 6] =
    ["chromium", "chromium-driver", "firefox-esr", "mesa-vulkan-drivers", "fonts-noto-core", "fonts-noto-cjk"];

/// Makes sure that the page can be built: wasm target, wasm-bindgen, trunk.
pub fn for_the_page() -> Result<()> {
    let libraries =
        output_of(command("rustc").args(["--print", "target-libdir", "--target", "wasm32-unknown-unknown"]));
    if !libraries.is_some_and(|folder| Path::new(&folder).is_dir()) {
        step("add the wasm32-unknown-unknown target", || {
            run(command("rustup").args(["target", "add", "wasm32-unknown-unknown"]))
                .context("without rustup, install the wasm32-unknown-unknown target the way Rust itself was installed")
        })?;
    }
    let lock_path = root().join("Cargo.lock");
    let lock = std::fs::read_to_string(&lock_path).with_context(|| format!("cannot read {}", lock_path.display()))?;
    let bindgen = locked_version(&lock, "wasm-bindgen")?;
    // The version must be the library's to the last digit: the two share an unversioned format. Not `--locked`: the list
    // that comes with it names crates so new that a mirror of crates.io may not have them yet.
    cargo_install("wasm-bindgen-cli", "wasm-bindgen", bindgen, &["--no-default-features", "--bin", "wasm-bindgen"])?;
    // Without its default features trunk can neither look for updates nor download tools.
    cargo_install("trunk", "trunk", TRUNK, &["--locked", "--no-default-features"])
}

/// Makes sure that Chromium and Firefox and their drivers are there.
pub fn for_the_browsers() -> Result<()> {
    let missing = missing_packages();
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    if find_program(&["geckodriver"]).is_none() {
        cargo_install("geckodriver", "geckodriver", GECKODRIVER, &["--locked"])?;
    }
    Ok(())
}

/// The version of `package` that the lock file pins.
pub fn locked_version<'l>(lock: &'l str, package: &str) -> Result<&'l str> {
    let name_line = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name_line).skip(1);
    let version = lines.next().and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.with_context(|| format!("Cargo.lock pins no version of `{package}`"))
}

fn cargo_install(package: &str, program: &str, version: &str, flags: &[&str]) -> Result<()> {
    let found = output_of(command(program).arg("--version")).unwrap_or_default();
    if found.split_whitespace().any(|word| word == version) {
        return Ok(());
    }
    step(&format!("install {package} {version} into target/tools"), || {
        run(command("cargo")
            .args(["install", "--quiet", "--force", package, "--version", version])
            .arg("--root")
            .arg(target_dir().join("tools"))
            .args(flags)
            // They run for seconds and build for minutes: little optimising is the shorter way.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"))
    })
}

fn missing_packages() -> Vec<&'static str> {
    let is_missing = |package: &str| match package {
        "chromium" => crate::suite::chromium().is_none(),
        "chromium-driver" => find_program(&["chromedriver"]).is_none(),
        "firefox-esr" => crate::suite::firefox().is_none(),
        // No programs: Debian tells; elsewhere a real graphics driver and the system's own fonts do.
        _ => find_program(&["dpkg-query"]).is_some_and(|query| {
            let status = output_of(command(query).args(["-W", "-f", "${db:Status-Status}", package]));
            status.as_deref() != Some("installed")
        }),
    };
    DEBIAN_PACKAGES.into_iter().filter(|package| is_missing(package)).collect()
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let is_root = output_of(command("id").arg("-u")).as_deref() == Some("0");
    if !is_root || find_program(&["apt-get"]).is_none() {
        bail!(
            "the browser tests need programs that are not installed; on Debian run \
             `sudo apt-get install {list}`, elsewhere install what these packages hold, then call `cargo xtask test` again"
        );
    }
    step(&format!("install {list}"), || {
        run(command("apt-get").args(["update", "-qq"]))?;
        run(command("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_package_of_exactly_that_name() {
        let lock = "[[package]]\nname = \"wasm-bindgen-futures\"\nversion = \"0.4.1\"\n\n\
                    [[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.130\"\n";
        assert_eq!(locked_version(lock, "wasm-bindgen").unwrap(), "0.2.130");
        assert!(locked_version(lock, "trunk").unwrap_err().to_string().contains("`trunk`"));
    }
}
