//! Times single products and convolutions in burn (wgpu) and candle (CPU), at the shapes of a file that
//! `mobilediffusion bench --json` wrote: `mobilediffusion-peers bench.json burn|candle ADAPTER_KIND SECONDS`.
//!
//! Prints a line of JSON per shape: what was timed, the seconds of a run, and the error of a sample of the results
//! against sums in f64; or why the shape was not timed. Many runs are started before one wait, because this project's
//! kernels are timed by the device, without the waits. The peers compute the bare product or convolution, without the
//! biases, norms, residuals and joined inputs that this project's kernels include.

mod shapes;
mod with_burn;
mod with_candle;

use serde_json::{Value, json};
use shapes::Problem;
use std::error::Error;
use std::time::{Duration, Instant};

/// Error of this program, printed as one line.
pub(crate) type Failure = Box<dyn Error>;

/// Largest number of batches of one problem.
const BATCHES: usize = 20;

/// Least time of a batch of runs, against which the wait at its end is short.
const BATCH: Duration = Duration::from_millis(20);

/// Largest number of runs of a batch, so that a peer that puts off its work does not go on for ever.
const MOST_RUNS: usize = 4096;

/// Time for the batches of one shape after warming up.
const PER_SHAPE: Duration = Duration::from_millis(500);

/// Problem prepared on a peer.
pub(crate) trait Run {
    /// Computes the result `runs` times without waiting in between, and waits for the last one.
    fn run(&mut self, runs: usize) -> Result<(), Failure>;
    /// Returns the results of the last run, row by row in the problem's order.
    fn results(&self) -> Result<Vec<f32>, Failure>;
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(failure) = all(&arguments) {
        eprintln!("error: {}", failure.to_string().lines().next().unwrap_or_default());
        std::process::exit(1);
    }
}

fn all(arguments: &[String]) -> Result<(), Failure> {
    let [file, peer, kind, seconds] = arguments else {
        return Err("expected a file of `bench --json`, burn or candle, the adapter's kind, and seconds".into());
    };
    let until = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let bench: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    if !["burn", "candle"].contains(&peer.as_str()) {
        return Err(format!("expected burn or candle, found {peer}").into());
    }
    let half = bench["machine"]["storage"].as_str().is_some_and(|storage| storage != "f32");
    let rows = bench["shapes"].as_array().ok_or("the file holds no shapes")?;
    for row in rows {
        let Some(problem) = Problem::of(row) else { continue };
        let measured = match Instant::now() > until {
            true => Err("no time left".into()),
            false if peer == "burn" => {
                with_burn::Burn::new(&problem, kind, half).and_then(|made| timed(made, &problem))
            }
            false => with_candle::Candle::new(&problem).and_then(|made| timed(made, &problem)),
        };
        let mut said = json!({ "peer": peer, "kernel": row["kernel"], "shape": row["shape"] });
        match measured {
            Ok((seconds, error)) => {
                said["seconds"] = seconds.into();
                said["error"] = error.into();
                said["half"] = (half && peer == "burn").into();
            }
            // Other shapes may succeed.
            Err(why) => said["why"] = why.to_string().lines().next().unwrap_or_default().into(),
        }
        println!("{said}");
    }
    Ok(())
}

/// Measures the seconds of a run, the median over several batches, after the runs that compile and tune. The second
/// value is the largest error relative to the results' scale.
fn timed(mut made: impl Run, problem: &Problem) -> Result<(f64, f64), Failure> {
    made.run(1)?;
    let error = problem.error(&made.results()?);
    made.run(1)?;
    let mut batch = |runs: usize| {
        let start = Instant::now();
        made.run(runs)?;
        Ok::<_, Failure>(start.elapsed())
    };
    let mut runs = 1;
    while runs < MOST_RUNS && batch(runs)? < BATCH {
        runs *= 2;
    }
    let (begin, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < 3 || (seconds.len() < BATCHES && begin.elapsed() < PER_SHAPE) {
        seconds.push(batch(runs)?.as_secs_f64() / runs as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[seconds.len() / 2], error))
}
