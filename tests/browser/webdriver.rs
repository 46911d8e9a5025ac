//! Drives a real browser through the W3C WebDriver protocol: starts driver and browser, runs scripts, types, clicks,
//! takes pictures. It knows browsers, not our page. Whatever goes wrong ends the test with a sentence.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xtask::steps::find_program;
use xtask::suite;

/// Mesa's Vulkan on the CPU, which gives Firefox a WebGPU adapter on a machine without a graphics card.
const LAVAPIPE: &str = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json";
/// For Chromium: an adapter on a machine without a graphics card (SwiftShader).
pub const WITH_WEBGPU: &[&str] = &["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
/// For Chromium: `navigator.gpu` is there and offers no adapter.
pub const WITHOUT_WEBGPU: &[&str] = &["--disable-gpu"];

/// One browser window; dropping it ends browser and driver.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    /// Chromium's own process, by its driver's account.
    process: Option<u64>,
}

impl Browser {
    /// A Chromium without a visible window.
    pub fn chromium(flags: &[&str]) -> Browser {
        let mut all = vec![
            "--headless=new",
            // As root, which continuous integration often is, Chromium's sandbox does not start.
            "--no-sandbox",
            // A container's shared memory is smaller than a page with its weights.
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            // Of its own, Chromium talks to hosts that have nothing to do with the page.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-quic",
            "--no-first-run",
            "--disable-features=OptimizationHints,MediaRouter",
        ];
        all.extend(flags);
        let binary = suite::chromium().expect("Chromium is installed; `cargo xtask test` does it");
        let options = json!({ "binary": binary, "args": all });
        let capabilities = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        Browser::start("chromedriver", |port| vec![format!("--port={port}")], &capabilities)
    }

    /// A Firefox without a visible window, with WebGPU.
    pub fn firefox() -> Browser {
        let binary = suite::firefox().expect("Firefox is installed; `cargo xtask test` does it");
        let preferences = json!({
            "dom.webgpu.enabled": true,
            "dom.webgpu.workers.enabled": true,
            "gfx.webgpu.ignore-blocklist": true,
        });
        let options = json!({ "binary": binary, "args": ["-headless"], "prefs": preferences });
        Browser::start(
            "geckodriver",
            |port| vec!["--port".into(), port.to_string(), "--log".into(), "error".into()],
            &json!({ "moz:firefoxOptions": options }),
        )
    }

    fn start(program: &str, arguments: impl Fn(u16) -> Vec<String>, capabilities: &Value) -> Browser {
        let path =
            find_program(&[program]).unwrap_or_else(|| panic!("{program} is installed; `cargo xtask test` does it"));
        let port = free_port();
        let mut command = Command::new(path);
        command.args(arguments(port)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if Path::new(LAVAPIPE).exists() {
            command.env("VK_DRIVER_FILES", LAVAPIPE);
        }
        let driver = command.spawn().unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(300)));
        let mut browser = Browser {
            driver,
            agent: config.build().into(),
            session: format!("http://127.0.0.1:{port}"),
            process: None,
        };
        let start = Instant::now();
        while browser.request("GET", "/status", None).is_err() {
            assert!(start.elapsed().as_secs() < 30, "{program} did not answer on port {port} for 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        let capabilities = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let answer = browser.call("POST", "/session", Some(capabilities));
        let id = answer["sessionId"].as_str().unwrap_or_else(|| panic!("{program} opened no session: {answer}"));
        browser.session = format!("{}/session/{id}", browser.session);
        browser.process = answer["capabilities"]["goog:processID"].as_u64();
        browser
    }

    /// Loads this address and waits for its document.
    pub fn open(&self, address: &str) {
        self.call("POST", "/url", Some(json!({ "url": address })));
    }

    /// Runs the body of a JavaScript function in the page; a promise it returns is waited for.
    pub fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", Some(json!({ "script": script, "args": [] })))
    }

