//! Problems: their sizes from a row of `bench`, their values, and a sample of the results computed in f64.

use serde_json::Value;

/// Number of results that are checked.
const SAMPLED: usize = 64;

/// Problem to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Problem {
    /// Product of `[rows, k]` and `[cols, k]` transposed.
    Product { rows: usize, k: usize, cols: usize },
    /// Convolution 3x3 with stride 1 and padding 1, of one image `[ci, h, w]` with weights `[co, ci, 3, 3]`.
    Conv { h: usize, w: usize, ci: usize, co: usize },
}

impl Problem {
    /// Returns the problem of a row, or `None` for kernels and strides that are not compared.
    pub(crate) fn of(row: &Value) -> Option<Self> {
        let (kernel, shape) = (row["kernel"].as_str()?, row["shape"].as_str()?);
        let size = |name: &str| {
            let value = shape.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))?;
            value.parse::<usize>().ok()
        };
        match kernel {
            "linear" => Some(Self::Product { rows: size("rows")?, k: size("k")?, cols: size("cols")? }),
            // Some rows leave out sizes that are one.
            "conv2d" if [size("n"), size("stride"), size("upsample")].iter().all(|s| s.unwrap_or(1) == 1) => {
                let fits = size("kernel").unwrap_or(3) == 3;
                fits.then_some(Self::Conv { h: size("h")?, w: size("w")?, ci: size("ci")?, co: size("co")? })
            }
            _ => None,
        }
    }

    /// Returns both operands, in whole sixteenths below one. f16 holds them exactly, and f32 holds every sum of their
    /// products exactly, so a peer in f32 has no error unless its algorithm rounds.
    pub(crate) fn operands(&self) -> (Vec<f32>, Vec<f32>) {
        let (left, right) = match *self {
            Self::Product { rows, k, cols } => (rows * k, cols * k),
            Self::Conv { h, w, ci, co } => (ci * h * w, co * ci * 9),
        };
        // Residues of a prime, so that neighbouring rows differ.
        let values = |len: usize, step: usize| (0..len).map(move |i| ((i * step) % 31) as f32 / 16.0 - 15.0 / 16.0);
        (values(left, 7).collect(), values(right, 11).collect())
    }

    /// Returns the largest error of a sample of results, relative to the largest result in it.
    pub(crate) fn error(&self, results: &[f32]) -> f64 {
        let (left, right) = self.operands();
        let (mut worst, mut largest) = (0.0_f64, 1e-9_f64);
        for i in 0..SAMPLED {
            let at = i * (results.len() - 1) / (SAMPLED - 1);
            let exact = self.exact(at, &left, &right);
            largest = largest.max(exact.abs());
            // NaN counts as an infinite error.
            let error = (f64::from(results[at]) - exact).abs();
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
        worst / largest
    }

    fn exact(&self, at: usize, left: &[f32], right: &[f32]) -> f64 {
        let times = |a: usize, b: usize| f64::from(left[a]) * f64::from(right[b]);
        match *self {
            Self::Product { k, cols, .. } => {
                let (row, col) = (at / cols, at % cols);
                (0..k).map(|i| times(row * k + i, col * k + i)).sum()
            }
            Self::Conv { h, w, ci, .. } => {
                let (out, y, x) = (at / (h * w), at / w % h, at % w);
                let taps = (0..ci).flat_map(|c| (0..9).map(move |tap| (c, tap / 3, tap % 3)));
                let inside = taps.filter(|(_, dy, dx)| (1..=h).contains(&(y + dy)) && (1..=w).contains(&(x + dx)));
                inside
                    .map(|(c, dy, dx)| times((c * h + y + dy - 1) * w + x + dx - 1, ((out * ci + c) * 3 + dy) * 3 + dx))
                    .sum()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_results_are_seen() {
        for problem in [Problem::Product { rows: 3, k: 40, cols: 7 }, Problem::Conv { h: 4, w: 5, ci: 2, co: 3 }] {
            let (left, right) = problem.operands();
            let len = if matches!(problem, Problem::Product { .. }) { 21 } else { 60 };
            let exact: Vec<f32> = (0..len).map(|at| problem.exact(at, &left, &right) as f32).collect();
            assert_eq!(problem.error(&exact), 0.0, "f32 holds them");
            assert_eq!(problem.error(&vec![0.0; len]), 1.0, "nothing was computed");
            for wrong in [1e3, f32::NAN] {
                let mut results = exact.clone();
                results[len / 2] = wrong;
                assert!(problem.error(&results) > 1.0, "{problem:?}: {wrong} in the middle");
            }
            let mut turned = exact.clone();
            turned.rotate_left(1);
            assert!(problem.error(&turned) > 0.1, "{problem:?}: results one place off");
        }
    }
}
