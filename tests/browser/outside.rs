//! The rest of the world, as a browser sees it in a test: a proxy that lets nothing through and remembers who was asked for.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// Every host but 127.0.0.1, for a browser that was started with [`Outside::flag`].
pub struct Outside {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    /// Starts listening; the thread ends with the test program.
    pub fn listen() -> Outside {
        let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
        let port = listener.local_addr().expect("a bound port has a number").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut line = String::new();
                if BufReader::new(stream).read_line(&mut line).is_ok() && !line.is_empty() {
                    seen.lock().expect("no test panics while it holds the list").push(line.trim().to_owned());
                }
            }
        });
        Outside { port, asked }
    }

    /// The Chromium flag that sends all that is not for 127.0.0.1 here.
    pub fn flag(&self) -> String {
        format!("--proxy-server=http://127.0.0.1:{}", self.port)
    }

    /// The first lines of the requests that arrived, without the browser's own calls home.
    pub fn requests_of_the_page(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("no test panics while it holds the list");
        asked.iter().filter(|line| !is_call_home(line)).cloned().collect()
    }
}

/// What Chromium asks of its maker whatever page is open. Fonts are what a page asks there.
fn is_call_home(request: &str) -> bool {
    let makers = ["google.com", "googleapis.com", "gvt1.com"];
    makers.iter().any(|host| request.contains(host)) && !request.contains("fonts.")
}
