//! Loads a web bundle natively on the kernels that browsers get, and has the device answer its golden prompts.
//!
//! `BURN_DEVICE=wgpu cargo run --release -p trainer --no-default-features --features webgpu --example self_test -- BUNDLE [PROMPTS]`
//!
//! `VK_ICD_FILENAMES` chooses the Vulkan driver. Without `BURN_DEVICE` the CPU computes.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::read_sync;
use trainer::{device, export};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().context("which bundle?")?;
    let prompts = args.next().map_or(Ok(usize::MAX), |n| n.parse())?;
    let (device, name) = device::choose();
    println!("device: {name}");
    let started = Instant::now();
    let bundle = export::load(folder.as_ref(), &device)?;
    println!("loaded in {:.1} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let test = read_sync(bundle.self_test(prompts))?;
    println!("both models answered in {:.1} s: {test:?}", started.elapsed().as_secs_f64());
    ensure!(test.passed, "this device computes something else");
    Ok(())
}
