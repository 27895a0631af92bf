//! Rounding errors of weights that a device stores in fewer bits.

use crate::error::GraphError;
use crate::graph::row_len;
use crate::progress::Flow;
use crate::record::Recording;
use crate::weights::Weights;
use mobilediffusion_kernels::Storage;
use mobilediffusion_kernels::kernel::Shape;

/// Rounding error of one weight, or of several weights together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounding {
    /// Name of the weight in the checkpoint, or a title given by the caller for several.
    pub name: String,
    /// Shape in the checkpoint; empty for several weights.
    pub shape: Shape,
    /// Bytes on the device.
    pub bytes: usize,
    /// Largest absolute error within a row, relative to the largest magnitude in that row; the maximum over all rows. A
    /// row is one index of the first axis as it is stored: an output channel of a matrix, or one of its phases. With
    /// 8-bit storage it is at most 1/254.
    pub worst: f64,
    /// Sum of the squares of the values.
    pub(crate) squares: f64,
    /// Sum of the squares of the errors.
    pub moved_squares: f64,
}

impl Rounding {
    /// Returns the relative error in the L2 norm: `|stored - value| / |value|`.
    pub fn relative_l2(&self) -> f64 {
        if self.moved_squares == 0.0 { 0.0 } else { (self.moved_squares / self.squares).sqrt() }
    }

    /// Combines the errors of several weights under a new name.
    pub fn of_all<'a>(name: &str, each: impl IntoIterator<Item = &'a Self>) -> Self {
        let none = Self { name: name.to_owned(), ..Self::default() };
        each.into_iter().fold(none, |sum, one| Self {
            bytes: sum.bytes + one.bytes,
            worst: sum.worst.max(one.worst),
            squares: sum.squares + one.squares,
            moved_squares: sum.moved_squares + one.moved_squares,
            ..sum
        })
    }

    fn add(&mut self, row: &[f32], stored: &[f32]) {
        let (mut largest, mut worst) = (0.0_f64, 0.0_f64);
        for (value, stored) in row.iter().zip(stored) {
            let (value, moved) = (f64::from(*value), f64::from(*stored) - f64::from(*value));
            (largest, worst) = (largest.max(value.abs()), worst.max(moved.abs()));
            self.squares += value * value;
            self.moved_squares += moved * moved;
        }
        if worst > 0.0 {
            self.worst = self.worst.max(worst / largest);
        }
    }
}

/// Computes the rounding error of every weight of a recording when it is stored as `storage`, in order of first use.
///
/// Weights are loaded in chunks of about a million elements, so the memory needed is small.
///
/// # Errors
/// If the loader fails, or a value cannot be used.
pub fn rounding(recording: &Recording, weights: &Weights, storage: Storage) -> Result<Vec<Rounding>, GraphError> {
    weights.check(&mut |_, _| Flow::Continue)?;
    let mut all = Vec::new();
    for (sources, operand) in recording.weights() {
        for source in sources {
            let (name, shape) = (source.name.clone(), source.selected_shape());
            let mut found = Rounding { name, shape, ..Rounding::default() };
            weights.in_chunks(source, &operand, |shape, values| {
                weights.check_range(&source.name, (storage, operand.dtype), &values)?;
                found.bytes += storage.tensor_bytes(operand.dtype, &shape);
                let row = row_len(&shape);
                let stored = storage.rounded(operand.dtype, &shape, values.clone());
                values
                    .chunks(row.max(1))
                    .zip(stored.chunks(row.max(1)))
                    .for_each(|(row, stored)| found.add(row, stored));
                Ok(())
            })?;
            all.push(found);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, Linear, WeightLoader};
    use mobilediffusion_kernels::{DType, Device, WeightType};
    use std::error::Error;
    use std::ops::Range;

    #[test]
    fn errors_of_several_weights_are_those_of_all_their_values() {
        let of = |bytes, worst, squares, moved_squares| {
            let (name, shape) = ("one".to_owned(), vec![2, 2]);
            Rounding { name, shape, bytes, worst, squares, moved_squares }
        };
        let both = Rounding::of_all("both", [&of(4, 0.5, 9.0, 1.0), &of(8, 0.25, 16.0, 3.0)]);
        let (name, shape) = ("both".to_owned(), Shape::default());
        assert_eq!(both, Rounding { name, shape, bytes: 12, worst: 0.5, squares: 25.0, moved_squares: 4.0 });
        assert_eq!((both.relative_l2(), Rounding::default().relative_l2()), (0.4, 0.0));
    }

    struct Rows;

    impl WeightLoader for Rows {
        fn load_part(
            &self,
            _: &str,
            _: &[usize],
            part: Range<usize>,
        ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
            // In 8 bits, -8 is 15.875 steps of its row, and 0.5 is 63.5.
            Ok([64.0, -8.0, 1.0, 0.5][part].to_vec())
        }
    }

    #[test]
    fn an_error_is_relative_to_the_largest_value_of_its_row() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 2], DType::Elem);
        let y = graph.linear(&x, "own", Linear { cols: 2, ..Linear::default() }).expect("it fits");
        graph.output("y", &y);
        let weights = Weights::new(Device::CPU, Box::new(Rows));
        let int8 = Storage::F32.with_weights(WeightType::Int8);
        let found = rounding(&Recording::new(graph), &weights, int8).expect("they are finite");
        let [Rounding { worst, moved_squares, .. }] = found[..] else { panic!("one weight: {found:?}") };
        assert!((worst - 1.0 / 254.0).abs() < 1e-6, "{worst}");
        let expected = (8.0_f64 / 127.0).powi(2) + (0.5_f64 / 127.0).powi(2);
        assert!((moved_squares - expected).abs() < 1e-6, "{moved_squares}");
    }
}
