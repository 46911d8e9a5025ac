//! The one place where errors end: what happened, what the visitor can do, and buttons that do it.

use crate::client::Client;
use crate::components::focus_main;
use leptos::prelude::*;
use web::protocol::{Aftermath, DeviceWish};

#[component]
pub fn FailurePanel(client: Client) -> impl IntoView {
    let restart = move |device| {
        client.start_worker(device);
        focus_main();
    };
    let on_close = move |_| {
        client.failure.set(None);
        focus_main();
    };
    let on_cpu =
        move |_| restart(DeviceWish::Cpu("you chose it after an error. Reload the page to try WebGPU again.".into()));
    // Whoever pressed a button at the foot of the page must see what came of it.
    Effect::new(move || {
        if client.failure.get().is_some() {
            request_animation_frame(|| {
                if let Some(panel) = document().get_element_by_id("failure") {
                    panel.scroll_into_view();
                }
            });
        }
    });
    let panel = move || {
        let failure = client.failure.get()?;
        let usable = failure.aftermath == Aftermath::Usable;
        let buttons = if usable {
            view! { <button type="button" on:click=on_close>"Close"</button> }.into_any()
        } else {
            view! {
                <button type="button" id="restart" class="primary" on:click=move |_| restart(client.device_wish())>
                    "Reload the models"
                </button>
                <button type="button" id="restart-cpu" on:click=on_cpu>"Run them on the CPU"</button>
            }
            .into_any()
        };
        Some(view! {
            <section id="failure" class="card failure" role="alert" data-aftermath=if usable { "usable" } else { "dead" }>
                <h2>{failure.title}</h2>
                <p>{failure.advice}</p>
                <p id="failure-detail" class="detail">{failure.detail}</p>
                <div class="buttons">{buttons}</div>
            </section>
        })
    };
    panel
}
