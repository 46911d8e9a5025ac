//! Where real data lies that is not part of the repository: in `shared/` beside the workspace, or where `CCT_SHARED` points.

use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or folder in it, or `None` and a sentence that says what is left out.
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let place = std::env::var_os("CCT_SHARED").map_or_else(beside, PathBuf::from).join(path);
    if place.exists() {
        return Some(place);
    }
    // Written past the test harness, which hides what a passing test prints.
    writeln!(
        std::io::stderr(),
        "skipped: {} does not exist; point CCT_SHARED at the folder that holds it",
        place.display()
    )
    .expect("there is a standard error");
    None
}
