//! A model's own Jinja template: what it becomes, what is refused, and in which order a folder is asked.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::config::Family;
use cctuning::tokenizer::Tokenizer;
use serde_json::{Value, json};
use trainer::jinja::{Source, derive, of_folder};
use trainer::model_folder::ModelFolder;

use crate::golden::{LLAMA31_OWN, assert_ids};
use crate::{mistral, real, small_model};

/// In the manner of Llama 3.1: a system message with a date, blocks on lines of their own, helpers, trimming.
pub const DATED: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- A system message of the caller's own is put into the same place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif not message.tool_calls|length == 1 %}
        {{- raise_exception("one tool call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}{% endif %}\
    {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const MISTRAL: &str = r#"{%- set loop_messages = messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
    {%- if not message.get("tool_calls") %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}"#;

pub fn source(text: &str) -> Source {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    Source { text: text.into(), tokens: tokens.map(|(name, token)| (name.into(), token.into())).into() }
}

fn derived(text: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, String> {
    derive(&source(text), tokenizer).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_published_template_becomes_the_built_in_one_that_says_the_same() {
    let tokenizer = small_model::tokenizer();
    assert_eq!(derived(CHATML, &tokenizer).unwrap(), ChatTemplate::QWEN2);
    assert_eq!(derived(MISTRAL, &mistral()).unwrap(), ChatTemplate::MISTRAL);
}

#[test]
fn a_template_with_a_date_and_trimming_is_spelt_out_with_the_published_ids() {
    let own = |tokenizer: &Tokenizer| {
        let mut source = source(DATED);
        source.tokens.insert("bos_token".into(), "<|begin_of_text|>".into());
        derive(&source, tokenizer).unwrap()
    };
    let template = own(&small_model::tokenizer());
    assert_eq!(
        template.before,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
         Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    );
    assert_eq!((&*template.after, &*template.stop, template.trim), ("<|eot_id|>", "<|eot_id|>", true));
    assert_eq!(template.answer_tag, ChatTemplate::LLAMA3.answer_tag);
    assert_eq!((template.role_token_from_end, template.name()), (Some(1), "custom"));
    assert_eq!(template.next, ChatTemplate::LLAMA3.next);
    let (open, close) = template.before.split_once("<|eot_id|>").unwrap();
    assert_eq!(template.system, Some([open.to_owned().into(), format!("<|eot_id|>{close}").into()]));
    let prompt = |text| template.render(&small_model::tokenizer(), text, AnchorRule::LastPrompt).unwrap();
    assert_eq!(prompt(" \n why?\n"), prompt("why?"));
    if let Some(tokenizer) = real("llama3.1") {
        assert_ids(&own(&tokenizer), &tokenizer, &LLAMA31_OWN);
    }
}

#[test]
fn a_template_that_closes_what_is_not_to_go_on_is_taken_without_that_end() {
    let text = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
                {{ '<|assistant|>' if add_generation_prompt else eos_token }}";
    let template = derived(text, &small_model::tokenizer()).unwrap();
    assert_eq!((&*template.after, &*template.answer_tag, &*template.stop), ("<|end|>", "<|assistant|>", "<|end|>"));
}

#[test]
fn a_template_keeps_the_turns_that_it_renders_as_they_stand_and_no_others() {
    let tokenizer = small_model::tokenizer();
    let turn = "<|{{ m.role }}|>{{ m.content }}<|end|>";
    let ask = "{{ '<|assistant|>' if add_generation_prompt }}";
    let all = derived(&format!("{{% for m in messages %}}{turn}{{% endfor %}}{ask}"), &tokenizer).unwrap();
    assert_eq!(all.next.as_deref(), Some("<|end|><|user|>"));
    assert_eq!(all.system, Some(["<|system|>".into(), "<|end|><|user|>".into()]));
    // What Mistral's do: the system text goes wherever the last question is.
    let last = "{% set s = messages[0].content if messages[0].role == 'system' %}\
                {% for m in (messages[1:] if s else messages) %}<|{{ m.role }}|>{{ s ~ ' ' if loop.last and s }}{{ m.content }}<|end|>{% endfor %}";
    let last = derived(&format!("{last}{ask}"), &tokenizer).unwrap();
    assert_eq!((last.next.as_deref(), &last.system), (Some("<|end|><|user|>"), &None));
    let once = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}";
    let once = derived(&format!("{once}{{% for m in messages %}}{turn}{{% endfor %}}{ask}"), &tokenizer).unwrap();
    assert_eq!(once.next, None);
    // An answer that is asked for in other words than it is remembered in.
    let thinking =
        format!("{{% for m in messages %}}{turn}{{% endfor %}}{{{{ '<|assistant|>think' if add_generation_prompt }}}}");
    assert_eq!(derived(&thinking, &tokenizer).unwrap().next, None);
}

#[test]
fn the_anchor_before_the_answer_tag_is_found_by_the_difference_alone() {
    let tokenizer = small_model::tokenizer();
    let template = derived(
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n{% else %}A:{{ m.content }}<|end|>{% endif %}\
         {% endfor %}{% if add_generation_prompt %}A:{% endif %}",
        &tokenizer,
    )
    .unwrap();
    assert_eq!((&*template.before, &*template.answer_tag, &*template.stop), ("Q: ", "A:", "<|end|>"));
    let prompt = template.render(&tokenizer, "why", AnchorRule::BeforeAnswerTag).unwrap();
    assert_eq!(tokenizer.decode(&prompt.ids[..=prompt.anchor]).unwrap(), "Q: why\n");
    assert_eq!(tokenizer.decode(&prompt.ids[prompt.anchor + 1..]).unwrap(), "A:");
}

#[test]
fn a_template_that_is_more_than_text_around_the_users_is_refused_by_name() {
    let tokenizer = small_model::tokenizer();
    for (text, expected) in [
        ("{{ messages[0].content | upper }}", "changes the user's text"),
        ("{{ messages[0].content | replace('<', '&lt;') }}", "changes the user's text"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "repeats the user's text"),
        ("{{ messages[0].content | length }} {{ messages[0].content }}", "depends on the user's"),
        ("{{ 'a' if add_generation_prompt else 'b' }}{{ messages[0].content }}", "does not begin with"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{% for x in %}", "line 1"),
        ("{{ undefined.attribute.deeper }}{{ messages[0].content }}", "undefined"),
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "fuel"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{{ 'a' * 90000 }}{{ messages[0].content }}", "bytes of a short question"),
        ("{{ 'a' * 99999999999 }}{{ messages[0].content }}", "too large"),
        ("{% include '/etc/passwd' %}", "not"),
    ] {
        let error = derived(text, &tokenizer).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = derived("{{ bos_token }}{{ messages[0].content }}", &without("<s>")).unwrap_err();
    assert!(error.contains("bos_token") && error.contains("no control token"), "{error}");
    let mut endless = source("{{ messages[0].content }}");
    endless.tokens.clear();
    assert!(format!("{:#}", derive(&endless, &tokenizer).unwrap_err()).contains("ends an answer"));
    assert!(derived(&" ".repeat(300_000), &tokenizer).unwrap_err().contains("bytes long"));
}

#[test]
fn a_template_that_takes_all_memory_is_refused_before_it_has_it() {
    let dir = tempfile::tempdir().unwrap();
    small_model::write_folder(dir.path(), 1);
    fs::remove_file(dir.path().join("cctuning.json")).unwrap();
    let doubling =
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(34) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), doubling).unwrap();
    // A process of its own, which ends with what it has taken.
    let asked = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .args(["generate", "--prompt", "x", "--folder"])
        .arg(dir.path())
        .output()
        .unwrap();
    let error = String::from_utf8(asked.stderr).unwrap();
    assert!(asked.status.code() == Some(1) && error.contains("memory for a short question"), "{error}");
}

/// The byte tokenizer without one of its control tokens.
fn without(token: &str) -> Tokenizer {
    let mut json = small_model::tokenizer_json();
    json["added_tokens"].as_array_mut().unwrap().retain(|added| added["content"] != token);
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn load(path: &Path, template: Option<ChatTemplate>) -> Result<ChatTemplate, String> {
    let folder = ModelFolder::load(path, template, 0, &Device::flex());
    folder.map(|folder| folder.settings.template).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_folder_is_asked_for_its_settings_then_its_jinja_then_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    small_model::write_folder(dir.path(), 1);
    let path = |name: &str| dir.path().join(name);
    let configure = |template: Value| {
        let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template});
        fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
    };
    configure(json!(MISTRAL));
    assert_eq!(load(dir.path(), None).unwrap(), ChatTemplate::PLAIN, "cctuning.json is asked first");

    fs::remove_file(path("cctuning.json")).unwrap();
    assert_eq!(load(dir.path(), None).unwrap(), ChatTemplate::MISTRAL);
    assert_eq!(load(dir.path(), Some(ChatTemplate::PLAIN)).unwrap(), ChatTemplate::PLAIN, "what is named wins");
    configure(json!([{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": CHATML}]));
    assert_eq!(load(dir.path(), None).unwrap(), ChatTemplate::QWEN2);
    fs::write(path("chat_template.jinja"), MISTRAL).unwrap();
    assert_eq!(load(dir.path(), None).unwrap(), ChatTemplate::MISTRAL, "the file goes before the entry");

    fs::write(path("chat_template.jinja"), "{{ messages[0].content | upper }}").unwrap();
    let error = load(dir.path(), None).unwrap_err();
    for part in ["chat_template.jinja", "model.template", "changes the user's text"] {
        assert!(error.contains(part), "{error}");
    }
    fs::remove_file(path("chat_template.jinja")).unwrap();
    fs::write(path("tokenizer_config.json"), "{}").unwrap();
    assert_eq!(load(dir.path(), None).unwrap(), ChatTemplate::LLAMA3, "the byte tokenizer has every control token");
}

#[test]
fn an_exported_template_is_read_back_as_itself() {
    for (name, template) in ChatTemplate::BUILT_IN {
        let dir = tempfile::tempdir().unwrap();
        let odd =
            ChatTemplate { before: format!("{}it's \\ ", template.before).into(), trim: true, ..template.clone() };
        for template in [template, odd] {
            let folder = small_model::folder(small_model::config(Family::Llama, true), template.clone(), 1);
            folder.save_model(&folder.model, dir.path(), cctuning::checkpoint::Storage::F32).unwrap();
            let read = of_folder(dir.path(), &folder.tokenizer).unwrap().unwrap();
            assert_eq!((&read.before, &read.after), (&template.before, &template.after), "{name}");
            assert_eq!((&read.next, &read.system), (&template.next, &template.system), "{name}");
            assert_eq!(
                (&read.answer_tag, &read.stop, read.trim),
                (&template.answer_tag, &template.stop, template.trim)
            );
            let config: Value =
                serde_json::from_slice(&fs::read(dir.path().join("tokenizer_config.json")).unwrap()).unwrap();
            assert_eq!(config["eos_token"], json!(template.stop));
            let bos = ["llama3", "mistral"].contains(&name).then(|| template.control[0].to_string());
            assert_eq!(config.get("bos_token").and_then(Value::as_str), bos.as_deref(), "{name}");
        }
    }
}
