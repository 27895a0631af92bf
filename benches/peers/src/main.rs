//! Times single products and convolutions in burn (wgpu) and candle (CPU), at the shapes of a file that
//! `mobilediffusion bench --json` wrote: `mobilediffusion-peers bench.json burn|candle ADAPTER_KIND SECONDS`.
//!
//! Prints a line of JSON per shape: what was timed, the median of the runs in seconds, and the error of a sample of the
//! results against sums in f64. The peers compute the bare product or convolution, without the biases, norms, residuals
//! and joined inputs that this project's kernels include.

mod shapes;
mod with_burn;
mod with_candle;

use serde_json::{Value, json};
use shapes::Problem;
use std::error::Error;
use std::time::{Duration, Instant};

/// Error of this program, printed as one line.
pub(crate) type Failure = Box<dyn Error>;

/// Largest number of runs of one problem.
const RUNS: usize = 20;

/// Time for the runs of one shape after warming up.
const PER_SHAPE: Duration = Duration::from_millis(500);

/// Problem prepared on a peer.
pub(crate) trait Run {
    /// Computes the result and waits for it.
    fn run(&mut self) -> Result<(), Failure>;
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
    let half = bench["machine"]["storage"].as_str().is_some_and(|storage| storage != "f32");
    let rows = bench["shapes"].as_array().ok_or("the file holds no shapes")?;
    for row in rows {
        let Some(problem) = Problem::of(row) else { continue };
        if Instant::now() > until {
            println!(
                "{}",
                json!({ "peer": peer, "kernel": row["kernel"], "shape": row["shape"], "why": "no time left" })
            );
            continue;
        }
        let mut made: Box<dyn Run> = match peer.as_str() {
            "burn" => Box::new(with_burn::Burn::new(&problem, kind, half)?),
            "candle" => Box::new(with_candle::Candle::new(&problem)?),
            other => return Err(format!("expected burn or candle, found {other}").into()),
        };
        let (seconds, error) = timed(made.as_mut(), &problem)?;
        let said = json!({ "peer": peer, "kernel": row["kernel"], "shape": row["shape"], "seconds": seconds,
            "error": error, "half": half && peer == "burn" });
        println!("{said}");
    }
    Ok(())
}

/// Measures the median of several runs, after those that compile and tune, and the largest error relative to the
/// results' scale.
fn timed(made: &mut dyn Run, problem: &Problem) -> Result<(f64, f64), Failure> {
    made.run()?;
    let error = problem.error(&made.results()?);
    made.run()?;
    let (begin, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < 3 || (seconds.len() < RUNS && begin.elapsed() < PER_SHAPE) {
        let start = Instant::now();
        made.run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[seconds.len() / 2], error))
}
