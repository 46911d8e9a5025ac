//! The two set-up commands, as parts: what they install, how the page is built and served, how the tests are run.
//! Nothing here knows the method, the model or the page's inside.

pub mod packages;
pub mod page;
pub mod site;
pub mod steps;
pub mod suite;

/// What `cargo xtask` prints when it is called without a command it knows.
pub const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [--bundle DIR] [--port N] [--no-open]
        make what is missing, build the page, serve it on 127.0.0.1 and open it
  test  make what is missing, run every test, those in real browsers included
";
