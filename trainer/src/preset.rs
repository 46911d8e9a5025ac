//! Named starting points under a recipe file.

/// A named starting point under the recipe file.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
pub enum Preset {
    #[default]
    Default,
    /// The released code's arithmetic.
    Reference,
    /// The paper's full fine-tuning settings.
    PaperHparams,
}

impl Preset {
    /// What it sets, as a recipe file would.
    pub(crate) fn toml(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Reference => {
                "[cc]\nanchor = 'role_token'\ne = 'anchor'\nselection = 'gumbel'\ntwo_pass = 'full'\nstop = 'config'\n"
            }
            Self::PaperHparams => {
                "[data]\ncutoff = 1024\nenglish_cutoff = 1024\n\
                 [optim]\nlr = 1e-5\nbatch_size = 16\nmicro_tokens = 2048\nepochs = 3\nmax_steps = 0\nschedule = 'cosine'\nwarmup_ratio = 0.1\n\
                 recompute = true\nprecision = 'bf16'\n"
            }
        }
    }
}
