//! Drives a real browser through the W3C WebDriver protocol: starts driver and browser, runs scripts, types, clicks,
//! takes pictures. It knows browsers, not our page. Whatever goes wrong ends the test with a sentence.

use crate::marionette::Marionette;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use std::cell::RefCell;
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
    driver: Driver,
}

enum Driver {
    Chromium(Chromedriver),
    Firefox(RefCell<Marionette>),
}

/// Speaks WebDriver on one side and Chromium's own protocol on the other.
struct Chromedriver {
    program: Child,
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
        let driver = Chromedriver::start(&capabilities);
        Browser { driver: Driver::Chromium(driver) }
    }

    /// A Firefox without a visible window, with WebGPU. It opens addresses and runs scripts.
    pub fn firefox() -> Browser {
        let binary = suite::firefox().expect("Firefox is installed; `cargo xtask test` does it");
        let preferences = [
            ("dom.webgpu.enabled", json!(true)),
            ("dom.webgpu.workers.enabled", json!(true)),
            ("gfx.webgpu.ignore-blocklist", json!(true)),
        ];
        let driver = Marionette::start(with_a_graphics_card(Command::new(binary)), &preferences);
        Browser { driver: Driver::Firefox(RefCell::new(driver)) }
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
        let process = match &self.driver {
            Driver::Chromium(driver) => driver.process.expect("Chromium's driver names its process"),
            Driver::Firefox(_) => panic!("only Chromium is killed"),
        };
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
        match &self.driver {
            Driver::Chromium(driver) => driver.request(method, path, body),
            Driver::Firefox(driver) => {
                let command = match path {
                    "/url" => "WebDriver:Navigate",
                    "/execute/sync" => "WebDriver:ExecuteScript",
                    _ => return Err("no test asks this of Firefox yet".into()),
                };
                let answer = driver.borrow_mut().call(command, &body.unwrap_or_default());
                answer.map(|mut answer| answer["value"].take())
            }
        }
    }
}

impl Chromedriver {
    fn start(capabilities: &Value) -> Chromedriver {
        let path = find_program(&["chromedriver"]).expect("chromedriver is installed; `cargo xtask test` does it");
        let port = free_port();
        let mut command = with_a_graphics_card(Command::new(path));
        command.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let program = command.spawn().unwrap_or_else(|error| panic!("cannot start chromedriver: {error}"));
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(300)));
        let mut driver = Chromedriver {
            program,
            agent: config.build().into(),
            session: format!("http://127.0.0.1:{port}"),
            process: None,
        };
        let start = Instant::now();
        while driver.request("GET", "/status", None).is_err() {
            assert!(start.elapsed().as_secs() < 30, "chromedriver did not answer on port {port} for 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        let capabilities = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let answer = driver.request("POST", "/session", Some(capabilities));
        let answer = answer.unwrap_or_else(|error| panic!("chromedriver opened no session: {error}"));
        let id = answer["sessionId"].as_str().unwrap_or_else(|| panic!("chromedriver opened no session: {answer}"));
        driver.session = format!("{}/session/{id}", driver.session);
        driver.process = answer["capabilities"]["goog:processID"].as_u64();
        driver
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

impl Drop for Chromedriver {
    fn drop(&mut self) {
        // Ends the browser; the driver alone would leave it behind. It may have died already, which is as good.
        let _ = self.request("DELETE", "", None);
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// On a machine without one, Mesa's on the CPU.
fn with_a_graphics_card(mut browser: Command) -> Command {
    if Path::new(LAVAPIPE).exists() {
        browser.env("VK_DRIVER_FILES", LAVAPIPE);
    }
    browser
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    listener.local_addr().expect("a bound port has a number").port()
}
