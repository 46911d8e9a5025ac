//! Proves that the results this repository shows are those of the cells beside them, and that those are cells of this tree:
//! of its recipe, corpus and base.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use trainer::corpus;
use trainer::experiment::matrix::Profile;
use trainer::experiment::plan::{PLAN_FILE, Plan};
use trainer::experiment::report::{self, RESULTS_FILE};
use trainer::inputs::CORPUS_SEED;
use trainer::recipe::Recipe;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/results")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|fault| panic!("{}: {fault}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_shipped_results_say_what_their_cells_say() {
    let (out, shipped) = (tempfile::tempdir().unwrap(), shipped());
    let out = out.path();
    fs::create_dir(out.join("cells")).unwrap();
    fs::copy(shipped.join(PLAN_FILE), out.join(PLAN_FILE)).unwrap();
    for name in names(&shipped.join("cells")) {
        fs::copy(shipped.join("cells").join(&name), out.join("cells").join(&name)).unwrap();
    }
    report::write(out).unwrap();
    assert_eq!(names(&out.join("figures")), names(&shipped.join("figures")));
    let figures = names(&out.join("figures")).into_iter().map(|name| format!("figures/{name}"));
    for name in figures.chain([RESULTS_FILE.to_string()]) {
        let [written, kept] = [out, &shipped].map(|folder| fs::read_to_string(folder.join(&name)).unwrap());
        assert!(
            written == kept,
            "{name}: `trainer experiment report --profile full --out assets/results` writes it anew"
        );
    }
}

#[test]
fn the_shipped_cells_are_of_this_recipe_corpus_and_base() {
    let kept = Plan::read(&shipped()).unwrap();
    let corpus = corpus::generate(CORPUS_SEED).unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/base");
    let recipe = Recipe::default().with(&[]).unwrap();
    let plan = Plan::new(Profile::Full, kept.command.clone(), &recipe, &corpus, &base).unwrap();
    assert_eq!(plan, kept, "`trainer experiment --profile full --out assets/results` measures what has changed");
}
