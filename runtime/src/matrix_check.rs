//! A trial of the matrix units of every device that is opened. wgpu's support for cooperative matrices is experimental,
//! and a driver may list a product that it does not implement, so that the result is all zeros. The trial multiplies
//! matrices of small integers and compares the result exactly. Where subgroups have several sizes, as on AMD's GPUs, it
//! also tells the size that shaders with matrices get, since no API does.

use crate::adapter::Caps;
use crate::{Binding, Bound, Gpu, Role, RuntimeError};
use std::sync::atomic::Ordering;

/// Invocations of the trial's workgroup: as many as most tiles of matrices have.
const INVOCATIONS: u32 = 256;

/// Fewest invocations of a subgroup, and thus the greatest number of products: no known device has smaller subgroups.
const LEAST: u32 = 4;

/// Body of the trial shader, which follows the constants. Invocations fill both factors in workgroup memory, as the
/// kernels do; `w` is stored by columns. Every subgroup stores its own product, and the size of subgroups follows the
/// last possible one.
const PRODUCT: &str = "
@group(0) @binding(0) var<storage, read_write> products: array<f32>;
var<workgroup> x: array<f16, EDGE * EDGE>;
var<workgroup> w: array<f16, EDGE * EDGE>;

fn multiply(thread: u32, size: u32) {
    for (var i = thread; i < EDGE * EDGE; i += INVOCATIONS) {
        x[i] = f16(i32(3u * (i / EDGE) + i % EDGE) % 5 - 2);
        w[i] = f16(i32(i / EDGE + 2u * (i % EDGE)) % 7 - 3);
    }
    workgroupBarrier();
    let rows = coopLoadT<Left>(&x[0], EDGE);
    let columns = coopLoad<Right>(&w[0], EDGE);
    coopStoreT(coopMultiplyAdd(rows, columns, Sum()), &products[thread / size * EDGE * EDGE], EDGE);
    if thread == 0u { products[MOST * EDGE * EDGE] = f32(size); }
}
";

impl Gpu {
    /// Removes matrix shapes whose trial product is wrong from the capabilities, so that no kernel uses them, and
    /// notes the size of subgroups if it was not known.
    pub(crate) fn keep_working_matrices(mut self) -> Self {
        let Caps { mut matrices, mut subgroup_size, .. } = self.caps().clone();
        matrices.retain(|shape| {
            if !shape.is_tried() {
                return true;
            }
            let products = self.products(shape.m, subgroup_size);
            let found = products.ok().and_then(|products| subgroup_of(shape.m, &products));
            let works = found.is_some() && subgroup_size.is_none_or(|known| Some(known) == found);
            subgroup_size = subgroup_size.or(found);
            works
        });
        self.adapter.caps = Caps { matrices, subgroup_size, ..self.adapter.caps };
        // The buffers and pipelines of the trial are not counted.
        [&self.buffers_made, &self.pipelines_made].iter().for_each(|made| made.store(0, Ordering::Relaxed));
        self
    }

