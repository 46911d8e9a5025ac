//! Proves in real browsers that the page answers as the trainer does, never stands still, and says what went wrong.

mod demo;
mod outside;
mod webdriver;

use demo::{Demo, Model, biggest_file, example, serve, tokens_of_the_trainer};
use outside::Outside;
use webdriver::{Browser, WITH_WEBGPU, WITHOUT_WEBGPU};
use xtask::site::Fault;
use xtask::steps::target_dir;

const LONGEST_TASK_MS: f64 = 200.0;

#[test]
fn a_browser_offers_webgpu_exactly_where_a_test_wants_it() {
    let adapter = "return navigator.gpu ? navigator.gpu.requestAdapter().then(adapter => adapter !== null) : false";
    let site = serve();
    for (flags, expected) in [(WITH_WEBGPU, true), (WITHOUT_WEBGPU, false)] {
        let browser = Browser::chromium(flags);
        browser.open(site.address());
        assert_eq!(browser.run(adapter), expected, "Chromium with {flags:?}");
    }
    let firefox = Browser::firefox();
    firefox.open(site.address());
    assert_eq!(firefox.run(adapter), true, "Firefox");
}

#[test]
fn an_arabic_prompt_gets_the_trainers_tokens_in_both_panes_on_webgpu() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "");
    demo.wait_until_ready();
    assert!(demo.is_on_webgpu(), "{:?}", demo.visible_text("#device-note"));
    assert_answers_like_the_trainer(&demo, &example("ar"));
}

#[test]
fn an_arabic_prompt_gets_the_trainers_tokens_in_both_panes_on_the_cpu() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "?device=cpu");
    demo.wait_until_ready();
    assert!(!demo.is_on_webgpu());
    assert_answers_like_the_trainer(&demo, &example("ar"));
}

#[test]
fn without_an_adapter_the_page_says_so_and_answers_the_same() {
    let demo = Demo::open(Browser::chromium(WITHOUT_WEBGPU), "");
    demo.wait_until_ready();
    assert!(!demo.is_on_webgpu());
    let notice = demo.visible_text("#device-note").expect("a notice tells that there is no WebGPU here");
    assert!(notice.contains("WebGPU") && notice.contains("CPU"), "{notice}");
    assert_answers_like_the_trainer(&demo, &example("ar"));
}

#[test]
fn the_self_test_has_a_visible_verdict_before_anything_is_asked() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "");
    let verdict = demo.wait_until_ready();
    assert!(verdict.to_lowercase().contains("passed"), "{verdict}");
    let asked = demo.token_count(Model::Vanilla) + demo.token_count(Model::Cc);
    assert_eq!(asked, 0, "no answer has been asked for");
}

#[test]
fn firefox_passes_the_golden_self_test() {
    let demo = Demo::open(Browser::firefox(), "");
    let verdict = demo.wait_until_ready();
    assert!(verdict.to_lowercase().contains("passed"), "{verdict}");
    assert!(demo.is_on_webgpu(), "{:?}", demo.visible_text("#device-note"));
}

#[test]
fn the_page_never_stands_still_for_200_ms_while_it_answers() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "");
    demo.wait_until_ready();
    demo.browser.run(
        "window.longTasks = [];
         new PerformanceObserver(list => window.longTasks.push(...list.getEntries().map(entry => entry.duration)))
             .observe({ type: 'longtask' });",
    );
    demo.answer(&example("ar"));
    let tasks = demo.browser.run("return window.longTasks");
    let longest = tasks.as_array().into_iter().flatten().filter_map(|task| task.as_f64()).fold(0.0, f64::max);
    assert!(
        longest <= LONGEST_TASK_MS,
        "the page's thread was busy for {longest} ms in one piece; all long tasks: {tasks}"
    );
}

#[test]
fn a_shard_with_one_wrong_bit_is_refused_by_its_name() {
    let shard = biggest_file();
    let demo = Demo { site: serve(), browser: Browser::chromium(WITH_WEBGPU) };
    demo.site.break_with(Fault::FlippedBit(format!("bundle/{shard}")));
    demo.load("");
    let error = demo.wait_for_error();
    assert!(error.contains(&shard), "the error must name {shard}: {error}");
}

