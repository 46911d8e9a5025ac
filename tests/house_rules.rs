//! Proves that the house keeps its own rules: what the web build leaves out, who imports whom, what files are called,
//! and that the README names only commands that exist.

use std::path::{Path, PathBuf};
use xtask::steps::{command, output_of, root};

#[test]
fn the_web_build_has_neither_autotune_nor_fusion() {
    let tree = output_of(command("cargo").args(["tree", "--locked", "--package", "web"]).args([
        "--target",
        "wasm32-unknown-unknown",
        "--edges",
        "normal,features",
        "--prefix",
        "none",
    ]))
    .expect("`cargo tree` lists the crates of the web build");
    assert!(tree.contains("burn feature \"webgpu\""), "the tree does not list features the way this test reads them");
    let forbidden = |line: &&str| {
        ["\"autotune\"", "\"fusion\"", "burn-fusion ", "cubecl-fusion "].iter().any(|name| line.contains(name))
    };
    let found: Vec<&str> = tree.lines().filter(forbidden).collect();
    assert!(found.is_empty(), "autotune and fusion break WebGPU in browsers; the web build has {found:#?}");
}

#[test]
fn a_file_of_core_imports_only_from_files_declared_above_it() {
    let folder = root().join("core/src");
    let lib = read(&folder.join("lib.rs"));
    let modules: Vec<String> = code_lines(&lib).filter_map(declared_module).collect();
    assert!(modules.len() > 5, "core/src/lib.rs declares its files as `mod` lines, found {modules:?}");
    for (position, module) in modules.iter().enumerate() {
        let text = read(&folder.join(format!("{module}.rs")));
        let code: String = code_lines(&text).flat_map(|line| [line, "\n"]).collect();
        for name in names_after("crate::", &code).into_iter().chain(names_after("super::", &code)) {
            let Some(home) = home_of(&name, &modules, &lib) else {
                continue;
            };
            assert!(
                home <= position,
                "core/src/{module}.rs imports `{name}` from core/src/{}.rs, which lib.rs declares below it",
                modules[home]
            );
        }
    }
}

#[test]
fn imports_are_found_alone_and_in_lists() {
    let code = "use crate::{error::{Error, Result}, model::CcModel};\nlet x = crate::rope::Rope::new();";
    assert_eq!(names_after("crate::", code), ["error", "model", "rope"]);
}

#[test]
fn no_file_is_named_after_nothing() {
    let mut files = Vec::new();
    for folder in ["core", "trainer", "web", "xtask", "tests"] {
        collect_files(&root().join(folder), &mut files);
    }
    assert!(files.len() > 10, "the source folders were not found below {}", root().display());
    let empty_names = ["util", "utils", "common", "helper", "helpers", "misc", "shared"];
    let is_empty_name = |file: &&PathBuf| file.components().any(|part| empty_names.contains(&stem(part.as_os_str())));
    let found: Vec<&PathBuf> = files.iter().filter(is_empty_name).collect();
    assert!(found.is_empty(), "a name says what lives there: {found:#?}");
}

#[test]
fn the_readme_names_only_set_up_commands_that_exist() {
    let readme = read(&root().join("README.md"));
    let known: Vec<&str> = xtask::USAGE.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let named = names_after("cargo xtask ", &readme);
    assert!(!named.is_empty(), "the README tells how to start: `cargo xtask demo`");
    for name in named {
        assert!(known.contains(&name.as_str()), "the README names `cargo xtask {name}`; there are {known:?}");
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The lines before the file's own tests, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let before_tests = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    before_tests.map(|line| line.split("//").next().unwrap_or_default())
}

fn declared_module(line: &str) -> Option<String> {
    let line = line.trim().strip_prefix("pub ").unwrap_or(line.trim());
    Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
}

/// The file that `name` comes from: it is one, or `lib.rs` passes it on from one.
fn home_of(name: &str, modules: &[String], lib: &str) -> Option<usize> {
    let by_name = modules.iter().position(|module| module == name);
    by_name.or_else(|| {
        modules.iter().position(|module| {
            let import = format!("use {module}::");
            let passed_on = lib.split(&import).skip(1).filter_map(|rest| rest.split(';').next());
            passed_on.flat_map(|list| list.split(|c: char| !is_name(c))).any(|item| item == name)
        })
    })
}

/// The first name after each `prefix`, and of each member when a `{...}` list follows it.
fn names_after(prefix: &str, code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in code.split(prefix).skip(1) {
        if !rest.starts_with('{') {
            names.extend(first_name(rest));
            continue;
        }
        let mut depth = 0;
        for (at, character) in rest.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && matches!(character, '{' | ',') {
                names.extend(first_name(&rest[at + 1..]));
            }
        }
    }
    names
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| is_name(*c)).collect();
    (!name.is_empty()).then_some(name)
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_files(&path, files);
        } else if let Ok(relative) = path.strip_prefix(root()) {
            files.push(relative.to_owned());
        }
    }
}

fn stem(name: &std::ffi::OsStr) -> &str {
    name.to_str().and_then(|name| name.split('.').next()).unwrap_or_default()
}
