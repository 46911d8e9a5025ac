//! Proves in real browsers that the page answers as the trainer does, never stands still, and says what went wrong.

mod demo;
mod outside;
mod webdriver;

use demo::{Demo, Model, biggest_file, example, serve, tokens_of_the_trainer};
use libtest_mimic::{Arguments, Trial};
use outside::Outside;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use webdriver::{Browser, WITH_WEBGPU, WITHOUT_WEBGPU};
use xtask::site::Fault;
use xtask::steps::target_dir;

const LONGEST_TASK_MS: f64 = 200.0;

/// The page in Chromium on WebGPU, loaded once for all tests that only ask it something: its self-test takes half a minute
/// where two cores play the graphics card.
struct Loaded {
    demo: Demo,
    /// What a visitor read when the page was ready.
    verdict: String,
    outside: Outside,
}

type Shared = Mutex<LazyLock<Loaded>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Browsers share the cores with the software that plays the graphics card.
    arguments.test_threads = Some(1);
    let shared: Arc<Shared> = Arc::new(Mutex::new(LazyLock::new(load)));
    let alone = |name, test: fn()| Trial::test(name, move || Ok(test()));
    let on_loaded = |name, test: fn(&Loaded)| {
        let shared = Arc::clone(&shared);
        Trial::test(name, move || Ok(test(&shared.lock().unwrap_or_else(PoisonError::into_inner))))
    };
    let trials = vec![
        alone("a browser offers WebGPU exactly where a test wants it", webgpu_is_offered_where_wanted),
        alone("a shard with one wrong bit is refused by its name", a_wrong_bit_is_refused),
        alone("a missing file is reported by its name", a_missing_file_is_reported),
        alone("an Arabic prompt gets the trainer's tokens in both panes on the CPU", arabic_on_the_cpu),
        alone("without an adapter the page says so and answers the same", without_an_adapter),
        alone("Firefox passes the golden self-test on WebGPU", firefox_passes_the_self_test),
        on_loaded("the self-test has a visible verdict before anything is asked", the_verdict_is_visible),
        on_loaded("an Arabic prompt gets the trainer's tokens in both panes on WebGPU", arabic_on_webgpu),
        on_loaded("the page never stands still for 200 ms while it answers", the_page_never_stands_still),
        on_loaded("the stop button ends both answers within two tokens", stop_ends_both_answers),
        on_loaded("the page fits a desk, a phone and right-to-left writing", the_page_fits),
        on_loaded("the page asks no other host and breaks no policy", the_page_stays_at_home),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The last owner ends the browser; leaving by `exit` would not.
    drop(shared);
    if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn load() -> Loaded {
    let outside = Outside::listen();
    let demo = Demo::open(Browser::chromium(&[WITH_WEBGPU, &[&outside.flag()]].concat()), "");
    let verdict = demo.wait_until_ready();
    assert!(demo.is_on_webgpu(), "{:?}", demo.visible_text("#device-note"));
    Loaded { demo, verdict, outside }
}

fn webgpu_is_offered_where_wanted() {
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

fn a_wrong_bit_is_refused() {
    a_fault_is_reported_by_the_files_name(Fault::FlippedBit);
}

fn a_missing_file_is_reported() {
    a_fault_is_reported_by_the_files_name(Fault::Missing);
}

fn a_fault_is_reported_by_the_files_name(fault: fn(String) -> Fault) {
    let shard = biggest_file();
    let demo = Demo { site: serve(), browser: Browser::chromium(WITH_WEBGPU) };
    demo.site.break_with(fault(format!("bundle/{shard}")));
    demo.load("");
    let error = demo.wait_for_error();
    assert!(error.contains(&shard), "the error must name {shard}: {error}");
}

fn arabic_on_the_cpu() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "?device=cpu");
    demo.wait_until_ready();
    assert!(!demo.is_on_webgpu());
    answers_like_the_trainer(&demo, &example("ar"));
}

fn without_an_adapter() {
    let demo = Demo::open(Browser::chromium(WITHOUT_WEBGPU), "");
    demo.wait_until_ready();
    assert!(!demo.is_on_webgpu());
    let notice = demo.visible_text("#device-note").expect("a notice tells that there is no WebGPU here");
    assert!(notice.contains("WebGPU") && notice.contains("CPU"), "{notice}");
    answers_like_the_trainer(&demo, &example("ar"));
}

fn firefox_passes_the_self_test() {
    let demo = Demo::open(Browser::firefox(), "");
    let verdict = demo.wait_until_ready();
    assert!(verdict.contains("passed"), "{verdict}");
    assert!(demo.is_on_webgpu(), "{:?}", demo.visible_text("#device-note"));
}

fn the_verdict_is_visible(loaded: &Loaded) {
    assert!(loaded.verdict.contains("passed on WebGPU"), "{}", loaded.verdict);
    let asked = loaded.demo.token_count(Model::Vanilla) + loaded.demo.token_count(Model::Cc);
    assert_eq!(asked, 0, "no answer has been asked for");
}

fn arabic_on_webgpu(loaded: &Loaded) {
    answers_like_the_trainer(&loaded.demo, &example("ar"));
}

fn the_page_never_stands_still(loaded: &Loaded) {
    let demo = &loaded.demo;
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

fn stop_ends_both_answers(loaded: &Loaded) {
    let demo = &loaded.demo;
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

fn the_page_fits(loaded: &Loaded) {
    let demo = &loaded.demo;
    for (lang, direction) in [("es", "ltr"), ("ar", "rtl")] {
        demo.answer(&example(lang));
        for (screen, width, height) in [("desk", 1280, 900), ("phone", 390, 844)] {
            demo.browser.screen(width, height, screen == "phone");
            demo.browser.run("scrollTo(0, 0)");
            let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            let overflow = demo.browser.run(overflow);
            demo.browser.screenshot(&target_dir().join(format!("screenshots/{screen}-{lang}.png")));
            assert_eq!(overflow, 0, "{screen}, {lang}: the page is wider than the screen by so many pixels");
            let found = demo.browser.run("return getComputedStyle(document.querySelector('#prompt')).direction");
            assert_eq!(found, direction, "{screen}, {lang}");
        }
    }
}

fn the_page_stays_at_home(loaded: &Loaded) {
    let Loaded { demo, outside, .. } = loaded;
    demo.answer(&example("ar"));
    let foreign = "return performance.getEntriesByType('resource').map(entry => entry.name)
                   .filter(name => !name.startsWith(location.origin + '/'))";
    assert_eq!(demo.browser.run(foreign), serde_json::json!([]));
    assert_eq!(outside.requests_of_the_page(), Vec::<String>::new());
    let complaints: Vec<String> = demo.browser.console();
    let violation = complaints.iter().find(|line| line.contains("Content Security Policy"));
    assert_eq!(violation, None, "{complaints:#?}");
}

fn answers_like_the_trainer(demo: &Demo, prompt: &str) {
    demo.answer(prompt);
    for model in [Model::Vanilla, Model::Cc] {
        let expected = tokens_of_the_trainer(model, prompt);
        assert!(!expected.is_empty(), "the trainer answers `{prompt}`");
        assert_eq!(demo.tokens(model), expected, "{model:?}: {prompt}");
        println!(
            "measured: {model:?} on {}: {}",
            if demo.is_on_webgpu() { "WebGPU" } else { "the CPU" },
            demo.speed(model)
        );
    }
}
