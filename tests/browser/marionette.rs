//! Firefox's own remote control, which geckodriver only passes on: JSON behind its length, over TCP
//! (Firefox source docs, "Marionette protocol"). Debian packages no geckodriver, and building it takes minutes.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running Firefox; dropping it ends it.
pub struct Marionette {
    firefox: Child,
    stream: BufReader<TcpStream>,
    commands: u64,
    _profile: TempDir,
}

impl Marionette {
    /// Starts this Firefox without a window, in a profile of its own with these preferences.
    pub fn start(mut firefox: Command, preferences: &[(&str, Value)]) -> Marionette {
        let profile = tempfile::tempdir().expect("a profile folder can be made");
        // Port 0 is any free one; Firefox writes its number into the profile.
        let all = preferences.iter().cloned().chain([("marionette.port", json!(0))]);
        let all: String = all.map(|(name, value)| format!("user_pref(\"{name}\", {value});\n")).collect();
        std::fs::write(profile.path().join("user.js"), all).expect("the preferences can be written");
        firefox.args(["--headless", "--marionette", "--no-remote", "--profile"]).arg(profile.path());
        firefox.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut firefox = firefox.spawn().expect("Firefox starts");
        let start = Instant::now();
        let stream = loop {
            if let Some(stream) = connect(profile.path()) {
                break stream;
            }
            let ended = firefox.try_wait().expect("a child's state is known");
            assert!(ended.is_none(), "Firefox ended with {ended:?}");
            assert!(start.elapsed().as_secs() < 60, "Firefox opened no port for 60 s");
            std::thread::sleep(Duration::from_millis(100));
        };
        stream.set_read_timeout(Some(Duration::from_secs(300))).expect("a time limit can be set");
        let mut marionette = Marionette { firefox, stream: BufReader::new(stream), commands: 0, _profile: profile };
        let hello = marionette.receive().expect("Firefox says which protocol it speaks");
        assert_eq!(hello["marionetteProtocol"], 3, "{hello}");
        marionette.call("WebDriver:NewSession", &json!({})).unwrap_or_else(|error| panic!("no session: {error}"));
        marionette
    }

    /// Sends a command, such as `WebDriver:Navigate`, and waits for its result.
    pub fn call(&mut self, command: &str, parameters: &Value) -> Result<Value, String> {
        self.commands += 1;
        let message = json!([0, self.commands, command, parameters]).to_string();
        let sent = write!(self.stream.get_mut(), "{}:{message}", message.len());
        sent.map_err(|error| error.to_string())?;
        // `[1, number, error, result]`; what is asked one by one is answered in order.
        let mut answer = self.receive().map_err(|error| error.to_string())?;
        let error = &answer[2];
        if error.is_null() { Ok(answer[3].take()) } else { Err(format!("{}: {}", error["error"], error["message"])) }
    }

    fn receive(&mut self) -> std::io::Result<Value> {
        let mut length = Vec::new();
        self.stream.read_until(b':', &mut length)?;
        let length = std::str::from_utf8(&length).ok().and_then(|text| text.strip_suffix(':')?.parse().ok());
        let mut message = vec![0; length.ok_or(std::io::ErrorKind::InvalidData)?];
        self.stream.read_exact(&mut message)?;
        Ok(serde_json::from_slice(&message)?)
    }
}

impl Drop for Marionette {
    fn drop(&mut self) {
        // Asked, it ends its content processes with it; if it is past hearing, it is ended.
        if self.call("Marionette:Quit", &json!({ "flags": ["eForceQuit"] })).is_err() {
            let _ = self.firefox.kill();
        }
        let _ = self.firefox.wait();
    }
}

fn connect(profile: &Path) -> Option<TcpStream> {
    let port = std::fs::read_to_string(profile.join("MarionetteActivePort")).ok()?;
    TcpStream::connect(("127.0.0.1", port.trim().parse().ok()?)).ok()
}
