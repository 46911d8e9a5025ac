//! Proves that a bundle's files are fetched once, survive a kill, are repaired when they are wrong, and may as well come from
//! another address or a visitor's folder.

use crate::demo::{Demo, biggest_file, bundle, bundle_with, hash_of, manifest, serve};
use crate::webdriver::{Browser, WITHOUT_WEBGPU};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use xtask::site::{Asked, Fault};
use xtask::steps::target_dir;

/// The whole list, in the order in which it runs.
pub const TESTS: [(&str, fn()); 12] = [
    ("a second visit takes every file from the store", a_second_visit),
    ("a load that was killed goes on where it ended", a_killed_load),
    ("a load that was stopped goes on where it ended", a_stopped_load),
    ("a line that breaks again and again brings every byte once", a_line_that_breaks),
    ("a file that rots in the store is fetched again, and no other", a_rotten_file),
    ("files that the bundle no longer names leave the store", old_files_leave),
    ("without a store the page works and says so", without_a_store),
    ("a full store keeps what it can, and the page works and says so", a_full_store),
    ("a bundle may lie at another address that allows it", another_address),
    ("a folder that is chosen is opened from the visitor's disk", a_chosen_folder),
    ("a folder that is dropped is opened from the visitor's disk", a_dropped_folder),
    ("a folder that is no whole bundle is refused in words", broken_folders),
];

/// Bytes a second of each file on a slow line.
const SLOW: u32 = 300_000;

/// A page on the CPU, whose self-test takes little time; not yet opened.
fn unopened(flags: &[&str]) -> Demo {
    Demo { site: serve(), browser: Browser::chromium(&[WITHOUT_WEBGPU, flags].concat()) }
}

fn total() -> u64 {
    manifest()["files"].as_array().into_iter().flatten().filter_map(|file| file["bytes"].as_u64()).sum()
}

/// What was asked of the bundle's folder besides the manifest.
fn asked_of_the_bundle(demo: &Demo) -> Vec<Asked> {
    let asked = demo.site.asked();
    asked
        .into_iter()
        .filter(|asked| asked.path.starts_with("bundle/") && !asked.path.ends_with("manifest.json"))
        .collect()
}

fn a_second_visit() {
    let demo = unopened(&[]);
    demo.load("");
    demo.wait_until_ready();
    let count = manifest()["files"].as_array().map_or(0, Vec::len);
    assert_eq!(asked_of_the_bundle(&demo).len(), count, "the first visit fetches each file once");
    assert_eq!((demo.files("kept"), demo.files("fetched")), (0, total()));
    demo.load("");
    demo.wait_until_ready();
    assert_eq!(asked_of_the_bundle(&demo), [], "the second visit needs no network");
    assert_eq!((demo.files("kept"), demo.files("fetched"), demo.files("repaired")), (total(), 0, 0));
}

fn a_killed_load() {
    let profile = target_dir().join("tmp/browser-that-is-killed");
    // What an earlier run left there would be found instead.
    let _ = fs::remove_dir_all(&profile);
    let flag = format!("--user-data-dir={}", profile.display());
    let first = unopened(&[&flag]);
    first.site.break_with(Fault::Slow("bundle/".into(), SLOW));
    first.load("");
    let begun = format!("Number(document.querySelector('#files')?.dataset.fetched) > {}", total() / 3);
    first.browser.wait_for("a third has been fetched", &begun, 120);
    let before = first.files("fetched");
    let Demo { site, browser } = first;
    browser.kill();
    site.mend();
    site.asked();
    let second = Demo { site, browser: Browser::chromium(&[WITHOUT_WEBGPU, &[&flag]].concat()) };
    second.load("");
    second.wait_until_ready();
    let asked = asked_of_the_bundle(&second);
    assert!(asked.iter().any(|asked| asked.from > 0), "no file was continued: {asked:?}");
    let (kept, fetched) = (second.files("kept"), second.files("fetched"));
    assert!(kept >= before, "{before} bytes had arrived, only {kept} of them were used");
    assert_eq!(kept + fetched, total(), "nothing was fetched twice");
}

