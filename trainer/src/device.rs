//! Which device computes: CUDA if a driver is found, else the CPU. `BURN_DEVICE` overrides (Burn's own variable).

use burn::tensor::Device;

/// The device, and its name for people.
pub fn choose() -> (Device, String) {
    if std::env::var_os("BURN_DEVICE").is_some() {
        let device = Device::default();
        let name = format!("{device:?}");
        return (device, name);
    }
    #[cfg(feature = "cuda")]
    match cuda_libraries() {
        Ok(()) => return (Device::cuda(0), "CUDA device 0".into()),
        Err(missing) => return (Device::flex(), format!("CPU ({missing})")),
    }
    #[cfg(not(feature = "cuda"))]
    (Device::flex(), "CPU (built without the `cuda` feature)".into())
}

/// Whether a device is the CPU, whose memory is the process's own and whose cores each take a batch.
pub fn is_cpu(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

/// Kernels are compiled by NVRTC when they are first run, so the driver alone is not enough.
#[cfg(feature = "cuda")]
fn cuda_libraries() -> Result<(), &'static str> {
    let loads = |names: &[&str]| {
        // SAFETY: NVIDIA's libraries run no code of consequence when loaded, and stay loaded while Burn uses them.
        names.iter().any(|name| unsafe { libloading::Library::new(name) }.map(std::mem::forget).is_ok())
    };
    if !loads(&["libcuda.so.1", "libcuda.so", "nvcuda.dll"]) {
        return Err("no CUDA driver found");
    }
    let nvrtc = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    if !loads(&nvrtc) {
        return Err("a CUDA driver but no NVRTC library found; install the CUDA toolkit's nvrtc to use the GPU");
    }
    Ok(())
}
