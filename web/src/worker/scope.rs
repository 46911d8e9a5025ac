//! The worker's own surroundings: posting events, the clock, giving way to the event loop, the panic hook.
//!
//! Must not know: the bundle, the engine, the page.

use js_sys::{Function, Promise};
use std::cell::Cell;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web::protocol::{Aftermath, Event, Failure};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = postMessage)]
    fn post_message(message: &str);

    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;

    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Function, delay_ms: f64);

    type MessageChannel;
    #[wasm_bindgen(constructor)]
    fn new() -> MessageChannel;
    #[wasm_bindgen(method, getter)]
    fn port1(this: &MessageChannel) -> MessagePort;
    #[wasm_bindgen(method, getter)]
    fn port2(this: &MessageChannel) -> MessagePort;

    type MessagePort;
    #[wasm_bindgen(method, setter)]
    fn set_onmessage(this: &MessagePort, listener: Option<&Function>);
    #[wasm_bindgen(method, js_name = postMessage)]
    fn post(this: &MessagePort, message: &JsValue);
}

thread_local! {
    static CHANNEL: MessageChannel = MessageChannel::new();
    static WEBGPU: Cell<WebGpu> = const { Cell::new(WebGpu::Unused) };
}

/// How much depends on the WebGPU device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WebGpu {
    /// Nothing: there is none, or the models run on the CPU.
    Unused,
    /// It has not passed the self-test yet.
    Unproved,
    /// The models answer on it.
    InUse,
}

/// Tells the page.
pub fn post(event: &Event) {
    match serde_json::to_string(event) {
        Ok(text) => post_message(&text),
        Err(error) => web_sys::console::error_1(&format!("an event cannot be written as JSON: {error}").into()),
    }
}

/// Seconds since the worker started.
pub fn elapsed_s() -> f64 {
    now() / 1000.0
}

/// The most bytes that this program's memory has held; it never shrinks.
pub fn memory() -> u64 {
    const PAGE: u64 = 64 * 1024;
    core::arch::wasm32::memory_size(0) as u64 * PAGE
}

/// Lets messages that have arrived be heard before the next token. `setTimeout` would cost 4 ms each time, a channel does not.
/// Who waits here is forgotten when another comes: one answer runs at a time.
pub async fn give_way() {
    let promise = Promise::new(&mut |resolve, _| {
        CHANNEL.with(|channel| {
            channel.port1().set_onmessage(Some(&resolve));
            channel.port2().post(&JsValue::NULL);
        });
    });
    JsFuture::from(promise).await.ok();
}

/// Waits, for a retry.
pub async fn pause(delay_s: f64) {
    let promise = Promise::new(&mut |resolve, _| set_timeout(&resolve, delay_s * 1000.0));
    JsFuture::from(promise).await.ok();
}

/// Remembers it for the time when something dies.
pub fn set_webgpu(now: WebGpu) {
    WEBGPU.set(now);
}

/// A lost graphics device is a misfortune only to those who depend on it.
pub fn device_lost(detail: String) {
    match WEBGPU.get() {
        WebGpu::Unused => {}
        WebGpu::Unproved => post(&Event::Failure(after_death(detail))),
        WebGpu::InUse => post(&Event::Failure(Failure {
            title: "The graphics device was lost".into(),
            advice: "Reload to open it again. If it happens again, close other tabs, or run the models on the CPU."
                .into(),
            detail,
            aftermath: Aftermath::Dead,
        })),
    }
}

/// A panic ends this worker (the build aborts on panic), so its last act is to tell the page.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        console_error_panic_hook::hook(info);
        post(&Event::Failure(after_death(info.to_string())));
    }));
}

/// What the page hears when nothing more can come from this worker.
pub fn after_death(detail: String) -> Failure {
    if WEBGPU.get() == WebGpu::Unproved {
        return Failure {
            title: "The graphics device failed its first computation".into(),
            advice: "The models will run on the CPU instead.".into(),
            detail,
            aftermath: Aftermath::DeadOnWebGpu,
        };
    }
    Failure {
        title: "The program that runs the models has crashed".into(),
        advice:
            "Reload it. If it happens again, run the models on the CPU: slower, but independent of the graphics driver."
                .into(),
        detail,
        aftermath: Aftermath::Dead,
    }
}
