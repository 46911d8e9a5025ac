//! Proves in real browsers that the page answers as the trainer does, never stands still, and says what went wrong.

mod bundles;
mod demo;
mod held_out;
mod large;
mod marionette;
mod outside;
mod webdriver;

use demo::{
    Demo, Model, biggest_file, bundle_with_other_logits, example, example_with_twin, manifest, serve,
    tokens_of_the_trainer,
};
use libtest_mimic::{Arguments, Trial};
use outside::Outside;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use webdriver::{Browser, WITH_WEBGPU, WITHOUT_WEBGPU};
use xtask::site::Fault;
use xtask::steps::target_dir;
use xtask::suite::ESSENTIAL_ONLY;

const LONGEST_TASK_MS: f64 = 200.0;
/// Parts of the names of the tests that run where there is no time for all: both panes give the trainer's tokens in Chromium
/// on WebGPU and on the CPU, Firefox passes the self-test, and the page fits its screens.
const ESSENTIAL: [&str; 6] =
    ["offers WebGPU", "every source", "golden self-test", "verdict before", "an Arabic", "fits a desk"];

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
    let mut trials = vec![
        alone("a browser offers WebGPU exactly where a test wants it", webgpu_is_offered_where_wanted),
        alone("a shard with one wrong bit is refused by its name", a_wrong_bit_is_refused),
        alone("a missing file is reported by its name", a_missing_file_is_reported),
        alone("a device that does not reproduce the golden logits never answers", wrong_logits_end_the_page),
        alone(
            "a prompt of every language gets the trainer's tokens in both panes on the CPU",
            every_language_on_the_cpu,
        ),
        alone(
            "every source of the connection, and a layer of one's own, gives the trainer's tokens",
            the_switch_connects,
        ),
        alone("every held-out prompt earns in the page what the tables' rules give the trainer", held_out::on_the_cpu),
        alone("without an adapter the page says so and answers the same", without_an_adapter),
        alone("Firefox passes the golden self-test on WebGPU", firefox_passes_the_self_test),
        on_loaded("the self-test has a visible verdict before anything is asked", the_verdict_is_visible),
        on_loaded("an Arabic prompt gets the trainer's tokens in both panes on WebGPU", arabic_on_webgpu),
        on_loaded(
            "held-out prompts with an answer of one character earn on WebGPU what they earn natively",
            held_out_on_webgpu,
        ),
        on_loaded("the page never stands still for 200 ms while it answers", the_page_never_stands_still),
        on_loaded("the stop button ends both answers within two tokens", stop_ends_both_answers),
        on_loaded("the page fits a desk, a phone and right-to-left writing", the_page_fits),
        on_loaded("the page asks no other host and breaks no policy", the_page_stays_at_home),
    ];
    trials.push(alone(
        "a bundle of more than 200 MB is streamed to the graphics device within 200 MB of memory",
        large::a_large_bundle_is_streamed,
    ));
    trials.extend(bundles::TESTS.map(|(name, test)| alone(name, test)));
    if std::env::var_os(ESSENTIAL_ONLY).is_some() {
        let is_essential = |trial: &Trial| ESSENTIAL.iter().any(|part| trial.name().contains(part));
        let ignored = |trial: Trial| {
            let ignored = !is_essential(&trial);
            trial.with_ignored_flag(ignored)
        };
        trials = trials.into_iter().map(ignored).collect();
    }
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

fn wrong_logits_end_the_page() {
    let demo = Demo { site: serve(), browser: Browser::chromium(WITH_WEBGPU) };
    // Beyond f32, so that the error is infinite: the page hears of it all the same.
    demo.site.break_with(Fault::Replaced(bundle_with_other_logits(|_| 1e39)));
    demo.load("?device=cpu");
    let error = demo.wait_for_error();
    assert!(error.contains("logits are off by 3.40e38"), "{error}");
    demo.site.break_with(Fault::Replaced(bundle_with_other_logits(|logit| logit + 0.01)));
    demo.load("");
    let error = demo.wait_for_error();
    assert!(error.contains("logits are off by"), "{error}");
    // WebGPU was refused first, and the CPU after it.
    assert!(!demo.is_on_webgpu());
    let notice = demo.visible_text("#device-note").expect("a notice tells why WebGPU was left");
    assert!(notice.contains("WebGPU did not pass the self-test"), "{notice}");
    assert!(demo.visible_text("#self-test").is_some_and(|verdict| verdict.contains("failed on the CPU")));
}

fn every_language_on_the_cpu() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "?device=cpu");
    demo.wait_until_ready();
    assert!(!demo.is_on_webgpu());
    let languages = manifest()["languages"].as_array().cloned().unwrap_or_default();
    assert_eq!(languages.len(), 22);
    for language in languages {
        answers_like_the_trainer(&demo, &example(language["code"].as_str().expect("a code is a text")));
    }
    answers_without_a_long_task(&demo);
}

