//! Example prompts, by language: one press fills the box and asks.

use crate::client::Client;
use crate::state::Phase;
use leptos::prelude::*;
use web::protocol::{ExamplePrompt, LanguageName};

/// # Props
/// - `on_choose`: hears the prompt that was pressed.
#[component]
pub fn Examples(client: Client, #[prop(into)] on_choose: Callback<String>) -> impl IntoView {
    let chosen = RwSignal::new(None::<String>);
    let examples = Memo::new(move |_| client.welcome.get().map_or_else(Vec::new, |welcome| welcome.examples));
    let languages = Memo::new(move |_| client.welcome.get().map_or_else(Vec::new, |welcome| welcome.languages));
    let current = Memo::new(move |_| chosen.get().or_else(|| visitors_language(&languages.get())).unwrap_or_default());
    let shown = move || {
        let of_language = |example: &ExamplePrompt| example.lang == current.get();
        examples.get().into_iter().filter(of_language).enumerate().collect::<Vec<_>>()
    };
    let chip = move |language: LanguageName| {
        let (for_press, for_check) = (language.code.clone(), language.code.clone());
        view! {
            <label class="chip">
                <input
                    type="radio"
                    name="language"
                    data-lang=language.code.clone()
                    prop:checked=move || current.get() == for_check
                    on:change=move |_| chosen.set(Some(for_press.clone()))
                />
                <span lang=language.code>{language.name}</span>
            </label>
        }
    };
    let example = move |(number, example): (usize, ExamplePrompt)| {
        let prompt = example.prompt.clone();
        view! {
            <li>
                <button
                    type="button"
                    class="example"
                    dir="auto"
                    lang=example.lang
                    data-example=number
                    aria-disabled=move || (client.phase.get() != Phase::Ready).to_string()
                    on:click=move |_| on_choose.run(prompt.clone())
                >
                    {example.prompt}
                </button>
            </li>
        }
    };
    view! {
        <fieldset class="chips">
            <legend>"Examples in"</legend>
            <For each=move || languages.get() key=LanguageName::clone children=chip/>
        </fieldset>
        <ul class="examples" aria-label="Example prompts">
            <For each=shown key=|(_, example)| example.clone() children=example/>
        </ul>
    }
}

/// The browser's own language where there are examples in it, else the first that is not English: English needs no connection.
fn visitors_language(languages: &[LanguageName]) -> Option<String> {
    let own = window().navigator().language().unwrap_or_default();
    let own = own.split('-').next().unwrap_or_default();
    let other = |language: &&LanguageName| language.code != "en";
    let found = languages.iter().filter(other).find(|language| language.code == own);
    found.or_else(|| languages.iter().find(other)).or(languages.first()).map(|language| language.code.clone())
}
