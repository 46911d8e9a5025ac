//! Proves that a recipe is read layer by layer, and that every fault in it names its place and its cure.

mod bounded;

use std::fs;
use std::path::PathBuf;

use cctuning::chat::AnchorRule;
use cctuning::connection::TwoPass;
use cctuning::decision_maker::Pool;
use cctuning::generate::{Choice, Stop};
use cctuning::model::InputEmbedding;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::precision::Precision;
use trainer::recipe::{Cc, Place, Preset, Recipe};

#[test]
fn an_empty_section_changes_nothing() {
    assert_eq!(load("[optim]\n[cc]\n", &[]).unwrap(), Recipe::default());
}

fn load(text: &str, overrides: &[&str]) -> anyhow::Result<Recipe> {
    load_over(Preset::Default, text, overrides)
}

fn load_over(preset: Preset, text: &str, overrides: &[&str]) -> anyhow::Result<Recipe> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("recipe.toml");
    std::fs::write(&file, text)?;
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Recipe::load(preset, Some(&file), &overrides)
}

#[track_caller]
fn assert_fault(text: &str, overrides: &[&str], parts: &[&str]) {
    let message = format!("{:#}", load(text, overrides).expect_err("the recipe must be refused"));
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

#[test]
fn without_a_file_the_recipe_is_the_default() {
    assert_eq!(Recipe::load(Preset::Default, None, &[]).unwrap(), Recipe::default());
}

#[test]
fn a_resolved_recipe_reads_back_as_itself_under_every_preset() {
    for preset in [Preset::Default, Preset::Reference, Preset::PaperHparams] {
        let recipe =
            load_over(preset, "[cc]\npool = 'fixed(3)'\n[run]\nout = 'somewhere'", &["optim.lr=3e-5"]).unwrap();
        assert_eq!(load(&recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
    }
}

#[test]
fn a_resolved_recipe_writes_every_value() {
    let text = Recipe::default().to_toml().unwrap();
    for key in [
        "max_steps = 0",
        "beta2 = 0.999",
        "eps = ",
        "weight_decay = 0.0",
        "english_grad = \"detach\"",
        "path = \"builtin\"",
        "holdout = ",
    ] {
        assert!(text.contains(key), "expected {key:?} in:\n{text}");
    }
}

#[test]
fn overrides_win_over_the_file_and_the_file_over_the_preset() {
    let recipe = load_over(Preset::PaperHparams, "[optim]\nepochs = 2\nlr = 2e-5", &["optim.lr=3e-5"]).unwrap();
    assert_eq!((recipe.optim.batch_size, recipe.optim.epochs, recipe.optim.lr), (16, 2, 3e-5));
    assert_eq!(recipe.data.cutoff, 1024);
}

#[test]
fn the_reference_preset_is_the_released_codes_arithmetic() {
    let cc = Recipe::load(Preset::Reference, None, &[]).unwrap().cc;
    assert_eq!((cc.anchor, cc.e, cc.selection), (AnchorRule::RoleToken, InputEmbedding::Anchor, Choice::Gumbel));
    assert_eq!((cc.two_pass, cc.stop), (TwoPass::Full, Stop::Config));
}

#[test]
fn the_papers_hyperparameters_are_those_of_its_full_fine_tuning() {
    let recipe = Recipe::load(Preset::PaperHparams, None, &[]).unwrap();
    let optim = recipe.optim;
    assert_eq!((optim.lr, optim.batch_size, optim.epochs, optim.warmup_ratio), (1e-5, 16, 3, 0.1));
    assert_eq!((optim.precision, optim.recompute, optim.max_steps), (Precision::Bf16, true, 0));
    assert_eq!((recipe.data.cutoff, recipe.data.english_cutoff), (1024, 1024));
}

#[test]
fn what_is_not_named_stays_as_a_model_was_trained() {
    let trained = Cc { e: InputEmbedding::Anchor, selection: Choice::Gumbel, seed: 7, ..Cc::default() };
    let start = Recipe { cc: Cc::around(&trained.connection()), ..Recipe::default() };
    let asked =
        |assignment: &str| Recipe::load_over(start.clone(), Preset::Default, None, &[assignment.into()]).unwrap();
    assert_eq!(asked("cc.alpha=0.5").cc, Cc { alpha: 0.5, ..trained.clone() });
    assert_eq!(asked("cc.e=content_mean").cc, Cc { e: InputEmbedding::ContentMean, ..trained });
}

#[test]
fn words_on_the_command_line_need_no_quotes() {
    let recipe =
        load("", &["data.train=rows.jsonl", "cc.pool=fixed(7)", "cc.skip_english=true", "cc.alpha=2"]).unwrap();
    assert_eq!(recipe.data.train, Place::Path(PathBuf::from("rows.jsonl")));
    assert_eq!((recipe.cc.pool, recipe.cc.skip_english, recipe.cc.alpha), (Pool::Fixed(7), true, 2.0));
}

#[test]
fn an_unknown_key_is_refused_at_its_line_and_column_with_a_suggestion() {
    assert_fault(
        "[optim]\nlr = 1e-4\n  warmup_ration = 0.1\n",
        &[],
        &["recipe.toml:3:3", "`optim.warmup_ration`", "did you mean `optim.warmup_ratio`?"],
    );
    assert_fault("[cc]\nlr = 1.0", &[], &["recipe.toml:2:1", "did you mean `optim.lr`?"]);
    assert_fault("", &["optim.learning=1"], &["--set optim.learning=1", "unknown key"]);
    assert_fault("lr = 1.0", &[], &["recipe.toml:1:1", "did you mean `optim.lr`?"]);
    assert_fault("[optimizer]\n", &[], &["recipe.toml:1:2", "`optimizer`"]);
    assert_fault("[optim.lr]\nx = 1\n", &[], &["recipe.toml:1:8", "`optim.lr`"]);
}

#[test]
fn a_wrong_type_or_range_says_key_expectation_finding_and_cure() {
    assert_fault(
        "[optim]\nlr = 'fast'",
        &[],
        &["recipe.toml:2:1", "`optim.lr`", "\"fast\"", "f64", "leave the key out for 0.002"],
    );
    assert_fault("[optim]\nlr = -1.0", &[], &["`optim.lr` = -1.0", "expected a number above 0"]);
    assert_fault("[optim]\nlr = nan", &[], &["expected a number above 0"]);
    assert_fault("[optim]\nbatch_size = 0", &[], &["expected at least 1"]);
    assert_fault("[data]\nseed = -1", &[], &["`data.seed`", "-1"]);
    assert_fault("[cc]\nanchor = 'first'", &[], &["`first`", "last_prompt", "role_token"]);
    assert_fault("[cc]\npool = 'fixed(x)'", &[], &["`fixed(LAYER)`", "`fixed(x)`"]);
    assert_fault("optim = 3", &[], &["recipe.toml:1:1", "`optim`"]);
    assert_fault("", &["optim.lr"], &["--set optim.lr", "section.key=value"]);
}

#[test]
fn all_faults_of_a_recipe_are_reported_at_once() {
    assert_fault(
        "[optim]\nlr = 0\nepoch = 1\n[cc]\ntau = 0.0",
        &["run.keep=0"],
        &["4 fault(s)", ":2:1", ":3:1", ":5:1", "--set run.keep=0"],
    );
}

#[test]
fn broken_toml_is_an_error_with_a_place_and_never_a_panic() {
    assert_fault("[optim]\nlr = = 1", &[], &["recipe.toml:2:"]);
    assert_fault("[optim]\nlr = 1.0\nlr = 2.0", &[], &["recipe.toml:3:1", "duplicate"]);
    assert_fault(&format!("[cc]\ntau = {}", "[".repeat(100_000)), &[], &["recipe.toml:2:"]);
    assert_fault("[optim]\n\u{fffd}\u{1f600} = 1", &[], &["recipe.toml:2:"]);
    assert!(Recipe::load(Preset::Default, Some("no/such/recipe.toml".as_ref()), &[]).is_err());
}

#[test]
fn ten_thousand_damaged_recipes_are_read_or_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("recipe.toml");
    let whole = Recipe::default().to_toml().unwrap().into_bytes();
    let words: [&[u8]; 8] = [b"[", b"]]", b" = ", b"nan", b"-1", b"1e999", b"99999999999999999999", b"'\n"];
    let (mut read, mut refused) = (0, 0);
    for seed in 0..10_000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..=3) {
            let at = rng.random_range(0..bytes.len());
            let to = (at + rng.random_range(0..40)).min(bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => drop(bytes.drain(at..to)),
                2 => drop(bytes.splice(at..to, words[rng.random_range(0..words.len())].iter().copied())),
                _ => {
                    let again = bytes[at..to].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        fs::write(&file, &bytes).unwrap();
        match Recipe::load(Preset::Default, Some(&file), &[]) {
            // What is accepted must say the same when it is written down and read again.
            Ok(recipe) => {
                fs::write(&file, recipe.to_toml().unwrap()).unwrap();
                assert_eq!(Recipe::load(Preset::Default, Some(&file), &[]).unwrap(), recipe, "seed {seed}");
                read += 1;
            }
            Err(error) => {
                assert!(format!("{error:#}").contains("recipe.toml"), "seed {seed}: {error:#}");
                refused += 1;
            }
        }
    }
    assert!(read > 100 && refused > 1000, "{read} read, {refused} refused: the damage is not what was meant");
}

#[test]
fn the_temperature_moves_on_a_straight_line_and_stays_without_an_end() {
    let cc = Cc { tau: 2.0, tau_end: 0.5, ..Cc::default() };
    let taus: Vec<f64> = [0, 5, 10].map(|at| cc.at(at, 11).tau).to_vec();
    assert_eq!(taus, [2.0, 1.25, 0.5]);
    assert_eq!(Cc { tau_end: 0.0, ..cc }.at(10, 11).tau, 2.0);
}

#[test]
fn named_columns_are_read_in_braces_and_under_a_header_and_written_out_again() {
    let folder = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::load(Preset::Default, Some(&path), &[])
    };
    let braces = load("[data]\nformat = 'alpaca'\nlang = 'sw'\ncolumns = { instruction = 'question' }\n").unwrap();
    assert_eq!(braces.data.columns.instruction.as_deref(), Some("question"));
    let header = "[data]\nformat = 'alpaca'\nlang = 'sw'\n[data.columns]\ninstruction = 'question'\n";
    assert_eq!(load(header).unwrap(), braces);
    assert_eq!(load(&braces.to_toml().unwrap()).unwrap(), braces);
    let set = ["data.format=alpaca", "data.lang=sw", "data.columns={ instruction = 'question' }"].map(String::from);
    assert_eq!(Recipe::load(Preset::Default, None, &set).unwrap(), braces);
    let set = ["data.format=alpaca", "data.lang=sw", "data.columns.instruction=question"].map(String::from);
    assert_eq!(Recipe::load(Preset::Default, None, &set).unwrap(), braces);
    for wrong in ["data.columns.instructoin=question", "data.lang.name=sw"] {
        let error = Recipe::load(Preset::Default, None, &[wrong.to_string()]).unwrap_err();
        assert!(format!("{error:#}").contains("unknown"), "{error:#}");
    }
    let error = load("[data]\ncolumns = { instructoin = 'question' }\n").unwrap_err();
    assert!(format!("{error:#}").contains("recipe.toml:2:1"), "{error:#}");
}
