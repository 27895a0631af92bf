//! A trial of the matrix units of every device that is opened. wgpu's support for cooperative matrices is experimental,
//! and a driver may list a product that it does not implement, so that the result is all zeros. The trial multiplies
//! matrices of small integers and compares the result exactly.

use crate::adapter::{MatrixShape, MatrixType};
use crate::{Binding, Bound, Gpu, Role, RuntimeError};
use std::sync::atomic::Ordering;

/// Body of the trial shader, which follows the constants. Invocations fill both factors in workgroup memory, as the
/// kernels do; `w` is stored by columns.
const PRODUCT: &str = "
@group(0) @binding(0) var<storage, read_write> products: array<f32>;
var<workgroup> x: array<f16, EDGE * EDGE>;
var<workgroup> w: array<f16, EDGE * EDGE>;

@compute @workgroup_size(SUBGROUP)
fn main(@builtin(local_invocation_index) thread: u32) {
    for (var i = thread; i < EDGE * EDGE; i += SUBGROUP) {
        x[i] = f16(i32(3u * (i / EDGE) + i % EDGE) % 5 - 2);
        w[i] = f16(i32(i / EDGE + 2u * (i % EDGE)) % 7 - 3);
    }
    workgroupBarrier();
    let rows = coopLoadT<Left>(&x[0], EDGE);
    let columns = coopLoad<Right>(&w[0], EDGE);
    coopStoreT(coopMultiplyAdd(rows, columns, Sum()), &products[0], EDGE);
}
";

impl Gpu {
    /// Removes matrix shapes whose trial product is wrong from the capabilities, so that no kernel uses them.
    pub(crate) fn keep_working_matrices(mut self) -> Self {
        let Some(subgroup) = self.caps().subgroup_size else { return self };
        let mut matrices = self.caps().matrices.clone();
        matrices.retain(|shape| {
            let known = *shape == MatrixShape::square(shape.m, MatrixType::F16, MatrixType::F32);
            !known || self.product(shape.m, subgroup).is_ok_and(|found| is_product(shape.m, &found))
        });
        self.adapter.caps.matrices = matrices;
        // The buffers and pipelines of the trial are not counted.
        [&self.buffers_made, &self.pipelines_made].iter().for_each(|made| made.store(0, Ordering::Relaxed));
        self
    }

    /// Computes the trial product of `edge` x `edge` matrices on the device.
    fn product(&self, edge: u32, subgroup: u32) -> Result<Vec<f32>, RuntimeError> {
        let sizes = format!(
            "enable f16;\nenable wgpu_cooperative_matrix;\nconst EDGE = {edge}u;\nconst SUBGROUP = {subgroup}u;\n\
             alias Left = coop_mat{edge}x{edge}<f16, A>;\nalias Right = coop_mat{edge}x{edge}<f16, B>;\n\
             alias Sum = coop_mat{edge}x{edge}<f32, C>;\n"
        );
        let bytes = 4 * u64::from(edge * edge);
        let products = self.buffer("products", bytes, Role::Storage)?;
        let staging = self.buffer("products staging", bytes, Role::Staging)?;
        let pipeline = self.pipeline("matrix trial", &(sizes + PRODUCT), &[Binding::Write])?;
        let dispatch = self.dispatch("matrix trial", &pipeline, &[Bound::whole(&products)], [1, 1, 1])?;
        self.submit([&dispatch])?;
        let found = self.download(&products, &staging)?;
        Ok(found.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// Returns whether `found` is the product of the factors that the trial shader makes.
fn is_product(edge: u32, found: &[f32]) -> bool {
    let x = |row: u32, k: u32| f64::from((3 * row + k) % 5) - 2.0;
    let w = |col: u32, k: u32| f64::from((col + 2 * k) % 7) - 3.0;
    let sum = |row, col| (0..edge).map(|k| x(row, k) * w(col, k)).sum::<f64>();
    let wanted = (0..edge * edge).map(|at| sum(at / edge, at % edge));
    found.len() == (edge * edge) as usize && wanted.zip(found).all(|(wanted, found)| wanted == f64::from(*found))
}

#[cfg(test)]
mod tests {
    use super::is_product;

    #[test]
    fn zeros_and_transposed_products_are_seen() {
        for edge in [8, 16] {
            let x = |row: u32, k: u32| ((3 * row + k) % 5) as f32 - 2.0;
            let w = |col: u32, k: u32| ((col + 2 * k) % 7) as f32 - 3.0;
            let all =
                |of: &dyn Fn(u32, u32) -> f32| (0..edge * edge).map(|at| of(at / edge, at % edge)).collect::<Vec<_>>();
            let right = all(&|row, col| (0..edge).map(|k| x(row, k) * w(col, k)).sum());
            assert!(is_product(edge, &right));
            assert!(!is_product(edge, &right[1..]), "one element is missing");
            assert!(!is_product(edge, &vec![0.0; right.len()]), "nothing was multiplied");
            assert!(
                !is_product(edge, &all(&|row, col| right[(col * edge + row) as usize])),
                "the product is transposed"
            );
            assert!(
                !is_product(edge, &all(&|row, col| (0..edge).map(|k| x(row, k) * w(k, col)).sum())),
                "w is read by rows"
            );
        }
    }
}
