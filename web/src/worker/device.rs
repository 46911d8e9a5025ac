//! Choosing the device: WebGPU if it computes at all, else the CPU and why.
//!
//! Must not know: where weights come from, the golden answers.

use crate::gpu;
use crate::scope::{WebGpu, set_webgpu};
use burn::tensor::Device;
use cctuning::Result;
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::generate::{ConnectionOptions, Decoding, GenerateOptions, Source};
use cctuning::model::CcModel;
use cctuning::sampling::Sampling;
use cctuning::transform_matrix::TransformMatrix;
use web::protocol::{DeviceReport, DeviceWish};

/// A prompt of ordinary length.
const WARM_UP_TOKENS: usize = 8;
/// Bytes of a weight on every device: 8-bit files are made exact f32 as they arrive.
const WEIGHT_BYTES: u64 = 4;

/// A device that the models may be put on.
pub struct Candidate {
    pub device: Device,
    pub report: DeviceReport,
}

/// The best device there is, its kernels compiled for models of this shape. Runs beside the download.
pub async fn choose_device(wish: DeviceWish, config: &ModelConfig) -> Candidate {
    let gpu = match wish {
        DeviceWish::Cpu(reason) => return cpu(reason, config),
        DeviceWish::Best => gpu::open(largest_tensor(config)).await,
    };
    let gpu = match gpu {
        Ok(gpu) => gpu,
        Err(reason) => return cpu(reason, config),
    };
    set_webgpu(WebGpu::Unproved);
    match warm_up(&gpu.device, config).await {
        Ok(()) => {
            let report = DeviceReport { webgpu: true, name: gpu.name, note: None };
            Candidate { device: gpu.device, report }
        }
        Err(error) => {
            set_webgpu(WebGpu::Unused);
            let reason =
                format!("WebGPU failed its first computation ({error}). Update the browser or the graphics driver.");
            cpu(reason, config)
        }
    }
}

/// Answers a prompt with fresh weights, for the kernels that this compiles. They are the same in every layer, so one is
/// enough.
async fn warm_up(device: &Device, config: &ModelConfig) -> Result<()> {
    let config = &ModelConfig { n_layers: 1, ..config.clone() };
    let model = CcModel::new(config, device);
    let transform = TransformMatrix::identity(config.d_model, device).fold(model.model.decision_maker());
    let prompt = Prompt { ids: vec![0; WARM_UP_TOKENS], anchor: WARM_UP_TOKENS - 1, content: 0..WARM_UP_TOKENS };
    let options = GenerateOptions {
        max_new_tokens: 2,
        sampling: Sampling::Greedy,
        source: Source::Transform,
        connection: ConnectionOptions::default(),
        stop_ids: Vec::new(),
    };
    Decoding::start(&model, config, Some(&transform), &[&prompt], &[], options)?.finish().await?;
    Ok(())
}

/// The CPU, why, and what it costs.
pub fn cpu(reason: String, config: &ModelConfig) -> Candidate {
    let megabytes = cpu_bytes(config) as f64 / 1e6;
    let note = format!("{reason} There the weights are 32-bit numbers: {megabytes:.0} MB of this tab's memory.");
    let report = DeviceReport { webgpu: false, name: "CPU".into(), note: Some(note) };
    Candidate { device: Device::flex(), report }
}

/// What both models' weights take in memory on the CPU.
pub fn cpu_bytes(config: &ModelConfig) -> u64 {
    2 * config.parameters() * WEIGHT_BYTES
}

fn largest_tensor(config: &ModelConfig) -> u64 {
    config.d_model as u64 * config.vocab_size.max(config.d_ff) as u64 * WEIGHT_BYTES
}
