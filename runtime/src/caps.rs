//! Capabilities and limits of an adapter, and the features that a device is opened with.

use std::fmt;

/// Optional features of wgpu that are requested where the adapter offers them.
const FEATURES: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// Element type of a matrix operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixType {
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
    /// 32-bit integers, signed or unsigned.
    Integer,
}

impl fmt::Display for MatrixType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Integer => "integer",
        })
    }
}

/// Shape and types of a matrix multiply-accumulate that a subgroup computes in one operation: an `m x k` matrix times a
/// `k x n` matrix, added to an `m x n` matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// Number of rows of the left factor and of the accumulator.
    pub m: u32,
    /// Number of columns of the right factor and of the accumulator.
    pub n: u32,
    /// Number of columns of the left factor, which is the number of rows of the right factor.
    pub k: u32,
    /// Element type of both factors.
    pub input: MatrixType,
    /// Element type of the accumulator.
    pub sum: MatrixType,
}

impl MatrixShape {
    /// Returns the shape in which `m`, `n` and `k` all equal `edge`.
    pub fn square(edge: u32, input: MatrixType, sum: MatrixType) -> Self {
        Self { m: edge, n: edge, k: edge, input, sum }
    }

    /// Whether a device must pass a trial of this shape: square, f16 to f32. Kernels use no others.
    pub(crate) fn is_tried(&self) -> bool {
        *self == Self::square(self.m, MatrixType::F16, MatrixType::F32)
    }

    fn of(found: &wgpu::CooperativeMatrixProperties) -> Self {
        let of = |scalar| match scalar {
            wgpu::CooperativeScalarType::F16 => MatrixType::F16,
            wgpu::CooperativeScalarType::F32 => MatrixType::F32,
            wgpu::CooperativeScalarType::I32 | wgpu::CooperativeScalarType::U32 => MatrixType::Integer,
        };
        let (m, n, k) = (found.m_size, found.n_size, found.k_size);
        Self { m, n, k, input: of(found.ab_type), sum: of(found.cr_type) }
    }
}

impl fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{} {} to {}", self.m, self.n, self.k, self.input, self.sum)
    }
}

/// Capabilities and limits of an adapter, as far as kernels and planning depend on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Whether shaders can compute with and store native 16-bit floats (`enable f16`).
    pub shader_f16: bool,
    /// Whether timestamps can be written at the beginning and end of a pass.
    pub timestamps: bool,
    /// Whether the driver can export compiled pipelines, so that they can be kept in a file.
    pub pipeline_cache: bool,
    /// Number of invocations in a subgroup, in shaders that use matrix units. `None` on adapters whose matrix units are
    /// not used. Where Mesa's driver for AMD's GPUs (RADV) has subgroups of several sizes, it is also `None` until a
    /// device is open: a trial then tells the size.
    pub subgroup_size: Option<u32>,
    /// Matrix products that a subgroup computes in one operation (wgpu's "cooperative matrices"). On an open device,
    /// square products of f16 with an f32 accumulator are listed only if a trial product came out right.
    pub matrices: Vec<MatrixShape>,
    /// Largest range of a buffer that can be bound as storage, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Largest workgroup memory of a shader, in bytes.
    pub max_workgroup_bytes: u32,
    /// Largest number of invocations in a workgroup.
    pub max_invocations: u32,
    /// Largest number of workgroups along one axis of a grid.
    pub max_groups: u32,
    /// Largest number of storage buffers that a shader can bind.
    pub max_storage_buffers: u32,
    /// Required alignment of the offset of a uniform binding, in bytes.
    pub uniform_alignment: u32,
}

impl Caps {
    /// Capabilities that every WebGPU device has: the default limits and no optional feature.
    pub const PORTABLE: Self = Self {
        shader_f16: false,
        timestamps: false,
        pipeline_cache: false,
        subgroup_size: None,
        matrices: Vec::new(),
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 256 << 20,
        max_workgroup_bytes: 16 << 10,
        max_invocations: 256,
        max_groups: 65_535,
        max_storage_buffers: 8,
        uniform_alignment: 256,
    };

