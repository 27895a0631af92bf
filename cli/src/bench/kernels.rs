//! `bench` of kernels: checks and times each at the model's shapes.

use super::measure::{self, is_too_large};
use super::peaks::Peaks;
use super::row::{Row, heading};
use super::{Effort, Measured};
use crate::Failure;
use crate::args::{half, time_left};
use crate::compile::compile;
use crate::terminal::{note, one_line, result};
use mobilediffusion_kernels::runner::check_case;
use mobilediffusion_kernels::variant::{Machine, choose};
use mobilediffusion_kernels::{Case, Device, Family, WeightType, sample};
use mobilediffusion_runtime::Timer;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What is measured on, and how thoroughly.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) device: &'a Device,
    pub(super) timer: Option<&'a Timer<'a>>,
    pub(super) effort: Effort,
    /// End of the time that there is.
    pub(super) until: Option<Instant>,
}

/// Kernels with the shapes at which they are timed.
type Families = Vec<(&'static Family, Vec<Case>)>;

/// Checks and times the kernels, until the device is lost. Shapes with wrong results have no row, so that their times are
/// compared with nothing; they are what went wrong.
pub(super) fn run(subject: Subject<'_>, families: &[&'static Family]) -> Result<Measured, Failure> {
    let peaks = Peaks::measure(subject.device, subject.timer, subject.effort)?;
    result(&peaks.to_string())?;
    result(&heading())?;
    let mut families: Families = families.iter().map(|family| (*family, (family.model_shapes)())).collect();
    if subject.until.is_some() {
        // What the time does not suffice for are then the kernels that matter least.
        let flops = |case: &Case| case.kernel.cost().flops;
        families.sort_by_key(|(_, cases)| Reverse(cases.iter().map(flops).sum::<u64>()));
    }
    subject.compile(&families);
    let shapes_left = families.iter().map(|(_, cases)| cases.len()).sum();
    let (rows, wrong, left_out) = (Vec::new(), Vec::new(), LeftOut::default());
    let mut report = Report { subject, peaks, shapes_left, rows, wrong, left_out };
    for (family, cases) in families {
        if report.family(family, &cases)?.is_break() {
            break;
        }
    }
    Ok(report.measured())
}

impl Subject<'_> {
    /// Returns the time that is left, if it is limited.
    fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Compiles what will be timed on all threads, in half of the time. Software drivers compile one shader at a time.
    fn compile(&self, families: &Families) {
        let Some(device) = self.device.gpu() else { return };
        if self.effort.software {
            return;
        }
        let machine = Machine::of(device);
        let kernels = families.iter().flat_map(|(_, cases)| cases).map(|case| case.kernel.as_ref());
        let chosen = kernels.map(|kernel| (kernel, vec![choose(kernel, &machine)]));
        compile("compiling", &[device.gpu], device.storage, chosen, time_left(half(self.until)));
    }
}

/// Numbers of shapes that were left out, by the reason.
#[derive(Default)]
struct LeftOut {
    /// The device has no memory for them.
    no_room: usize,
    /// They have too many floating-point operations.
    too_long: usize,
    /// They were not reached within the time limit.
    too_late: usize,
    /// They were not reached before the device was lost.
    lost: usize,
}

/// What was measured so far.
struct Report<'a> {
    subject: Subject<'a>,
    peaks: Peaks,
    /// Number of shapes that are still to come.
    shapes_left: usize,
    rows: Vec<Value>,
    /// Kernels and shapes with wrong results, with the reasons.
    wrong: Vec<String>,
    left_out: LeftOut,
}

impl Report<'_> {
    /// Checks and times a kernel at all of its shapes. Breaks off if the device is lost.
    fn family(&mut self, family: &Family, cases: &[Case]) -> Result<ControlFlow<()>, Failure> {
        let has_time = self.subject.left().is_none_or(|left| !left.is_zero());
        // The CPU form is what is timed here, or what the GPU is compared with.
        if has_time && let Some(why) = check_cpu_form(family, self.subject.device.storage().weights) {
            note(&format!("left out: {}: its CPU form is wrong: {why}", family.name));
            self.wrong.push(format!("{} on the CPU: {why}", family.name));
            self.shapes_left -= cases.len();
            return Ok(ControlFlow::Continue(()));
        }
        for case in cases {
            if self.shape(case)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Checks and times a shape. Breaks off if the device is lost; any other failure concerns this shape alone.
    fn shape(&mut self, case: &Case) -> Result<ControlFlow<()>, Failure> {
        let Subject { device, timer, effort, .. } = self.subject;
        let share = self.subject.left().map(|left| left.div_f64(self.shapes_left as f64));
        self.shapes_left -= 1;
        let kernel = case.kernel.as_ref();
        let name = || format!("{} {}", kernel.name(), sample::text(kernel));
        if share.is_some_and(|share| share.is_zero()) {
            self.left_out.too_late += 1;
        } else if kernel.cost().flops > effort.most_flops {
            self.left_out.too_long += 1;
        } else {
            match measure::shape(device, timer, case, effort.within(share)) {
                Ok(measure::Measured { wrong: Some(why), .. }) => {
                    note(&format!("left out: {}: {why}", name()));
                    self.wrong.push(why);
                }
                Ok(measured) => {
                    let row = Row::new(case, &measured, &self.peaks, device);
                    result(&row.line())?;
                    self.rows.push(row.json());
                }
                // Other shapes may still fit into the device's memory.
                Err(error) if is_too_large(&error) => {
                    self.left_out.no_room += 1;
                    note(&format!("left out: {}: {}", name(), one_line(&error.to_string())));
                }
                Err(error) => {
                    self.wrong.push(format!("{}: {error}", name()));
                    if matches!(device, Device::Gpu(gpu, _) if gpu.wait().is_err()) {
                        self.left_out.lost = self.shapes_left;
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Says what was left out, and returns the numbers beside what was wrong.
    fn measured(self) -> Measured {
        let Self { subject, peaks, rows, wrong, left_out, .. } = self;
        let LeftOut { no_room, too_long, too_late, lost } = left_out;
        if too_long > 0 {
            let most = subject.effort.most_flops / 1_000_000;
            note(&format!("{too_long} shapes of more than {most} MFLOP were left out"));
        }
        if too_late > 0 {
            note(&format!("{too_late} shapes were left out because the time was up"));
        }
        let left_out = json!({ "no_room": no_room, "too_long": too_long, "too_late": too_late, "lost": lost });
        let numbers = json!({ "peaks": peaks.json(), "shapes": rows, "left_out": left_out });
        (numbers, (!wrong.is_empty()).then(|| format!("wrong results: {}", wrong.join("; "))))
    }
}

/// Checks the CPU form against its reference on the family's built-in cases. Returns the first failure.
fn check_cpu_form(family: &Family, weights: WeightType) -> Option<String> {
    let verdict = |(seed, case): (u64, Case)| match check_case(&Device::Cpu(weights), &case, seed) {
        Ok(verdict) => verdict.failure.map(|failure| format!("{:?} {failure}", case.kernel)),
        Err(error) => Some(error.to_string()),
    };
    (1..).zip((family.cases)()).find_map(verdict)
}
