//! Work on several cores: the same results in the same order as on one.

use std::sync::atomic::{AtomicUsize, Ordering};

use cctuning::model::CcModel;

use crate::device::is_cpu;

/// The widest model of which several batches are answered at once. A wider one has products that keep all cores busy, and
/// caches that are not to be held several times.
const NARROW: usize = 512;

/// Passes through a model that are computed at once: on the CPU one per core, because most of Burn's operations use one core
/// there.
pub fn cores(model: &CcModel) -> usize {
    if is_cpu(&model.device()) { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 }
}

/// Batches that are answered at once, each with a cache of its own.
pub fn batches_at_once(model: &CcModel) -> usize {
    if model.model.embedding().dims()[1] > NARROW { 1 } else { cores(model) }
}

/// Maps in order over `threads` threads.
pub fn in_parallel<T: Sync, R: Send>(threads: usize, items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (f, next) = (&f, &AtomicUsize::new(0));
    let take = move || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, f(item)));
        }
    };
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len())).map(|_| scope.spawn(take)).collect();
        let mut results = take();
        results.extend(others.into_iter().flat_map(|other| other.join().expect("work on another core panicked")));
        results
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
