//! `trainer`: fine-tunes with CC-Tuning, fits the Transform Matrix, evaluates, generates and exports.
//!
//! `main` -> `cli::run` -> one `match`; verbs never call verbs. This is a library only so that the integration tests
//! can reach its rooms.

pub mod answers;
pub mod backward;
pub mod batches;
pub mod benchmark_eval;
pub mod benchmarks;
pub mod cli;
pub mod compare;
pub mod conversation;
pub mod corpus;
pub mod data;
pub mod deep_supervision;
pub mod device;
pub mod embedding_rows;
pub mod english;
pub mod evaluate;
pub mod experiment;
pub mod export;
pub mod fit;
pub mod fit_report;
pub mod generate;
pub mod hub;
pub mod inputs;
pub mod interrupt;
pub mod jinja;
pub mod likelihood;
pub mod lm_eval;
pub mod log;
pub mod memory;
pub mod mapped;
pub mod model_folder;
pub mod optim;
pub mod overlay;
pub mod parallel;
pub mod plan;
pub mod plot;
pub mod precision;
mod preset;
pub mod pretrain;
pub mod progress;
pub mod recipe;
pub mod run;
pub mod results;
pub mod run_folder;
pub mod sample;
pub mod schedule;
pub mod scorers;
pub mod statistics;
pub mod step;
pub mod token_cache;
pub mod train;
pub mod transplant;
pub mod verify;
pub mod weight_files;
