//! What the browser tests need of the system, and how it is installed where it is missing.

use crate::steps::{command, find_program, output_of, run, step};
use crate::suite;
use anyhow::{Result, bail};

/// Debian's packages: two browsers, a Vulkan that runs on the CPU, letters for screenshots.
const DEBIAN_PACKAGES: [&str; 6] =
    ["chromium", "chromium-driver", "firefox-esr", "mesa-vulkan-drivers", "fonts-noto-core", "fonts-noto-cjk"];

/// Makes sure that all of it is there.
pub fn install_missing() -> Result<()> {
    let missing = missing();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn missing() -> Vec<&'static str> {
    let is_missing = |package: &str| match package {
        "chromium" => suite::chromium().is_none(),
        "chromium-driver" => find_program(&["chromedriver"]).is_none(),
        "firefox-esr" => suite::firefox().is_none(),
        // No programs: Debian tells; elsewhere a real graphics driver and the system's own fonts do.
        _ => find_program(&["dpkg-query"]).is_some_and(|query| {
            let status = output_of(command(query).args(["-W", "-f", "${db:Status-Status}", package]));
            status.as_deref() != Some("installed")
        }),
    };
    DEBIAN_PACKAGES.into_iter().filter(|package| is_missing(package)).collect()
}

fn install(packages: &[&str]) -> Result<()> {
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
