//! The matrix as data: which cells there are, and in which order they are worth having. It measures nothing.

use cctuning::generate::{Choice, Source};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How large the experiment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Short trainings and few prompts: at most ten minutes on two cores
    Quick,
    /// What RESULTS.md is made from
    Full,
}

/// What a cell is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Table 1: the data settings, each with and without CC-Tuning
    Main,
    /// Beside ML-SFT and CC-Tuning: the base as it is, and deep supervision (DFT)
    Reference,
    /// Who chooses the layer (Figure 3)
    Pool,
    /// Which output is read (Figure 4)
    Site,
    /// Whether the English pass gets a gradient
    EnglishGrad,
    /// The input embedding of Eq. 3
    E,
    /// What the method leaves open: alpha, tau, the Decision Maker's learning rate, English rows, epochs
    Open,
}

/// The rows that are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    MlSft,
    En,
    Mt,
    Sdrrl,
}

/// What is done to the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Training {
    Nothing,
    Sft,
    Cc,
    /// Deep supervision by the English twin (arXiv 2503.01275).
    Dft,
}

/// How a model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// Without a connection.
    None,
    /// The prompt's own activations through the Transform Matrix, as the paper infers.
    Transform,
    /// The English twin's activations.
    Parallel,
    Identity,
    Zero,
    Random,
    Shuffled,
    /// `Transform` with Gumbel noise in the choice.
    Gumbel,
    /// `Transform` with an intercept.
    Affine,
    /// `Transform` with a matrix for each layer.
    PerLayer,
    /// `Transform` with a ridge.
    Ridge,
    /// The English twin as the prompt itself: whether English knows the answer.
    English,
}

/// One training run and all that is asked of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub group: Group,
    pub setting: Setting,
    pub training: Training,
    /// What is changed against the main table, as a name; empty for the main table itself.
    pub variant: String,
    pub seed: u64,
    /// `section.key=value` over the experiment's recipe.
    pub overrides: Vec<String>,
    pub readings: Vec<Reading>,
    /// Whether the Transform Matrix is fitted on growing numbers of pairs too (Figure 5).
    pub curve: bool,
    /// Whether the anchors' states are laid out in the plane (Figure 7).
    pub states: bool,
    /// Whether activations are transplanted between all layers.
    pub transplants: bool,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    /// What it changes in the recipe.
    pub fn overrides(self) -> &'static [&'static str] {
        match self {
            Self::Quick => &["optim.max_steps=40", "eval.limit=2", "transform.pairs=400"],
            Self::Full => &[],
        }
    }

    fn seeds(self, setting: Setting) -> u64 {
        match (self, setting) {
            (Self::Quick, Setting::MlSft) => 2,
            (Self::Quick, _) => 1,
            (Self::Full, _) => 5,
        }
    }

    /// The quick profile has those of Figures 3 and 4 alone, without the fixed layers.
    fn ablates(self, (group, _, value): &Ablation) -> bool {
        self == Self::Full || (matches!(group, Group::Pool | Group::Site) && !value.starts_with("fixed"))
    }

    fn ablation_seeds(self) -> u64 {
        match self {
            Self::Quick => 1,
            Self::Full => 3,
        }
    }
}

impl Setting {
    pub const ALL: [Self; 4] = [Self::MlSft, Self::En, Self::Mt, Self::Sdrrl];

    pub fn name(self) -> &'static str {
        match self {
            Self::MlSft => "ML-SFT",
            Self::En => "+EN",
            Self::Mt => "+MT",
            Self::Sdrrl => "+SDRRL",
        }
    }

    fn slug(self) -> &'static str {
        match self {
            Self::MlSft => "plain",
            Self::En => "en",
            Self::Mt => "mt",
            Self::Sdrrl => "sdrrl",
        }
    }
}

impl Training {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "base",
            Self::Sft => "SFT",
            Self::Cc => "CC-Tuning",
            Self::Dft => "DFT",
        }
    }
}

impl Reading {
    /// What a CC-Tuned model of the main table is asked, and what the controls are.
    const CC: [Self; 3] = [Self::Transform, Self::Parallel, Self::None];
    const CONTROLS: [Self; 8] = [
        Self::Identity,
        Self::Zero,
        Self::Random,
        Self::Shuffled,
        Self::Gumbel,
        Self::Affine,
        Self::PerLayer,
        Self::Ridge,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no connection",
            Self::Transform => "W_T",
            Self::Parallel => "English twin",
            Self::Identity => "identity",
            Self::Zero => "zero vector",
            Self::Random => "random direction",
            Self::Shuffled => "shuffled pair",
            Self::Gumbel => "W_T, Gumbel choice",
            Self::Affine => "W_T, affine",
            Self::PerLayer => "W_T, per layer",
            Self::Ridge => "W_T, ridge 1e-3",
            Self::English => "asked in English",
        }
    }

    pub fn source(self) -> Source {
        match self {
            Self::None | Self::English => Source::None,
            Self::Parallel => Source::Parallel,
            Self::Identity => Source::Identity,
            Self::Zero => Source::Zero,
            Self::Random => Source::Random,
            Self::Shuffled => Source::Shuffled,
            Self::Transform | Self::Gumbel | Self::Affine | Self::PerLayer | Self::Ridge => Source::Transform,
        }
    }

    /// How the layer is taken, if not as the recipe says.
    pub fn choice(self) -> Option<Choice> {
        (self == Self::Gumbel).then_some(Choice::Gumbel)
    }

    /// What it changes in the fit; none where it needs no matrix at all.
    pub fn fit(self) -> Option<&'static [&'static str]> {
        match self {
            Self::None | Self::Parallel | Self::Identity | Self::English => None,
            Self::Affine => Some(&["transform.affine=true"]),
            Self::PerLayer => Some(&["transform.per_layer=true"]),
            Self::Ridge => Some(&["transform.ridge=1e-3"]),
            _ => Some(&[]),
        }
    }
}

