//! Times of copies of several sizes on a device: the limit of kernels that do little else than move bytes.

use super::Effort;
use super::peaks::{best, shortest};
use mobilediffusion_runtime::{Binding, Bound, Role, RuntimeError, Timer};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fmt;

/// Shader of a copy: every invocation copies [`COPIES_EACH`] vectors. Expects that number before it.
const COPY: &str = "
@group(0) @binding(0) var<storage, read> copied: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> copies: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * 256u * COPIES_EACH + thread;
    for (var i = 0u; i < COPIES_EACH; i++) { copies[first + 256u * i] = copied[first + 256u * i]; }
}
";

/// Vectors that an invocation of [`COPY`] copies.
const COPIES_EACH: u32 = 4;

/// Bytes that a workgroup of [`COPY`] copies.
const GROUP: u64 = 16 * 256 * COPIES_EACH as u64;

/// Factor from one size to the next.
const FACTOR: u64 = 4;

/// Copies as pairs of the bytes moved, read and written together, and the shortest time in seconds. Sizes ascend to one
/// that is larger than the caches that matter.
#[derive(Clone, Debug)]
pub(crate) struct Copies(Vec<(u64, f64)>);

impl Copies {
    /// Returns copies of these sizes and times, for tests.
    #[cfg(test)]
    pub(super) fn of(copies: &[(u64, f64)]) -> Self {
        Self(copies.to_vec())
    }

    /// Measures copies on the CPU, by all threads.
    pub(super) fn on_cpu(effort: Effort) -> Self {
        let most = usize::try_from(largest(effort) / 4).expect("fits into memory");
        let (from, mut to) = (vec![1.0_f32; most], vec![0.0_f32; most]);
        let sizes = sizes(largest(effort) / GROUP).into_iter();
        let copies = sizes.map(|groups| {
            let len = usize::try_from(groups * GROUP / 4).expect("at most the largest");
            let part = len.div_ceil(rayon::current_num_threads());
            let copy = || -> Result<(), Infallible> {
                let parts = to[..len].par_chunks_mut(part).zip(from[..len].par_chunks(part));
                parts.for_each(|(to, from)| to.copy_from_slice(from));
                Ok(())
            };
            let Ok(seconds) = best(7, copy);
            (2 * groups * GROUP, seconds)
        });
        Self(copies.collect())
    }

    /// Measures copies on a GPU by a shader. The largest is made by the device's own command as well; the faster counts.
    pub(super) fn on_gpu(timer: &Timer<'_>, effort: Effort) -> Result<Self, RuntimeError> {
        let (gpu, caps) = (timer.gpu(), timer.gpu().caps());
        let groups = largest(effort).min(caps.max_buffer_bytes / 4).min(caps.max_binding_bytes) / GROUP;
        let groups = groups.min(caps.max_groups.into());
        let from = gpu.buffer("copied from", groups * GROUP, Role::Storage)?;
        let to = gpu.buffer("copied to", groups * GROUP, Role::Storage)?;
        let text = format!("const COPIES_EACH = {COPIES_EACH}u;{COPY}");
        let pipeline = gpu.pipeline("copies", &text, &[Binding::Read, Binding::Write])?;
        let mut copies = Vec::new();
        for groups in sizes(groups) {
            let grid = [u32::try_from(groups).expect("at most as many as an axis has"), 1, 1];
            let dispatch = gpu.dispatch("copies", &pipeline, &[Bound::whole(&from), Bound::whole(&to)], grid)?;
            copies.push((2 * groups * GROUP, shortest(timer, &[dispatch], effort)?));
        }
        // Several copies per wait, so that the latency of a submission does not count.
        let repeats = if effort.software { 1 } else { 16 };
        let by_command = best(5, || {
            (0..repeats).try_for_each(|_| gpu.copy(&from, &to))?;
            gpu.wait()
        })?;
        if let Some((_, seconds)) = copies.last_mut() {
            *seconds = seconds.min(by_command / f64::from(repeats));
        }
        Ok(Self(copies))
    }

    /// Returns the bytes that the largest copy moves in a second.
    pub(super) fn rate(&self) -> f64 {
        self.0.last().map_or(f64::NAN, |(bytes, seconds)| *bytes as f64 / seconds)
    }

    /// Returns the seconds that a copy takes which moves so many bytes: on a line between two sizes, as long as the
    /// smallest below it, and at the rate of the largest beyond it.
    pub(super) fn seconds(&self, bytes: u64) -> f64 {
        let after = self.0.partition_point(|(size, _)| *size < bytes);
        match (after.checked_sub(1).map(|before| self.0[before]), self.0.get(after)) {
            (None, first) => first.map_or(f64::NAN, |(_, seconds)| *seconds),
            (Some(_), None) => bytes as f64 / self.rate(),
            (Some((less, least)), Some((more, most))) => {
                least + (most - least) * (bytes - less) as f64 / (more - less) as f64
            }
        }
    }

    /// Returns the sizes and times as JSON.
    pub(super) fn json(&self) -> Value {
        self.0.iter().map(|(bytes, seconds)| json!({ "bytes": bytes, "seconds": seconds })).collect()
    }
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |(bytes, seconds): &(u64, f64)| format!("{:.1} MB {:.1} us", *bytes as f64 / 1e6, seconds * 1e6);
        write!(f, "copies: {}", self.0.iter().map(text).collect::<Vec<_>>().join(", "))
    }
}

/// Returns the size in bytes of the largest buffer to copy, larger than the caches that matter.
fn largest(effort: Effort) -> u64 {
    if effort.quick || effort.software { 64 << 20 } else { 256 << 20 }
}

/// Returns ascending numbers of workgroups, of which the last is `most`.
fn sizes(most: u64) -> Vec<u64> {
    let mut sizes: Vec<u64> =
        std::iter::successors(Some(most), |size| (*size > FACTOR).then(|| size / FACTOR)).collect();
    sizes.reverse();
    sizes
}

#[cfg(test)]
mod tests {
    use super::{Copies, sizes};

    #[test]
    fn a_copy_of_any_size_has_a_time() {
        let copies = Copies(vec![(100, 1.0), (400, 2.0), (1600, 8.0)]);
        for (bytes, seconds) in [(0, 1.0), (100, 1.0), (250, 1.5), (400, 2.0), (1000, 5.0), (1600, 8.0), (3200, 16.0)] {
            assert_eq!(copies.seconds(bytes), seconds, "{bytes} bytes");
        }
        assert_eq!(copies.rate(), 200.0);
    }

    #[test]
    fn sizes_ascend_to_the_largest() {
        assert_eq!(sizes(4096), [4, 16, 64, 256, 1024, 4096]);
        assert_eq!(sizes(3), [3]);
    }
}