    /// Asks again and again until the JavaScript expression is true, and returns its value.
    pub fn wait_for(&self, expectation: &str, expression: &str, seconds: u64) -> Value {
        let script = format!("return ({expression})");
        let start = Instant::now();
        loop {
            let value = self.run(&script);
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if start.elapsed().as_secs() >= seconds {
                let page = self.run("return document.body ? document.body.innerText : ''");
                panic!(
                    "waited {seconds} s in vain: {expectation}\nthe page shows: {page}\nits console: {:#?}",
                    self.console()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Types into the element that the CSS selector names, as a keyboard does.
    pub fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.call("POST", &format!("/element/{element}/clear"), Some(json!({})));
        self.call("POST", &format!("/element/{element}/value"), Some(json!({ "text": text })));
    }

    /// Clicks the element that the CSS selector names.
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.call("POST", &format!("/element/{element}/click"), Some(json!({})));
    }

    /// Ends Chromium as a power cut does: no program is asked to clean up.
    pub fn kill(self) {
        let process = self.process.expect("Chromium's driver names its process");
        let killed = Command::new("kill").args(["-9", &process.to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()), "process {process} can be killed");
    }

    /// Gives files or folders to an `<input type=file>`.
    pub fn choose(&self, selector: &str, paths: &[PathBuf]) {
        self.cdp("DOM.enable", json!({}));
        let document = self.cdp("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
        let node = self.cdp("DOM.querySelector", json!({ "nodeId": document, "selector": selector }))["nodeId"].clone();
        self.cdp("DOM.setFileInputFiles", json!({ "nodeId": node, "files": paths }));
    }

    /// Drags files or folders from outside the browser over the page; `drop` lets them go there.
    pub fn drag(&self, paths: &[PathBuf], kinds: &[&str]) {
        let data = json!({ "items": [], "files": paths, "dragOperationsMask": 1 });
        for kind in kinds {
            self.cdp("Input.dispatchDragEvent", json!({ "type": kind, "x": 200, "y": 200, "data": data }));
        }
    }

    /// A command of Chromium's own protocol.
    pub fn cdp(&self, command: &str, parameters: Value) -> Value {
        self.call("POST", "/goog/cdp/execute", Some(json!({ "cmd": command, "params": parameters })))
    }

    /// What the page wrote to the console since the last call; only Chromium's driver tells.
    pub fn console(&self) -> Vec<String> {
        match self.request("POST", "/se/log", Some(json!({ "type": "browser" }))) {
            Ok(Value::Array(lines)) => {
                lines.iter().filter_map(|line| Some(line["message"].as_str()?.to_owned())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives the page a screen of this size, smaller than any window may be; Chromium only.
    pub fn screen(&self, width: u32, height: u32, mobile: bool) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.cdp("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Takes a picture of what is visible into a PNG file.
    pub fn screenshot(&self, file: &Path) {
        let image = self.call("GET", "/screenshot", None);
        let text = image.as_str().expect("a screenshot arrives as text");
        let bytes = BASE64_STANDARD.decode(text).expect("WebDriver sends pictures in base64");
        std::fs::create_dir_all(file.parent().expect("a screenshot goes into a folder"))
            .expect("its folder can be made");
        std::fs::write(file, bytes).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    }

    fn element(&self, selector: &str) -> String {
        let query = json!({ "using": "css selector", "value": selector });
        let found = self.call("POST", "/element", Some(query));
        let id = found.as_object().and_then(|object| object.values().next()?.as_str());
        id.unwrap_or_else(|| panic!("the driver names no element for `{selector}`: {found}")).to_owned()
    }

    fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        self.request(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn request(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, String> {
        let address = format!("{}{path}", self.session);
        let answer = match (method, body) {
            ("POST", body) => self.agent.post(&address).send_json(body.unwrap_or_else(|| json!({}))),
            ("DELETE", _) => self.agent.delete(&address).call(),
            _ => self.agent.get(&address).call(),
        };
        let mut answer = answer.map_err(|error| error.to_string())?;
        let ok = answer.status().is_success();
        let mut body: Value =
            answer.body_mut().with_config().limit(64 << 20).read_json().map_err(|error| error.to_string())?;
        let value = body["value"].take();
        if ok { Ok(value) } else { Err(format!("{}: {}", value["error"], value["message"])) }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; the driver alone would leave it behind. It may have died already, which is as good.
        let _ = self.request("DELETE", "", None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    listener.local_addr().expect("a bound port has a number").port()
}
