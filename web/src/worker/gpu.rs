//! Looks for a WebGPU adapter before Burn does, so that its absence becomes a sentence instead of an error code.
//!
//! Must not know: models, files.

use crate::scope;
use burn::tensor::Device;
use js_sys::{Function, Object, Promise, Reflect};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

/// Tasks that Burn gathers before it submits them. Few enough that the first results do not wait long.
const TASKS_MAX: usize = 32;

/// A WebGPU device and what its adapter calls itself.
pub struct Gpu {
    pub device: Device,
    pub name: String,
}

/// Opens the visitor's graphics device, for tensors of up to so many bytes.
///
/// # Errors
/// A sentence that says why there is none and what can be done.
pub async fn open(largest_tensor: u64) -> Result<Gpu, String> {
    let name = adapter_name(largest_tensor).await?;
    let (device, setup) = Device::wgpu_options().tasks_max(TASKS_MAX).init_with_setup_async().await.map_err(|error| {
        format!("the graphics device could not be opened ({error}). Close other tabs that use it, or update the graphics driver.")
    })?;
    // Burn notices a lost device only at its next read; a visitor should hear of it at once.
    setup.device.set_device_lost_callback(|_, message| scope::device_lost(message));
    Ok(Gpu { device, name })
}

async fn adapter_name(largest_tensor: u64) -> Result<String, String> {
    let global = js_sys::global();
    if get(&global, "isSecureContext") == JsValue::FALSE {
        return Err(
            "WebGPU exists only on pages served over https or from localhost. Open this page at such an address."
                .into(),
        );
    }
    let gpu = get(&get(&global, "navigator"), "gpu");
    if gpu.is_undefined() || gpu.is_null() {
        return Err("this browser has no WebGPU. A current Chrome, Edge, Safari or Firefox has it.".into());
    }
    let adapter = request_adapter(&gpu).await;
    if adapter.is_undefined() || adapter.is_null() {
        return Err("no WebGPU adapter. Turn on hardware acceleration in the browser's settings, or update the graphics driver.".into());
    }
    let limit = get(&get(&adapter, "limits"), "maxStorageBufferBindingSize").as_f64().unwrap_or(f64::INFINITY);
    if largest_tensor as f64 > limit {
        return Err(format!(
            "the models' largest matrix has {} MB, and this graphics driver takes at most {:.0} MB in one piece. \
             Open a smaller bundle, or use a browser with a larger limit.",
            largest_tensor / 1_000_000,
            limit / 1e6
        ));
    }
    let info = get(&adapter, "info");
    let parts = ["description", "vendor", "architecture"].map(|key| get(&info, key).as_string().unwrap_or_default());
    let [description, vendor, architecture] = parts;
    let kind = [vendor, architecture].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let name = [description, kind].into_iter().find(|name| !name.is_empty());
    Ok(name.unwrap_or_else(|| "unnamed adapter".into()))
}

async fn request_adapter(gpu: &JsValue) -> JsValue {
    let Ok(request) = get(gpu, "requestAdapter").dyn_into::<Function>() else { return JsValue::NULL };
    // The one that Burn asks for, where there are two.
    let wish = Object::new();
    Reflect::set(&wish, &"powerPreference".into(), &"high-performance".into()).ok();
    let Ok(promise) = request.call1(gpu, &wish) else { return JsValue::NULL };
    JsFuture::from(Promise::resolve(&promise)).await.unwrap_or(JsValue::NULL)
}

fn get(object: &JsValue, key: &str) -> JsValue {
    Reflect::get(object, &key.into()).unwrap_or(JsValue::UNDEFINED)
}