#[test]
fn a_missing_file_is_reported_by_its_name() {
    let shard = biggest_file();
    let demo = Demo { site: serve(), browser: Browser::chromium(WITH_WEBGPU) };
    demo.site.break_with(Fault::Missing(format!("bundle/{shard}")));
    demo.load("");
    let error = demo.wait_for_error();
    assert!(error.contains(&shard), "the error must name {shard}: {error}");
}

#[test]
fn the_page_asks_no_other_host_and_breaks_no_policy() {
    let outside = Outside::listen();
    let proxy = outside.flag();
    let demo = Demo::open(Browser::chromium(&[WITH_WEBGPU, &[&proxy]].concat()), "");
    demo.wait_until_ready();
    demo.answer(&example("ar"));
    let foreign = "return performance.getEntriesByType('resource').map(entry => entry.name)
                   .filter(name => !name.startsWith(location.origin + '/'))";
    assert_eq!(demo.browser.run(foreign), serde_json::json!([]));
    assert_eq!(outside.requests_of_the_page(), Vec::<String>::new());
    let complaints: Vec<String> = demo.browser.console();
    let violation = complaints.iter().find(|line| line.contains("Content Security Policy"));
    assert_eq!(violation, None, "{complaints:#?}");
}

#[test]
fn the_stop_button_ends_both_answers_within_two_tokens() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "");
    demo.wait_until_ready();
    // Pressed by the page itself at the first token, so that no token slips in between.
    demo.browser.run(
        "const panes = ['#pane-vanilla', '#pane-cc'].map(selector => document.querySelector(selector));
         const observer = new MutationObserver(() => {
             const counts = panes.map(pane => Number(pane.dataset.tokens));
             if (counts[0] + counts[1] === 0) return;
             observer.disconnect();
             window.countsAtStop = counts;
             document.querySelector('#stop').click();
         });
         panes.forEach(pane => observer.observe(pane, { attributes: true, attributeFilter: ['data-tokens'] }));",
    );
    demo.type_prompt(&example("ar"));
    demo.ask();
    let stopped = "document.querySelector('main').dataset.phase === 'ready' && window.countsAtStop";
    let before = demo.browser.wait_for("the page can be asked again", stopped, 60);
    for (pane, model) in [Model::Vanilla, Model::Cc].into_iter().enumerate() {
        let allowed = before[pane].as_u64().expect("a count is a number") as usize + 2;
        let after = demo.token_count(model);
        assert!(after <= allowed, "{model:?}: {after} tokens, {allowed} allowed");
    }
    let ended_early = "return document.querySelectorAll('[data-state=stopped]').length > 0";
    assert_eq!(demo.browser.run(ended_early), true, "no pane says that its answer was stopped");
}

#[test]
fn the_page_fits_a_desk_a_phone_and_right_to_left_writing() {
    let folder = target_dir().join("screenshots");
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "");
    demo.wait_until_ready();
    for (name, lang, width, height) in [
        ("desktop", "es", 1280, 900),
        ("phone", "es", 390, 844),
        ("right-to-left", "ar", 1280, 900),
        ("phone-right-to-left", "ar", 390, 844),
    ] {
        demo.browser.screen(width, height, width < 500);
        demo.answer(&example(lang));
        demo.browser.run("scrollTo(0, 0)");
        let overflow =
            demo.browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
        demo.browser.screenshot(&folder.join(format!("{name}.png")));
        assert_eq!(overflow, 0, "{name}: the page is wider than the screen by so many pixels");
        let direction = demo.browser.run("return getComputedStyle(document.querySelector('#prompt')).direction");
        assert_eq!(direction, if lang == "ar" { "rtl" } else { "ltr" }, "{name}");
    }
}

fn assert_answers_like_the_trainer(demo: &Demo, prompt: &str) {
    demo.answer(prompt);
    for model in [Model::Vanilla, Model::Cc] {
        let expected = tokens_of_the_trainer(model, prompt);
        assert!(!expected.is_empty(), "the trainer answers `{prompt}`");
        assert_eq!(demo.tokens(model), expected, "{model:?}: {prompt}");
    }
}
