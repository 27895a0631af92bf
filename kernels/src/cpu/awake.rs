//! Keeps the threads of rayon's pool awake while a plan runs.
//!
//! A pool thread without work falls asleep at once and must be woken for the next step. In a virtual machine waking it
//! takes as long as a small step. Therefore a run is one task of the pool, and the other threads poll for parallel work
//! until the run ends or no work has come for a while.

use rayon::Yield;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time that a thread polls without finding work.
///
/// Polling must end by itself and not only with the run: two runs could otherwise wait for each other, each inside a
/// task of the other.
const PATIENCE: Duration = Duration::from_millis(2);

/// Runs `work` on a thread of rayon's pool, keeps the other threads awake meanwhile, and returns its result.
///
/// # Panics
/// If `work` panics, with the same payload.
pub fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let over = Arc::new(AtomicBool::new(false));
    rayon::scope(|_| {
        let (own, theirs) = (rayon::current_thread_index(), Arc::clone(&over));
        // Spawned outside the scope, so that the run does not wait for them: a thread may be inside a long task of
        // another caller.
        rayon::spawn_broadcast(move |context| {
            if Some(context.index()) != own {
                look_for_work(&theirs);
            }
        });
        let result = work();
        over.store(true, Ordering::Release);
        result
    })
}

/// Runs parallel work of the pool until `over` is set or there was none for [`PATIENCE`].
fn look_for_work(over: &AtomicBool) {
    let mut since = Instant::now();
    while !over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            since = Instant::now();
        } else if since.elapsed() > PATIENCE {
            return;
        } else {
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn sum(of: u64) -> u64 {
        (0..of).into_par_iter().map(|i| i * i).sum()
    }

    #[test]
    fn concurrent_and_nested_runs_end() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("threads can be had");
        let want: u64 = (0..1000).map(|i| i * i).sum();
        let many = || (0..50).map(|_| awake(|| (0..20).map(|_| sum(1000)).max())).collect::<Vec<_>>();
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..6).map(|_| scope.spawn(|| pool.install(many))).collect();
            for run in runs {
                assert!(run.join().expect("no run panics").iter().all(|got| *got == Some(want)));
            }
        });
        assert_eq!(pool.install(|| awake(|| awake(|| sum(1000)))), want);
    }

    #[test]
    fn a_busy_thread_does_not_delay_the_run() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads can be had");
        let (send, received) = std::sync::mpsc::channel();
        let (began, begun) = std::sync::mpsc::channel();
        pool.spawn(move || {
            began.send(()).expect("the test waits for it");
            received.recv().expect("the test sends when the work is done");
        });
        begun.recv().expect("the task begins");
        let found = pool.install(|| awake(|| sum(1000)));
        assert_eq!(found, (0..1000).map(|i| i * i).sum::<u64>());
        send.send(()).expect("the task still waits");
    }

    #[test]
    fn a_panic_of_the_work_is_propagated() {
        let caught = std::panic::catch_unwind(|| awake(|| panic!("of the work")));
        assert_eq!(caught.expect_err("it panics").downcast_ref::<&str>(), Some(&"of the work"));
    }
}
