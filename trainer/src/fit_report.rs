//! What a fit says of itself: text for a person, JSON for a program, pictures for both.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use cctuning::least_squares::{FitReport, Judgement};
use cctuning::transform_matrix::TransformMatrix;
use serde::Serialize;

use crate::model_folder::save_transform;
use crate::plot::{Chart, Line};
use crate::run_folder::write_file_atomically;

/// A fitted matrix with everything a person needs to trust it or not.
#[derive(Serialize)]
pub struct Fitted {
    #[serde(skip)]
    pub transform: TransformMatrix,
    pub pairs: usize,
    pub heldout_pairs: usize,
    /// Rows of the system; with a matrix per layer, of each.
    pub rows: usize,
    pub d_model: usize,
    pub languages: Vec<String>,
    pub ridge: f64,
    pub affine: bool,
    pub per_layer: bool,
    /// The smallest, where there are several systems.
    pub rank: usize,
    /// The largest, where there are several systems; absent where one is singular.
    pub condition: f64,
    /// Rank and condition of each layer's system, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub systems: Vec<System>,
    pub train: Judgement,
    pub heldout: Judgement,
    pub train_layers: Vec<Judgement>,
    pub heldout_layers: Vec<Judgement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<Point>,
    pub warnings: Vec<String>,
}

/// What is known of one layer's system.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct System {
    pub rank: usize,
    pub condition: f64,
}

/// The error after so many pairs (Figure 5).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    pub pairs: usize,
    pub rows: usize,
    /// MSE on the pairs that were fitted.
    pub train: f64,
    /// MSE on held-out pairs.
    pub heldout: f64,
}

/// What a picture shows of a judgement.
struct Measure {
    name: &'static str,
    remark: &'static str,
    of: fn(FitReport) -> f64,
    logarithmic: bool,
    range: Option<(f64, f64)>,
}

const R2: Measure = Measure {
    name: "R2",
    remark: "; below -1 is cut off",
    of: |report| report.r2,
    logarithmic: false,
    range: Some((-1.0, 1.0)),
};
const MSE: Measure = Measure { name: "MSE", remark: "", of: |report| report.mse, logarithmic: true, range: None };

impl Fitted {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "Transform Matrix{} from {} pairs ({} held out), {} rows, rank {} of {}, condition {:.1e}\n  {:<22} {:>10} {:>8}\n",
            match (self.per_layer, self.affine) {
                (false, false) => "",
                (false, true) => " with intercept",
                (true, false) => " per layer",
                (true, true) => " per layer with intercept",
            },
            self.pairs,
            self.heldout_pairs,
            self.rows,
            self.rank,
            self.d_model,
            self.condition,
            "",
            "MSE",
            "R2"
        );
        let mut line = |name: &str, report: &FitReport| {
            let _ = writeln!(text, "  {name:<22} {:>10.3e} {:>8.3}", report.mse, report.r2);
        };
        line("its own pairs", &self.train.fitted);
        line("held-out pairs", &self.heldout.fitted);
        line("held-out, layer mean", &self.heldout.layer_mean);
        line("held-out, zero", &self.heldout.zero);
        line("held-out, identity", &self.heldout.identity);
        for warning in &self.warnings {
            let _ = writeln!(text, "  warning: {warning}");
        }
        text
    }

    /// Layer by layer.
    pub fn table(&self) -> String {
        let mut text = format!("{:<5}", "layer");
        for judged in ["its own pairs", "held-out", "layer mean", "identity", "zero"] {
            let _ = write!(text, "{judged:>14} MSE{:>7}", "R2");
        }
        text += if self.systems.is_empty() { "\n" } else { "  rank  condition\n" };
        for (layer, (train, heldout)) in self.train_layers.iter().zip(&self.heldout_layers).enumerate() {
            let _ = write!(text, "{:<5}", layer + 1);
            for judged in [train.fitted, heldout.fitted, heldout.layer_mean, heldout.identity, heldout.zero] {
                let _ = write!(text, "{:>18.3e}{:>7.3}", judged.mse, judged.r2);
            }
            if let Some(System { rank, condition }) = self.systems.get(layer) {
                let _ = write!(text, "{rank:>6}{condition:>11.1e}");
            }
            text.push('\n');
        }
        text + "Layer mean, identity and zero are baselines, judged on the held-out pairs.\n"
    }

    /// Writes the matrix, its report and its pictures.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| write_file_atomically(&folder.join(name), bytes);
        write("transform.json", format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes())?;
        write("transform.txt", format!("{}\n{}", self.summary(), self.table()).as_bytes())?;
        write("transform.svg", self.by_layer(R2).svg().as_bytes())?;
        write("transform-mse.svg", self.by_layer(MSE).svg().as_bytes())?;
        if !self.curve.is_empty() {
            let mut csv = "pairs,rows,train_mse,heldout_mse\n".to_string();
            for Point { pairs, rows, train, heldout } in &self.curve {
                let _ = writeln!(csv, "{pairs},{rows},{train:e},{heldout:e}");
            }
            write("transform-curve.csv", csv.as_bytes())?;
            write("transform-curve.svg", self.by_pairs().svg().as_bytes())?;
        }
        // Last: where it is, everything is.
        save_transform(folder, &self.transform)
    }

    fn by_layer(&self, measure: Measure) -> Chart {
        let line = |name: &str, judged: &[Judgement], of: fn(&Judgement) -> FitReport| Line {
            name: name.into(),
            points: (1..).zip(judged).map(|(layer, j)| (f64::from(layer), (measure.of)(of(j)))).collect(),
        };
        Chart {
            title: "Transform Matrix, layer by layer".into(),
            subtitle: format!("{} on {} held-out pairs{}", measure.name, self.heldout_pairs, measure.remark),
            x: "layer".into(),
            y: measure.name.into(),
            logarithmic: (false, measure.logarithmic),
            y_range: measure.range,
            mark: None,
            lines: vec![
                line("held out", &self.heldout_layers, |j| j.fitted),
                line("its own pairs", &self.train_layers, |j| j.fitted),
                line("layer mean", &self.heldout_layers, |j| j.layer_mean),
                line("identity", &self.heldout_layers, |j| j.identity),
                line("zero", &self.heldout_layers, |j| j.zero),
            ],
        }
    }

    fn by_pairs(&self) -> Chart {
        let line = |name: &str, of: fn(&Point) -> f64| Line {
            name: name.into(),
            points: self.curve.iter().map(|point| (point.pairs as f64, of(point))).collect(),
        };
        let layers = self.curve.first().map_or(1, |point| point.rows / point.pairs.max(1));
        let of_one = if self.per_layer { 1 } else { layers };
        Chart {
            title: "Error against the number of pairs".into(),
            subtitle: format!("mean squared error of W_T; the line marks rows = d_model = {}", self.d_model),
            x: "pairs".into(),
            y: "MSE".into(),
            logarithmic: (true, true),
            y_range: None,
            mark: Some((self.d_model as f64 / of_one as f64, "rows = d".into())),
            lines: vec![line("held out", |point| point.heldout), line("its own pairs", |point| point.train)],
        }
    }
}
