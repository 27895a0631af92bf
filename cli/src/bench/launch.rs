//! Times of dispatches that compute next to nothing: what every step of a plan takes besides its work.

use super::{Effort, measure};
use mobilediffusion_runtime::{Binding, Bound, Role, RuntimeError, Timer};
use serde_json::{Value, json};
use std::fmt;

/// Shader of one workgroup that reads what the one before has written.
const COUNT: &str = "
@group(0) @binding(0) var<storage, read_write> counters: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) { counters[thread] += 1u; }
";

/// Times of dispatches of one small workgroup, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    /// One in a pass of its own, as kernels are timed.
    alone: f64,
    /// Each of many in one pass, as the steps of a plan are: the next one waits for it.
    in_a_row: f64,
}

impl Launch {
    pub(super) fn measure(timer: &Timer<'_>, effort: Effort) -> Result<Self, RuntimeError> {
        const ROW: usize = 256;
        let gpu = timer.gpu();
        let counters = gpu.buffer("counters", 64 * 4, Role::Storage)?;
        let pipeline = gpu.pipeline("counting", COUNT, &[Binding::Write])?;
        let dispatch = [gpu.dispatch("counting", &pipeline, &[Bound::whole(&counters)], [1, 1, 1])?];
        measure::warm_up(timer, &dispatch, effort)?;
        let alone = measure::median(timer.time_in_turn(&dispatch, 31)?);
        let rows = (0..7).map(|_| timer.time_in_one_pass(&dispatch[0], ROW)).collect::<Result<_, _>>()?;
        Ok(Self { alone, in_a_row: measure::median(rows) / ROW as f64 })
    }

    /// Returns the times as JSON.
    pub(super) fn json(self) -> Value {
        json!({ "alone_seconds": self.alone, "in_a_row_seconds": self.in_a_row })
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (alone, in_a_row) = (self.alone * 1e6, self.in_a_row * 1e6);
        write!(f, "a dispatch of one small workgroup: {alone:.1} us in a pass of its own, {in_a_row:.1} us in a row")
    }
}