fn the_switch_connects() {
    let demo = Demo::open(Browser::chromium(WITH_WEBGPU), "?device=cpu");
    demo.wait_until_ready();
    let (prompt, english) = example_with_twin("ar");
    demo.type_prompt(&prompt);
    let cases: [(&str, Option<usize>, &[&str]); 5] = [
        ("off", None, &["--source", "none"]),
        ("transform", None, &["--source", "transform"]),
        ("identity", None, &["--source", "identity"]),
        ("parallel", None, &["--source", "parallel", "--english", &english]),
        ("parallel", Some(2), &["--source", "parallel", "--english", &english, "--layer", "3"]),
    ];
    for (source, layer, arguments) in cases {
        demo.connect(source, layer);
        demo.answer(&prompt);
        assert_eq!(demo.tokens(Model::Cc), tokens_of_the_trainer(Model::Cc, &prompt, arguments), "{source}, {layer:?}");
        let drawn = demo.browser.run(
            "const rows = [...document.querySelectorAll('#connection [data-probability]')];
             return [document.querySelector('#connection').dataset.layer ?? null,
                     rows.reduce((sum, row) => sum + Number(row.dataset.probability), 0)]",
        );
        let words = demo.visible_text("#connection").unwrap_or_default();
        let (chosen, sum) = (drawn[0].as_str(), drawn[1].as_f64().expect("a sum is a number"));
        match (source, layer) {
            ("off", _) => assert_eq!((chosen, sum), (None, 0.0)),
            (_, Some(layer)) => {
                assert_eq!(chosen, Some(layer.to_string().as_str()));
                assert!(words.contains(&format!("You chose layer {} of", layer + 1)), "{words}");
            }
            (_, None) => {
                assert!(chosen.is_some() && (sum - 1.0).abs() < 1e-4, "{source}: {drawn}");
                assert!(words.contains("The Decision Maker chose layer"), "{words}");
            }
        }
    }
    // A layer is one of the models it was chosen for; where it is injected from outlives them.
    demo.browser.run(
        "const press = () => document.querySelector('#other-device').click();
         press();
         return new Promise(done => setTimeout(() => { press(); done(); }));",
    );
    demo.wait_until_ready();
    demo.answer(&prompt);
    let arguments = ["--source", "parallel", "--english", &english];
    assert_eq!(demo.tokens(Model::Cc), tokens_of_the_trainer(Model::Cc, &prompt, &arguments));
    let words = demo.visible_text("#connection").unwrap_or_default();
    assert!(words.contains("The Decision Maker chose layer"), "{words}");
    // A question of one's own has no twin, and says so by leaving that source.
    demo.type_prompt("?");
    let source = demo.browser.run("return document.querySelector('input[name=source]:checked').value");
    assert_eq!(source, "transform");
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

fn held_out_on_webgpu(loaded: &Loaded) {
    held_out::on_webgpu(&loaded.demo);
}

fn the_page_never_stands_still(loaded: &Loaded) {
    answers_without_a_long_task(&loaded.demo);
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
    let judged = "return [...document.querySelectorAll('[data-state=stopped] .verdict')].some(each => each.innerText)";
    assert_eq!(demo.browser.run(judged), false, "half an answer is neither right nor wrong");
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
    // And there is a policy: it stops what the page itself would never ask for.
    let refused = demo.browser.run(
        "return new Promise(resolve => {
             addEventListener('securitypolicyviolation', event => resolve(event.effectiveDirective), { once: true });
             setTimeout(() => resolve('nothing'), 3000);
             fetch('http://127.0.0.1:1/').catch(() => {});
         })",
    );
    assert_eq!(refused, "connect-src");
    let worker =
        demo.browser.run("return fetch('worker.js').then(file => file.headers.get('Content-Security-Policy'))");
    assert!(
        worker.as_str().is_some_and(|policy| policy.contains("connect-src 'self'")),
        "the worker's policy: {worker}"
    );
}

fn answers_without_a_long_task(demo: &Demo) {
    // The observer is shown one long task first, or its silence would prove nothing.
    demo.browser.run(
        "window.longTasks = [];
         new PerformanceObserver(list => window.longTasks.push(...list.getEntries().map(entry => entry.duration)))
             .observe({ type: 'longtask' });
         setTimeout(() => { const end = performance.now() + 300; while (performance.now() < end); });",
    );
    demo.browser.wait_for("the observer sees a long task", "window.longTasks.some(task => task >= 300)", 10);
    demo.browser.run("window.longTasks = []");
    demo.answer(&example("ar"));
    let tasks = demo.browser.run("return window.longTasks");
    let longest = tasks.as_array().into_iter().flatten().filter_map(|task| task.as_f64()).fold(0.0, f64::max);
    assert!(
        longest <= LONGEST_TASK_MS,
        "the page's thread was busy for {longest} ms in one piece; all long tasks: {tasks}"
    );
}

fn answers_like_the_trainer(demo: &Demo, prompt: &str) {
    demo.answer(prompt);
    for model in [Model::Vanilla, Model::Cc] {
        let expected = tokens_of_the_trainer(model, prompt, &[]);
        assert!(!expected.is_empty(), "the trainer answers `{prompt}`");
        assert_eq!(demo.tokens(model), expected, "{model:?}: {prompt}");
        println!(
            "measured: {model:?} on {}: {}",
            if demo.is_on_webgpu() { "WebGPU" } else { "the CPU" },
            demo.speed(model)
        );
    }
}
