//! Rows of the table of kernels, as text and as JSON.

use super::measure::Measured;
use super::peaks::Peaks;
use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::kernel::bytes_moved;
use mobilediffusion_kernels::{Case, sample};
use serde_json::{Value, json};

/// Formats the heading of the table.
pub(super) fn heading() -> String {
    format!(
        "{:18} {:>11} {:>11} {:>11} {:>9} {:>8} {:>6} {:>6} {:>6} {:8} {:10} shape",
        "kernel", "median us", "min us", "p90 us", "GFLOP/s", "GB/s", "%flops", "%copy", "%equal", "bound", "variant"
    )
}

/// Row of the table: one shape of one kernel.
#[derive(Debug)]
pub(super) struct Row {
    kernel: &'static str,
    shape: String,
    /// Sizes and switches of the problem, as a case file has them.
    params: Value,
    runs: usize,
    /// Median of the runs, in seconds.
    median: f64,
    /// Shortest run, in seconds.
    min: f64,
    /// 90th percentile of the runs, in seconds.
    p90: f64,
    /// Floating-point operations per second.
    flops: f64,
    /// Bytes moved per second.
    bytes: f64,
    /// `flops` in proportion to the measured peak. Algorithms that save multiplications may exceed 1.
    of_flops: f64,
    /// `bytes` in proportion to the measured peak of copies.
    of_copy: f64,
    /// Time of a copy that moves as many bytes, in proportion to `median`.
    of_equal_copy: f64,
    /// Whether `of_flops` refers to the peak of the matrix units.
    by_matrices: bool,
    /// Name of the kernel's variant; `None` on the CPU.
    variant: Option<&'static str>,
}

impl Row {
    pub(super) fn new(case: &Case, measured: &Measured, peaks: &Peaks, device: &Device) -> Self {
        let kernel = case.kernel.as_ref();
        let seconds = &measured.seconds;
        let at = |part: usize| seconds[(seconds.len() * part / 100).min(seconds.len() - 1)];
        // A pass shorter than the clock's tick counts as one nanosecond.
        let median = at(50).max(1e-9);
        let moved = bytes_moved(kernel, device.storage());
        let (flops, bytes) = (kernel.cost().flops as f64 / median, moved as f64 / median);
        let by_matrices = measured.variant.is_some_and(|variant| variant.needs.matrix.is_some());
        let peak = peaks.matrix_flops.filter(|_| by_matrices).unwrap_or(peaks.flops);
        Self {
            kernel: kernel.name(),
            shape: sample::text(kernel),
            params: kernel.params_json(),
            runs: seconds.len(),
            median,
            min: seconds[0],
            p90: at(90),
            flops,
            bytes,
            of_flops: flops / peak,
            of_copy: bytes / peaks.copies.rate(),
            of_equal_copy: peaks.copies.seconds(moved as u64) / median,
            by_matrices,
            variant: measured.variant.map(|variant| variant.name),
        }
    }

    /// Returns `compute` or `memory`, the peak that the kernel is closer to; `caches` if it moves more bytes per second than
    /// the copies did, which then are no limit.
    fn bound(&self) -> &'static str {
        match self.of_flops > self.of_copy {
            true => "compute",
            false if self.of_copy > 1.0 => "caches",
            false => "memory",
        }
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:18} {:11.1} {:11.1} {:11.1} {:9.1} {:8.2} {:6.1} {:6.1} {:6.1} {:8} {:10} {}",
            self.kernel,
            self.median * 1e6,
            self.min * 1e6,
            self.p90 * 1e6,
            self.flops / 1e9,
            self.bytes / 1e9,
            self.of_flops * 100.0,
            self.of_copy * 100.0,
            self.of_equal_copy * 100.0,
            self.bound(),
            self.variant.unwrap_or_default(),
            self.shape
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "kernel": self.kernel,
            "shape": self.shape,
            "params": self.params,
            "runs": self.runs,
            "median_us": self.median * 1e6,
            "min_us": self.min * 1e6,
            "p90_us": self.p90 * 1e6,
            "flops_per_second": self.flops,
            "bytes_per_second": self.bytes,
            "by_matrix_units": self.by_matrices,
            "part_of_flops": self.of_flops,
            "part_of_copy": self.of_copy,
            "part_of_equal_copy": self.of_equal_copy,
            "part_of_limit": self.of_flops.max(self.of_copy),
            "bound": self.bound(),
            "variant": self.variant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_kernels::variant::{MatrixUnit, Needs};
    use mobilediffusion_kernels::{Linear, Variant};

    /// A product of 2 * 64^3 operations that moves 48 KiB.
    const FLOPS: f64 = 524_288.0;
    const BYTES: u64 = 49_152;

    fn row(peaks: &Peaks, variant: Option<Variant>) -> Value {
        let case = Case::new(Linear { rows: 64, k: 64, cols: 64, ..Linear::default() });
        // 1 to 100 ms.
        let seconds = (1..=100).map(|run| f64::from(run) * 1e-3).collect();
        Row::new(&case, &Measured { seconds, wrong: None, variant }, peaks, &Device::CPU).json()
    }

    #[test]
    fn a_row_has_the_shares_of_the_peaks_in_the_median_of_the_times() {
        // The median is 51 ms, in which the device could compute twice as much. A copy of the largest size moves twice
        // the bytes in 15.3 ms.
        let copies = [(BYTES, 0.0102), (2 * BYTES, 0.0153)];
        let peaks = Peaks::of(&copies, 2.0 * FLOPS / 0.051, None);
        let row = row(&peaks, None);
        for (key, expected) in [
            ("min_us", 1e3),
            ("median_us", 51e3),
            ("p90_us", 91e3),
            ("flops_per_second", FLOPS / 0.051),
            ("bytes_per_second", BYTES as f64 / 0.051),
            ("part_of_flops", 0.5),
            ("part_of_copy", 0.15),
            ("part_of_equal_copy", 0.2),
            ("part_of_limit", 0.5),
        ] {
            let found = row[key].as_f64().expect("a number");
            assert!((found / expected - 1.0).abs() < 1e-9, "{key} is {found}, expected {expected}");
        }
    }

    #[test]
    fn the_nearer_peak_is_the_bound() {
        let unit = MatrixUnit { edge: 16, subgroup: 32 };
        let by_matrices = Variant { needs: Needs { matrix: Some(unit), ..Needs::PORTABLE }, ..Variant::ONLY };
        let flops = 2.0 * FLOPS / 0.051;
        // Times of a copy of as many bytes, and of ten times the operations by matrix units.
        for (copy, matrix_flops, variant, bound) in [
            (0.0051, None, Variant::ONLY, "compute"),
            (0.0306, Some(10.0 * flops), Variant::ONLY, "memory"),
            (0.0051, Some(10.0 * flops), Variant::ONLY, "compute"),
            (0.0051, Some(10.0 * flops), by_matrices, "memory"),
            (0.0051, None, by_matrices, "compute"),
            (0.102, None, Variant::ONLY, "caches"),
        ] {
            let found = row(&Peaks::of(&[(BYTES, copy)], flops, matrix_flops), Some(variant));
            let by_matrices = variant.needs.matrix.is_some();
            assert_eq!((&found["bound"], &found["by_matrix_units"]), (&bound.into(), &by_matrices.into()), "{found}");
        }
    }
}
