//! Proves the properties of the method on small random models: what a pass reads and writes, what training gets as
//! gradient, what a fit finds, what a file keeps.

#[path = "../small_model.rs"]
mod small_model;

mod by_hand;
mod decoding;
mod deep_supervision;
mod fitting;
mod passes;
mod pieces;
mod ragged;
mod storage;
mod switches;
mod training_step;