fn a_stopped_load() {
    let demo = unopened(&[]);
    demo.site.break_with(Fault::Slow("bundle/".into(), SLOW));
    demo.load("");
    let begun = format!("Number(document.querySelector('#files')?.dataset.fetched) > {}", total() / 4);
    demo.browser.wait_for("a quarter has been fetched", &begun, 120);
    let before = demo.files("fetched");
    demo.browser.click("#stop-loading");
    let said = demo.wait_for_error();
    assert!(said.contains("Loading was stopped"), "{said}");
    let focused = demo.browser.run("return document.activeElement.tagName");
    assert_eq!(focused, "MAIN", "the button that went away has not taken the focus with it");
    demo.site.mend();
    demo.browser.click("#restart");
    demo.wait_until_ready();
    let (kept, fetched) = (demo.files("kept"), demo.files("fetched"));
    assert!(kept >= before, "{before} bytes had arrived, only {kept} of them were used");
    assert_eq!(kept + fetched, total(), "nothing was fetched twice");
}

fn a_line_that_breaks() {
    let demo = unopened(&[]);
    let shard = biggest_file();
    let size = fs::metadata(bundle().join(&shard)).expect("the shard is there").len() as usize;
    // More often than a file is tried that gets no further.
    demo.site.break_with(Fault::Cut("bundle/".into(), size / 6));
    demo.load("");
    demo.wait_until_ready();
    assert_eq!((demo.files("kept"), demo.files("fetched")), (0, total()));
    let begins: Vec<u64> = asked_of_the_bundle(&demo)
        .iter()
        .filter(|asked| asked.path.ends_with(&shard))
        .map(|asked| asked.from)
        .collect();
    assert!(begins.len() >= 6 && begins.is_sorted_by(|a, b| a < b), "{begins:?}");
}

fn a_rotten_file() {
    let demo = unopened(&[]);
    demo.load("");
    demo.wait_until_ready();
    demo.site.asked();
    let shard = biggest_file();
    demo.browser.run(&format!(
        "return navigator.storage.getDirectory()
             .then(root => root.getDirectoryHandle('bundle-files'))
             .then(folder => folder.getFileHandle('{}'))
             .then(file => file.createWritable({{ keepExistingData: true }}))
             .then(async file => {{
                 await file.write({{ type: 'write', position: 1000, data: new Uint8Array([1, 2, 3, 4]) }});
                 await file.close();
             }})",
        hash_of(&shard)
    ));
    demo.load("");
    demo.wait_until_ready();
    let expected = Asked { path: format!("bundle/{shard}"), from: 0 };
    assert_eq!(asked_of_the_bundle(&demo), [expected]);
    assert_eq!(demo.files("repaired"), 1);
    demo.load("");
    demo.wait_until_ready();
    assert_eq!(demo.files("repaired"), 0, "the repair lasts");
}

fn old_files_leave() {
    let demo = unopened(&[]);
    demo.load("");
    demo.wait_until_ready();
    let former = demo.stored();
    let mut examples = fs::read(bundle().join("examples.json")).expect("the bundle has examples");
    examples.push(b'\n');
    demo.site.break_with(Fault::Replaced(bundle_with("examples.json", examples)));
    demo.site.asked();
    demo.load("");
    demo.wait_until_ready();
    let asked: Vec<String> = asked_of_the_bundle(&demo).into_iter().map(|asked| asked.path).collect();
    assert_eq!(asked, ["bundle/examples.json"]);
    let now = demo.stored();
    let gone: Vec<&String> = former.difference(&now).collect();
    assert_eq!(gone, [&hash_of("examples.json")]);
    assert_eq!(now.len(), former.len(), "the new file took the old one's place");
}

fn without_a_store() {
    let demo = unopened(&[]);
    let start = "import init from './worker.js'; delete StorageManager.prototype.getDirectory; await init();";
    demo.site.break_with(Fault::Replaced(BTreeMap::from([("start_worker.js".into(), start.into())])));
    demo.load("");
    demo.wait_until_ready();
    assert_eq!((demo.files("kept"), demo.files("fetched")), (0, total()));
    assert!(not_kept(&demo).contains("keeps no files"), "{}", not_kept(&demo));
}

fn a_full_store() {
    let demo = unopened(&[]);
    let quota = serde_json::json!({ "origin": demo.site.address(), "quotaSize": total() / 2 });
    demo.browser.cdp("Storage.overrideQuotaForOrigin", quota);
    demo.load("");
    demo.wait_until_ready();
    assert!(not_kept(&demo).contains("no more space"), "{}", not_kept(&demo));
    assert!(!demo.stored().is_empty(), "the files that fit are kept");
}

fn not_kept(demo: &Demo) -> String {
    demo.visible_text("#not-kept").unwrap_or_default()
}