impl Cell {
    fn new(group: Group, setting: Setting, training: Training, seed: u64) -> Self {
        let seeds = ["optim", "data", "cc", "transform"].map(|section| format!("{section}.seed={seed}"));
        Self {
            group,
            setting,
            training,
            variant: String::new(),
            seed,
            overrides: seeds.to_vec(),
            readings: if training == Training::Cc { Reading::CC.to_vec() } else { vec![Reading::None] },
            curve: false,
            states: false,
            transplants: false,
        }
    }

    /// With one key of the recipe changed.
    fn with(mut self, key: &str, value: &str) -> Self {
        self.variant = format!("{} = {value}", key.trim_start_matches("cc."));
        self.overrides.push(format!("{key}={value}"));
        self
    }

    /// What a person calls it.
    pub fn name(&self) -> String {
        match self.training {
            Training::Nothing => self.way(),
            _ => format!("{}, seed {}", self.way(), self.seed),
        }
    }

    /// The same without its seed.
    pub fn way(&self) -> String {
        let variant = if self.variant.is_empty() { String::new() } else { format!(", {}", self.variant) };
        match self.training {
            Training::Nothing => format!("the base{variant}"),
            training => format!("{} {}{variant}", self.setting.name(), training.name()),
        }
    }

    /// The beginning of its file name.
    pub fn slug(&self) -> String {
        let training = match self.training {
            Training::Nothing => "base",
            Training::Sft => "sft",
            Training::Cc => "cc",
            Training::Dft => "dft",
        };
        let variant: String = self.variant.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let parts = [self.setting.slug(), training, variant.trim_matches('-')];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}-{}", parts.join("-"), self.seed)
    }
}

/// All cells of a profile, for a base of so many layers: what says most comes first.
pub fn cells(profile: Profile, n_layers: usize) -> Vec<Cell> {
    let main = |setting, training, seed| {
        let mut cell = Cell::new(Group::Main, setting, training, seed);
        let plain = setting == Setting::MlSft;
        if plain && training == Training::Cc && seed < profile.ablation_seeds() {
            cell.readings.extend(Reading::CONTROLS);
        }
        cell.curve = plain && training == Training::Cc;
        cell.states = plain && seed == 0;
        cell.transplants = profile == Profile::Full && plain && training == Training::Sft && seed == 0;
        if cell.transplants {
            cell.readings.push(Reading::English);
        }
        cell
    };
    let both = |seed| {
        let settings = Setting::ALL.into_iter().filter(move |&setting| seed < profile.seeds(setting));
        settings.flat_map(move |setting| [Training::Sft, Training::Cc].map(|training| main(setting, training, seed)))
    };
    let base = Cell { states: true, ..Cell::new(Group::Reference, Setting::MlSft, Training::Nothing, 0) };
    let mut cells: Vec<Cell> = both(0).collect();
    cells.push(base);
    let most = Setting::ALL.map(|setting| profile.seeds(setting)).into_iter().max().unwrap_or(0);
    cells.extend((1..most).flat_map(both));
    if profile == Profile::Full {
        cells.extend(
            open().map(|(training, key, value)| Cell::new(Group::Open, Setting::MlSft, training, 0).with(key, value)),
        );
    }
    for seed in 0..profile.ablation_seeds() {
        // The quick profile has no minute left for it.
        if profile == Profile::Full {
            cells.push(Cell::new(Group::Reference, Setting::MlSft, Training::Dft, seed));
        }
        cells.extend(
            ablations(n_layers)
                .into_iter()
                .filter(|found| profile.ablates(found))
                .map(|(group, key, value)| Cell::new(group, Setting::MlSft, Training::Cc, seed).with(key, &value)),
        );
    }
    cells
}

/// One seed each, to be looked at on validation. Another number of epochs is another plain fine-tuning too.
fn open() -> impl Iterator<Item = (Training, &'static str, &'static str)> {
    let keys = [("cc.alpha", "0.3"), ("cc.tau", "0.5"), ("cc.decision_lr_mult", "10"), ("cc.skip_english", "true")];
    let epochs = [Training::Sft, Training::Cc].map(|training| (training, "optim.epochs", "1"));
    keys.into_iter().map(|(key, value)| (Training::Cc, key, value)).chain(epochs)
}

/// Where it is reported, the key it changes, and to what.
type Ablation = (Group, &'static str, String);

/// Each changes one thing; what the main table has stands for the other arm.
fn ablations(n_layers: usize) -> Vec<Ablation> {
    let mut layers = vec![0, n_layers / 2, n_layers - 1];
    layers.dedup();
    let fixed = layers.into_iter().map(|layer| format!("fixed({layer})"));
    let pools = ["mean".to_string(), "random".to_string()].into_iter().chain(fixed);
    let mut found: Vec<_> = pools.map(|pool| (Group::Pool, "cc.pool", pool)).collect();
    found.extend(["attention", "block"].map(|site| (Group::Site, "cc.site", site.to_string())));
    found.push((Group::EnglishGrad, "cc.english_grad", "full".into()));
    found.extend(["anchor", "none"].map(|e| (Group::E, "cc.e", e.to_string())));
    found
}
