//! Work on several cores: the same results in the same order as on one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, mpsc};

use burn::tensor::Device;
use cctuning::model::CcModel;

use crate::device::is_cpu;

/// The widest model of which several batches are answered at once. A wider one has products that keep all cores busy, and
/// caches that are not to be held several times.
const NARROW: usize = 512;

/// Passes through a model, or parts of an update, that are computed at once: on the CPU one per core, because most of Burn's operations use one core
/// there.
pub fn cores(device: &Device) -> usize {
    if is_cpu(device) { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 }
}

/// Batches that are answered at once, each with a cache of its own.
pub fn batches_at_once(model: &CcModel) -> usize {
    if model.model.embedding().dims()[1] > NARROW { 1 } else { cores(&model.device()) }
}

/// Maps over `threads` threads, in order.
pub fn in_parallel<T: Sync, R: Send>(threads: usize, items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let mut results = Vec::with_capacity(items.len());
    in_order(threads, items, f, |result| {
        results.push(result);
        true
    });
    results
}

/// Maps over `threads` threads and hands each result to `take`, in the order of the items and as soon as those before it
/// are taken, until it says `false`. Of several threads' results at most `threads + 1` are begun and not yet taken.
pub fn in_order<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    f: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(R) -> bool,
) {
    let threads = threads.min(items.len());
    if threads < 2 {
        items.iter().map(f).all(take);
        return;
    }
    let (give, queue) = mpsc::channel();
    let (done, results) = mpsc::channel();
    let queue = Mutex::new(queue);
    let next = || queue.lock().expect("nothing panics while it waits").recv();
    let work = |done: mpsc::Sender<_>| {
        while let Ok(at) = next() {
            // A panic travels to the caller, who would wait for this result forever.
            let result = catch_unwind(AssertUnwindSafe(|| f(&items[at])));
            if done.send((at, result)).is_err() {
                return;
            }
        }
    };
    let work = &work;
    std::thread::scope(move |scope| {
        for _ in 0..threads {
            let done = done.clone();
            scope.spawn(move || work(done));
        }
        let mut rest = 0..items.len();
        let mut begin = || rest.next().map_or(Ok(()), |at| give.send(at)).expect("the queue outlives the threads");
        (0..=threads).for_each(|_| begin());
        let mut waiting = BTreeMap::new();
        for at in 0..items.len() {
            while !waiting.contains_key(&at) {
                waiting.extend(results.recv());
            }
            let result = waiting.remove(&at).expect("waited for");
            if !take(result.unwrap_or_else(|panic| resume_unwind(panic))) {
                return;
            }
            begin();
        }
    });
}
