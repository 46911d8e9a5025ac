//! Proves that weights go in and out whole: in files, slices, shards and bundles, with `transformers` as a witness; and
//! that nothing damaged does harm.

#[path = "../bounded.rs"]
mod bounded;
#[path = "../shared_data.rs"]
mod shared_data;
#[path = "../small_model.rs"]
mod small_model;

mod bundles;
mod folders;
mod hugging_face;
mod memory;
mod mutations;
mod plan;
mod streaming;