fn another_address() {
    let (demo, other) = (unopened(&[]), serve());
    let query = format!("?bundle={}bundle", other.address());
    demo.load(&query);
    let error = demo.wait_for_error();
    assert!(error.contains(other.address()) && error.contains("CORS"), "{error}");
    other.make_public();
    demo.load(&query);
    demo.wait_until_ready();
    assert_eq!(asked_of_the_bundle(&demo), []);
    let models = demo.visible_text("#models").unwrap_or_default();
    assert!(models.contains(other.address()), "{models}");
    // Whoever was sent to an address that fails is not held there.
    demo.load(&format!("{query}/nowhere"));
    demo.wait_for_error();
    demo.browser.click("#own-models");
    demo.wait_until_ready();
    demo.load("?bundle=file:///etc/");
    let error = demo.wait_for_error();
    assert!(error.contains("https://"), "{error}");
    demo.wait_for_the_phase("ready");
}

fn a_chosen_folder() {
    let demo = unopened(&[]);
    demo.load("");
    demo.browser.wait_for("the page is drawn", "document.querySelector('#folder') !== null", 30);
    demo.browser.choose("#folder", &[bundle()]);
    comes_from_the_folder(&demo);
    // And back to what the page shows of itself.
    demo.browser.click("#own-models");
    demo.browser.wait_for("the folder is left", "!document.querySelector('#own-models')", 10);
    demo.wait_until_ready();
    assert!(demo.files("total") > 0);
}

fn a_dropped_folder() {
    let demo = unopened(&[]);
    demo.load("");
    demo.browser.wait_for("the page is drawn", "document.querySelector('#folder') !== null", 30);
    demo.browser.drag(&[bundle()], &["dragEnter", "dragOver"]);
    let invites = "getComputedStyle(document.querySelector('.drop')).display !== 'none'";
    demo.browser.wait_for("the page invites to drop", invites, 10);
    demo.browser.drag(&[bundle()], &["drop"]);
    comes_from_the_folder(&demo);
}

fn comes_from_the_folder(demo: &Demo) {
    let named = "document.querySelector('#models').innerText.includes('“\u{2068}bundle\u{2069}”')";
    demo.browser.wait_for("the page names the folder", named, 30);
    demo.site.asked();
    demo.wait_until_ready();
    assert_eq!(asked_of_the_bundle(demo), [], "a folder needs no network");
    assert_eq!((demo.files("kept"), demo.files("fetched")), (total(), 0));
}

fn broken_folders() {
    let demo = unopened(&[]);
    demo.load("");
    demo.wait_until_ready();
    let shard = biggest_file();
    let folder = |name: &str, break_it: &dyn Fn(&PathBuf)| {
        let folder = target_dir().join("tmp/broken-bundles").join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder can be made");
        for file in fs::read_dir(bundle()).expect("the bundle is a folder").flatten() {
            fs::copy(file.path(), folder.join(file.file_name())).expect("a file can be copied");
        }
        break_it(&folder);
        folder
    };
    let photos = folder("no-manifest", &|folder| fs::remove_file(folder.join("manifest.json")).unwrap());
    demo.browser.choose("#folder", &[photos]);
    let error = demo.wait_for_error();
    assert!(error.contains("no web bundle") && error.contains("“\u{2068}no-manifest\u{2069}”"), "{error}");
    demo.wait_for_the_phase("ready");
    let cases: [(PathBuf, &[&str]); 3] = [
        (
            folder("other-format", &|folder| {
                let mut manifest = manifest();
                manifest["format"] = "cctuning-bundle/77".into();
                fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
            }),
            &["cctuning-bundle/77"],
        ),
        (folder("no-shard", &|folder| fs::remove_file(folder.join(&shard)).unwrap()), &["no-shard", &shard]),
        (
            folder("wrong-shard", &|folder| {
                let mut bytes = fs::read(folder.join(&shard)).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(folder.join(&shard), bytes).unwrap();
            }),
            &[&shard, "sha256"],
        ),
    ];
    for (folder, words) in cases {
        demo.browser.choose("#folder", &[folder]);
        for word in words {
            let expression = format!("document.querySelector('#failure')?.innerText.includes('{word}')");
            demo.browser.wait_for(&format!("the error says `{word}`"), &expression, 60);
        }
        demo.wait_for_the_phase("dead");
    }
    // A whole one mends it all.
    demo.browser.choose("#folder", &[bundle()]);
    comes_from_the_folder(&demo);
}
