//! Threads that stay awake while a plan runs.
//!
//! A thread of the pool that finds nothing to do falls asleep at once, and is woken for the next step: in a virtual machine
//! that takes as long as a small step. So a run is one task of the pool, and the other threads look for its parts until it
//! ends, or until nothing came for a while.

use rayon::Yield;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks for work. An end of its own, besides the run's, is what keeps two runs from waiting for each
/// other, each of them in the middle of a task of the other's.
const PATIENCE: Duration = Duration::from_millis(2);

/// What `work` gives, computed on a thread of the pool.
pub fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let over = Arc::new(AtomicBool::new(false));
    rayon::scope(|_| {
        let (own, theirs) = (rayon::current_thread_index(), Arc::clone(&over));
        // Nobody waits for these: a thread may be in the midst of somebody else's task, and that may last.
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
    fn runs_at_the_same_time_and_within_each_other_come_to_an_end() {
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
    fn a_thread_that_waits_for_what_comes_after_the_work_does_not_hold_it_up() {
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
    fn a_panic_comes_out() {
        let caught = std::panic::catch_unwind(|| awake(|| panic!("of the work")));
        assert_eq!(caught.expect_err("it panics").downcast_ref::<&str>(), Some(&"of the work"));
    }
}