    /// Returns what the trial shader stores for matrices of `edge` x `edge`. Where the size of subgroups is not known,
    /// the shader asks for it.
    fn products(&self, edge: u32, subgroup_size: Option<u32>) -> Result<Vec<f32>, RuntimeError> {
        let (builtin, size) = match subgroup_size {
            Some(known) => (String::new(), format!("{known}u")),
            None => (", @builtin(subgroup_size) size: u32".to_owned(), "size".to_owned()),
        };
        let most = INVOCATIONS / LEAST;
        let text = format!(
            "enable f16;\nenable wgpu_cooperative_matrix;\nconst EDGE = {edge}u;\nconst INVOCATIONS = {INVOCATIONS}u;\n\
             const MOST = {most}u;\nalias Left = coop_mat{edge}x{edge}<f16, A>;\nalias Right = coop_mat{edge}x{edge}<f16, B>;\n\
             alias Sum = coop_mat{edge}x{edge}<f32, C>;\n{PRODUCT}\n@compute @workgroup_size(INVOCATIONS)\n\
             fn main(@builtin(local_invocation_index) thread: u32{builtin}) {{ multiply(thread, {size}); }}\n"
        );
        let bytes = 4 * u64::from(most * edge * edge + 1);
        let products = self.buffer("products", bytes, Role::Storage)?;
        let staging = self.buffer("products staging", bytes, Role::Staging)?;
        let pipeline = self.pipeline("matrix trial", &text, &[Binding::Write])?;
        let dispatch = self.dispatch("matrix trial", &pipeline, &[Bound::whole(&products)], [1, 1, 1])?;
        self.submit([&dispatch])?;
        let found = self.download(&products, &staging)?;
        Ok(found.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// Returns the size of subgroups if every subgroup of the trial stored the right product.
fn subgroup_of(edge: u32, found: &[f32]) -> Option<u32> {
    let (size, products) = found.split_last()?;
    let size = (LEAST..=INVOCATIONS).find(|possible| possible.is_power_of_two() && *possible as f32 == *size)?;
    let mut products = products.chunks((edge * edge) as usize).take((INVOCATIONS / size) as usize);
    products.all(|product| is_product(edge, product)).then_some(size)
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
    use super::{INVOCATIONS, LEAST, is_product, subgroup_of};
    use crate::{AdapterKind, Gpu, adapter};

    fn x(row: u32, k: u32) -> f32 {
        ((3 * row + k) % 5) as f32 - 2.0
    }

    fn w(col: u32, k: u32) -> f32 {
        ((col + 2 * k) % 7) as f32 - 3.0
    }

    /// Returns a matrix from its elements by row and column.
    fn all(edge: u32, of: &dyn Fn(u32, u32) -> f32) -> Vec<f32> {
        (0..edge * edge).map(|at| of(at / edge, at % edge)).collect()
    }

    fn product(edge: u32) -> Vec<f32> {
        all(edge, &|row, col| (0..edge).map(|k| x(row, k) * w(col, k)).sum())
    }

    #[test]
    fn zeros_and_transposed_products_are_seen() {
        for edge in [8, 16] {
            let right = product(edge);
            assert!(is_product(edge, &right));
            assert!(!is_product(edge, &right[1..]), "one element is missing");
            assert!(!is_product(edge, &vec![0.0; right.len()]), "nothing was multiplied");
            assert!(
                !is_product(edge, &all(edge, &|row, col| right[(col * edge + row) as usize])),
                "the product is transposed"
            );
            assert!(
                !is_product(edge, &all(edge, &|row, col| (0..edge).map(|k| x(row, k) * w(k, col)).sum())),
                "w is read by rows"
            );
        }
    }

    #[test]
    fn every_subgroup_must_store_its_product() {
        let square = 64;
        let mut found = vec![0.0; (INVOCATIONS / LEAST * square + 1) as usize];
        assert_eq!(subgroup_of(8, &found), None, "nothing was stored");
        *found.last_mut().expect("it has a size") = 32.0;
        let eight = product(8).repeat(8);
        found[..eight.len()].copy_from_slice(&eight);
        assert_eq!(subgroup_of(8, &found), Some(32));
        *found.last_mut().expect("it has a size") = 16.0;
        assert_eq!(subgroup_of(8, &found), None, "only half of the subgroups stored a product");
        for size in [f32::NAN, 0.0, 33.0, 512.0] {
            *found.last_mut().expect("it has a size") = size;
            assert_eq!(subgroup_of(8, &found), None, "subgroups of {size}");
        }
    }

    #[test]
    fn the_trial_finds_the_size_that_the_driver_reports() {
        let all = pollster::block_on(adapter::enumerate());
        for (index, raw) in all.iter().enumerate() {
            let mut summary = adapter::summary(index, raw);
            let Some(known) = summary.caps.subgroup_size.filter(|_| summary.kind == AdapterKind::Software) else {
                continue;
            };
            let listed = summary.caps.matrices.clone();
            summary.caps.subgroup_size = None;
            let opened = pollster::block_on(Gpu::open_on(raw, summary, false)).expect("a listed adapter opens");
            assert_eq!((opened.caps().subgroup_size, &opened.caps().matrices), (Some(known), &listed));
        }
    }
}
