//! Proves that what a step sees, its rows and its learning rate, is a pure function of the step's number, and that work on
//! several cores is taken as on one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use trainer::batches::{Order, micro_batches};
use trainer::parallel::in_order;
use trainer::recipe::{Optim, Schedule};

fn epoch(seed: u64, epoch: usize) -> Vec<usize> {
    let mut order = Order::new(103, 10, seed);
    let steps = order.steps_per_epoch();
    (epoch * steps..(epoch + 1) * steps).flat_map(|step| order.batch(step).to_vec()).collect()
}

#[test]
fn every_epoch_sees_every_row_once_and_the_last_batch_is_smaller() {
    for number in 0..3 {
        let mut rows = epoch(1, number);
        rows.sort_unstable();
        assert_eq!(rows, (0..103).collect::<Vec<_>>());
    }
    let mut order = Order::new(103, 10, 1);
    assert_eq!(order.steps_per_epoch(), 11);
    assert_eq!((order.batch(9).len(), order.batch(10).len(), order.batch(11).len()), (10, 3, 10));
}

#[test]
fn order_changes_with_the_seed_and_with_the_epoch() {
    assert_eq!(epoch(1, 0), epoch(1, 0));
    assert_ne!(epoch(1, 0), epoch(2, 0));
    assert_ne!(epoch(1, 0), epoch(1, 1));
    assert_ne!(epoch(1, 0), (0..103).collect::<Vec<_>>());
}

#[test]
fn a_step_asked_for_out_of_turn_sees_the_same_rows() {
    let mut in_turn = Order::new(103, 10, 5);
    let expected: Vec<Vec<usize>> = (0..40).map(|step| in_turn.batch(step).to_vec()).collect();
    for step in [39, 0, 25, 11, 10, 39] {
        assert_eq!(Order::new(103, 10, 5).batch(step), expected[step]);
        assert_eq!(in_turn.batch(step), expected[step]);
    }
}

#[test]
fn the_order_stays_the_same_from_release_to_release() {
    assert_eq!(Order::new(8, 8, 42).batch(0), [4, 7, 0, 1, 3, 2, 6, 5]);
}

#[test]
fn first_places_of_the_shuffle_are_uniform() {
    let mut counts = [0usize; 4];
    for seed in 0..4000 {
        counts[Order::new(4, 1, seed).batch(0)[0]] += 1;
    }
    assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
}

#[test]
fn micro_batches_hold_every_row_once_within_the_budget() {
    let lengths: Vec<usize> = (0..97).map(|row| 1 + (row * 37) % 61).collect();
    for budget in [1, 60, 61, 200, 1_000, 1_000_000] {
        let batches = micro_batches(&lengths, budget);
        for batch in &batches {
            let longest = batch.iter().map(|&row| lengths[row]).max().unwrap();
            assert!(batch.len() == 1 || longest * batch.len() <= budget, "{batch:?} under {budget}");
        }
        let mut rows: Vec<usize> = batches.concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..97).collect::<Vec<_>>());
    }
}

#[test]
fn micro_batches_group_like_lengths() {
    assert_eq!(micro_batches(&[10, 100, 11, 99], 200), [vec![1, 3], vec![2, 0]]);
    assert_eq!(micro_batches(&[500, 3, 3], 10), [vec![0], vec![1, 2]]);
    assert!(micro_batches(&[], 10).is_empty());
}

#[test]
fn learning_rates_equal_hugging_faces_cosine_with_warm_up() {
    // transformers' _get_cosine_schedule_with_warmup_lr_lambda, 10 warm-up steps of 95.
    for (step, expected) in HUGGING_FACE {
        let rate = rate(Schedule::Cosine, step, 95, 2e-5, 0.1);
        assert!((rate - expected).abs() <= 1e-18 + expected * 1e-12, "step {step}: expected {expected}, found {rate}");
    }
}

const HUGGING_FACE: [(usize, f64); 9] = [
    (0, 0.0),
    (1, 2.0000000000000003e-06),
    (9, 1.8e-05),
    (10, 2e-05),
    (11, 1.9993170601430233e-05),
    (40, 1.4457383557765385e-05),
    (80, 1.4978286427038602e-06),
    (94, 6.82939856977094e-09),
    (95, 0.0),
];

fn rate(schedule: Schedule, step: usize, total: usize, lr: f64, warmup_ratio: f64) -> f64 {
    trainer::schedule::lr(step, total, &Optim { lr, warmup_ratio, schedule, ..Optim::default() })
}

#[test]
fn a_line_falls_to_zero_and_a_constant_stays() {
    // transformers' _get_linear_schedule_with_warmup_lr_lambda: (95 - step) / (95 - 10).
    for (step, line, constant) in [(0, 0.0, 0.0), (9, 0.9, 0.9), (10, 1.0, 1.0), (44, 0.6, 1.0), (95, 0.0, 1.0)] {
        for (schedule, expected) in [(Schedule::Linear, line), (Schedule::Constant, constant)] {
            let found = rate(schedule, step, 95, 1.0, 0.1);
            assert!((found - expected).abs() < 1e-12, "{schedule:?}, step {step}: {found}");
        }
    }
}

#[test]
fn a_schedule_without_warm_up_or_past_its_end_stays_in_range() {
    let cosine = |step, total, warmup_ratio| rate(Schedule::Cosine, step, total, 1.0, warmup_ratio);
    assert_eq!(cosine(0, 10, 0.0), 1.0);
    assert_eq!(cosine(0, 0, 0.1), 1.0);
    assert!(cosine(50, 10, 0.1).abs() < 1e-15);
    assert!(cosine(9, 10, 1.0) < 1.0);
}

/// The last of every three is done first.
fn uneven(item: &usize) -> usize {
    sleep(Duration::from_millis(3 * (2 - *item as u64 % 3)));
    *item
}

#[test]
fn results_of_several_threads_are_taken_in_order_until_they_are_refused() {
    let items: Vec<usize> = (0..50).collect();
    for threads in [0, 1, 2, 3, 8, 100] {
        for wanted in [0, 1, 7, 50] {
            let mut taken = Vec::new();
            in_order(threads, &items[..wanted], uneven, |item| {
                taken.push(item);
                true
            });
            assert_eq!(taken, items[..wanted], "{threads} threads");
        }
        let mut taken = Vec::new();
        in_order(threads, &items, uneven, |item| {
            taken.push(item);
            item < 9
        });
        assert_eq!(taken, items[..10], "{threads} threads");
    }
}

#[test]
fn no_more_results_wait_than_one_beside_those_in_work() {
    let items: Vec<usize> = (0..60).collect();
    for threads in [2, 5] {
        let (begun, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut taken = 0;
        let count = |item: &usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            uneven(item)
        };
        in_order(threads, &items, count, |_| {
            sleep(Duration::from_millis(5));
            most.fetch_max(begun.load(Ordering::SeqCst) - taken, Ordering::SeqCst);
            taken += 1;
            true
        });
        assert_eq!(most.into_inner(), threads + 1);
    }
}

#[test]
fn a_panic_in_one_thread_reaches_the_caller() {
    for threads in [1, 3] {
        let fails = |item: &usize| assert_ne!(*item, 20, "the twentieth");
        let found = catch_unwind(AssertUnwindSafe(|| in_order(threads, &[1, 2, 20, 3, 4, 5], fails, |()| true)));
        let told = found.expect_err("a panic");
        assert!(told.downcast_ref::<String>().is_some_and(|told| told.contains("the twentieth")));
    }
}