    /// Returns a description of the first limit that is below WebGPU's default, which every kernel relies on.
    pub(crate) fn below_portable(&self) -> Option<String> {
        let own = |caps: &Self| {
            [
                (caps.max_invocations.into(), "invocations in a workgroup"),
                (caps.max_workgroup_bytes.into(), "bytes of workgroup memory"),
                (caps.max_storage_buffers.into(), "storage buffers in a shader"),
                (caps.max_groups.into(), "workgroups along one axis"),
                (caps.max_binding_bytes, "bytes in a storage binding"),
                (caps.max_buffer_bytes, "bytes in a buffer"),
            ]
        };
        let limits = own(self).into_iter().zip(own(&Self::PORTABLE));
        let mut below = limits.filter(|((found, _), (expected, _))| found < expected);
        below.next().map(|((found, what), (expected, _))| format!("expected at least {expected} {what}, found {found}"))
    }

    pub(crate) fn new(features: wgpu::Features, limits: &wgpu::Limits) -> Self {
        Self {
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            pipeline_cache: features.contains(wgpu::Features::PIPELINE_CACHE),
            subgroup_size: None,
            matrices: Vec::new(),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_groups: limits.max_compute_workgroups_per_dimension,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
        }
    }

    pub(crate) fn of(adapter: &wgpu::Adapter) -> Self {
        let (features, info) = (adapter.features(), adapter.get_info());
        let caps = Self::new(features, &adapter.limits());
        if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            return caps;
        }
        let Some(subgroup_size) = subgroups_with_matrices(&info) else { return caps };
        let matrices = adapter.cooperative_matrix_properties().iter().map(MatrixShape::of).collect();
        Self { subgroup_size, matrices, ..caps }
    }
}

/// Returns the size of subgroups in shaders with matrices, or `Some(None)` if a trial on the device has to find it. `None`
/// if matrix units are not to be used.
fn subgroups_with_matrices(info: &wgpu::AdapterInfo) -> Option<Option<u32>> {
    let (least, most) = (info.subgroup_min_size, info.subgroup_max_size);
    match info.backend {
        // wgpu reports one range of sizes for all GPUs, and reports matrix units for some GPUs that are not Apple's. Only
        // Apple's are known to have matrix units, with subgroups of 32.
        wgpu::Backend::Metal => info.name.starts_with("Apple").then_some(Some(32)),
        _ if least == most => Some(Some(least)),
        // A driver may choose a size for every shader. What the trial finds holds for all only if the driver has one size
        // for matrices, as Mesa's for AMD does. Shaders that assume a wrong size would draw wrong pictures.
        _ => (info.driver == "radv").then_some(None),
    }
}

/// Returns the features to open a device with. Those that the adapter does not have are left out later.
pub(crate) fn features(caps: &Caps) -> wgpu::Features {
    // With the feature for subgroups, drivers choose a size of subgroups for every shader. It is for the trial product,
    // which reads the size.
    let reads_size = caps.subgroup_size.is_none() && caps.matrices.iter().any(MatrixShape::is_tried);
    if reads_size { FEATURES | wgpu::Features::SUBGROUP } else { FEATURES }
}

