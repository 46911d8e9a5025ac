//! How long fitting takes at the width of an 8B model: 1,000 pairs through 32 layers of width 4,096, as if their
//! activations had just been read.
//!
//! `cargo run --release -p trainer --no-default-features --example fit_bench -- [PAIRS LAYERS WIDTH]`

use std::time::Instant;

use anyhow::Result;
use cctuning::least_squares::{Judge, Moments};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::memory;

fn main() -> Result<()> {
    let given: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let [pairs, layers, d] = *given.as_slice() else { return bench(1000, 32, 4096) };
    bench(pairs, layers, d)
}

fn bench(pairs: usize, layers: usize, d: usize) -> Result<()> {
    // One block of noise, shifted by a number for every pair: what is multiplied does not matter, that it is does.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let block: Vec<f32> = (0..(layers + 64) * d).map(|_| rng.random_range(-1.0..1.0)).collect();
    let rows = |pair: usize| &block[pair * 7919 % (64 * d)..][..layers * d];
    let (started, mut sums) = (Instant::now(), Moments::new(d));
    let mut lap = started;
    let mut say = |what: &str| {
        let peak = memory::peak().map_or(f64::NAN, |bytes| bytes as f64 / 1e9);
        println!("{what:<44}{:>8.1} s   peak {peak:.2} GB", lap.elapsed().as_secs_f64());
        lap = Instant::now();
    };
    for pair in 0..pairs {
        sums.add(rows(pair), rows(pair + 1))?;
    }
    // A ridge, because repeated rows would leave the system short of its rank.
    let fit = sums.fit(1e-3, false)?;
    say(&format!("{} rows of width {d} summed and solved", fit.rows));
    let fits = [fit];
    let mut judge = Judge::new(&fits, vec![vec![0.0; d]; layers]);
    for pairs in (0..pairs).collect::<Vec<_>>().chunks(8192 / layers) {
        let join = |shift: usize| pairs.iter().flat_map(|pair| rows(pair + shift)).copied().collect::<Vec<f32>>();
        judge.add(&join(0), &join(1));
    }
    let (all, _) = judge.finish();
    say("judged layer by layer on all of them");
    println!("{:<44}{:>8.1} s   R2 {:.3}", "in all", started.elapsed().as_secs_f64(), all.fitted.r2);
    Ok(())
}