/// Returns the capabilities of a device whose matrix units failed, and the features to open it with.
pub(crate) fn without_matrices(caps: &Caps) -> (Caps, wgpu::Features) {
    let plain = Caps { matrices: Vec::new(), ..caps.clone() };
    let features = features(&plain) - wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    (plain, features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_units_need_subgroups_of_one_size() {
        let found = |backend, name: &str, driver: &str, sizes: [u32; 2]| {
            let info = wgpu::AdapterInfo {
                name: name.to_owned(),
                driver: driver.to_owned(),
                subgroup_min_size: sizes[0],
                subgroup_max_size: sizes[1],
                ..wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend)
            };
            subgroups_with_matrices(&info)
        };
        let (vulkan, metal) = (wgpu::Backend::Vulkan, wgpu::Backend::Metal);
        assert_eq!(found(vulkan, "NVIDIA H200", "NVIDIA", [32, 32]), Some(Some(32)));
        assert_eq!(found(vulkan, "AMD Radeon RX 7900", "radv", [32, 64]), Some(None), "the trial tells");
        assert_eq!(found(vulkan, "AMD Radeon RX 7900", "AMD proprietary driver", [32, 64]), None);
        assert_eq!(found(metal, "Apple M2", "", [4, 64]), Some(Some(32)));
        assert_eq!(found(metal, "AMD Radeon Pro", "", [4, 64]), None);
    }

    #[test]
    fn every_limit_is_read_from_its_own_place() {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: 1001,
            max_buffer_size: 1002,
            max_compute_workgroup_storage_size: 1003,
            max_compute_invocations_per_workgroup: 1004,
            max_compute_workgroups_per_dimension: 1005,
            max_storage_buffers_per_shader_stage: 1006,
            min_uniform_buffer_offset_alignment: 1007,
            // Limits whose names are easily taken for one of those above.
            max_uniform_buffer_binding_size: 1008,
            max_compute_workgroup_size_x: 1009,
            max_uniform_buffers_per_shader_stage: 1010,
            min_storage_buffer_offset_alignment: 1011,
            ..wgpu::Limits::default()
        };
        let expected = Caps {
            shader_f16: false,
            timestamps: false,
            pipeline_cache: false,
            subgroup_size: None,
            matrices: Vec::new(),
            max_binding_bytes: 1001,
            max_buffer_bytes: 1002,
            max_workgroup_bytes: 1003,
            max_invocations: 1004,
            max_groups: 1005,
            max_storage_buffers: 1006,
            uniform_alignment: 1007,
        };
        assert_eq!(Caps::new(wgpu::Features::empty(), &limits), expected, "no features");
        for (feature, with) in [
            (wgpu::Features::SHADER_F16, Caps { shader_f16: true, ..expected.clone() }),
            (wgpu::Features::TIMESTAMP_QUERY, Caps { timestamps: true, ..expected.clone() }),
            (wgpu::Features::PIPELINE_CACHE, Caps { pipeline_cache: true, ..expected.clone() }),
        ] {
            assert_eq!(Caps::new(feature, &limits), with, "{feature:?}");
        }
    }

    #[test]
    fn without_matrices_a_device_asks_neither_for_them_nor_for_the_trial() {
        let matrices = vec![MatrixShape::square(16, MatrixType::F16, MatrixType::F32)];
        let (matrix, subgroup) = (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, wgpu::Features::SUBGROUP);
        let caps = Caps { matrices, timestamps: true, ..Caps::PORTABLE };
        assert!(features(&caps).contains(matrix | subgroup), "the trial product needs both");
        let others = vec![MatrixShape::square(16, MatrixType::F16, MatrixType::F16)];
        let unused = features(&Caps { matrices: others, ..Caps::PORTABLE });
        assert!(!unused.contains(subgroup), "a shape that no kernel uses is not tried");
        let (plain, asked) = without_matrices(&caps);
        assert_eq!(plain, Caps { timestamps: true, ..Caps::PORTABLE }, "all else stays");
        assert_eq!(asked, FEATURES - matrix, "all else is asked for");
    }

    #[test]
    fn a_limit_below_the_portable_ones_is_named() {
        assert_eq!(Caps::PORTABLE.below_portable(), None);
        let defaults = Caps::new(wgpu::Features::empty(), &wgpu::Limits::default());
        assert_eq!(defaults.below_portable(), None, "WebGPU's defaults are the portable limits");
        for (caps, what) in [
            (Caps { max_invocations: 128, ..defaults.clone() }, "256 invocations in a workgroup, found 128"),
            (Caps { max_storage_buffers: 4, ..defaults.clone() }, "8 storage buffers in a shader, found 4"),
            (Caps { max_buffer_bytes: 1, ..defaults.clone() }, "268435456 bytes in a buffer, found 1"),
        ] {
            assert_eq!(caps.below_portable().expect("it is below"), format!("expected at least {what}"));
        }
    }
}
