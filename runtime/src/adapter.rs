//! What this machine has to compute on, as plain data, and the rule that chooses.

use crate::error::RuntimeError;
use std::fmt;
use std::sync::LazyLock;

/// What we use where an adapter has it.
pub(crate) const FEATURES: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// A type of numbers that matrix units know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixType {
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
    /// 32-bit integers, with or without a sign.
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

/// A product of matrices that a subgroup computes in one operation: `m x k` times `k x n`, added to `m x n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// Rows of the left factor and of the sums.
    pub m: u32,
    /// Columns of the right factor and of the sums.
    pub n: u32,
    /// Columns of the left factor, rows of the right one.
    pub k: u32,
    /// Type of both factors.
    pub input: MatrixType,
    /// Type of the sums.
    pub sum: MatrixType,
}

impl MatrixShape {
    /// That of square matrices.
    pub fn square(edge: u32, input: MatrixType, sum: MatrixType) -> Self {
        Self { m: edge, n: edge, k: edge, input, sum }
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

/// What of an adapter matters to us, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Native 16-bit floats in shaders and storage.
    pub shader_f16: bool,
    /// Timestamps at the edges of a pass.
    pub timestamps: bool,
    /// Compiled pipelines can be kept in a file.
    pub pipeline_cache: bool,
    /// Invocations of a subgroup, if all have as many.
    pub subgroup_size: Option<u32>,
    /// Products of matrices that a subgroup computes in one operation: wgpu's "cooperative matrices".
    pub matrices: Vec<MatrixShape>,
    /// Largest range of a buffer that can be bound, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub max_workgroup_bytes: u32,
    /// Invocations in a workgroup.
    pub max_invocations: u32,
    /// Workgroups along an axis of a grid.
    pub max_groups: u32,
    /// Storage buffers a shader may bind.
    pub max_storage_buffers: u32,
    /// Alignment of a uniform binding's offset, in bytes.
    pub uniform_alignment: u32,
}

impl Caps {
    /// What every device of WebGPU has.
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

    fn new(features: wgpu::Features, limits: &wgpu::Limits) -> Self {
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

    fn of(adapter: &wgpu::Adapter) -> Self {
        let (features, info) = (adapter.features(), adapter.get_info());
        let caps = Self::new(features, &adapter.limits());
        if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            return caps;
        }
        let subgroup_size = match (info.backend, info.subgroup_min_size, info.subgroup_max_size) {
            // wgpu tells the range of all of Metal's GPUs, and of some that are not Apple's that they have matrices. Apple's
            // have them, and subgroups of 32.
            (wgpu::Backend::Metal, ..) => info.name.starts_with("Apple").then_some(32),
            (_, least, most) => (least == most).then_some(least),
        };
        let matrices = adapter.cooperative_matrix_properties().iter().map(MatrixShape::of).collect();
        Self { subgroup_size, matrices, ..caps }
    }
}

/// What stands behind an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU passed through to a virtual machine, or one the driver does not describe.
    Other,
    /// A driver that computes on the CPU: right, but slow.
    Software,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Other => "GPU",
            Self::Software => "software",
        })
    }
}

/// An adapter found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// Position in the list, usable as a name.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// What stands behind it.
    pub kind: AdapterKind,
    /// What it can do.
    pub caps: Caps,
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}, {})", self.name, self.kind, self.backend, self.driver)
    }
}

/// Which adapter is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// Hardware before software, discrete before integrated.
    #[default]
    Best,
    /// Like `Best`, but never a software driver.
    Hardware,
    /// By position in the list, or by a part of name or driver, whatever the case of the letters.
    Named(String),
    /// The adapter of this name, backend and driver: at its place in the list or, if that changed, wherever it stands now.
    Same(AdapterSummary),
}

impl Select {
    /// The index of the adapter this choice takes, by a pure rule over the list.
    ///
    /// # Errors
    /// If none fits: the error lists what there is.
    pub fn choose(&self, found: &[AdapterSummary]) -> Result<usize, RuntimeError> {
        Ok(self.candidates(found)?[0])
    }

    /// The same, and after it what does instead where it gives no device: a GPU may be listed twice, by a driver that
    /// works and by one that does not. Whoever means a certain one gets no other.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn candidates(&self, found: &[AdapterSummary]) -> Result<Vec<usize>, RuntimeError> {
        let all = |fits: &dyn Fn(&AdapterSummary) -> bool| {
            let mut fitting: Vec<&AdapterSummary> = found.iter().filter(|a| fits(a)).collect();
            fitting.sort_by_key(|a| (a.kind, a.index));
            fitting.iter().map(|a| a.index).collect::<Vec<_>>()
        };
        let best = |fits: &dyn Fn(&AdapterSummary) -> bool| all(fits).first().copied();
        let chosen = match self {
            Self::Best => all(&|_| true),
            Self::Hardware => all(&|a| a.kind != AdapterKind::Software),
            Self::Named(name) => {
                let index = name.parse::<usize>().ok();
                let name = name.to_lowercase();
                let says = |text: &str| text.to_lowercase().contains(&name);
                // A number that is no position may be a part of a name: 4090.
                let meant = best(&|a| index == Some(a.index)).or_else(|| best(&|a| says(&a.name) || says(&a.driver)));
                meant.into_iter().collect()
            }
            Self::Same(same) => {
                let fits =
                    |a: &AdapterSummary| (&a.name, &a.backend, &a.driver) == (&same.name, &same.backend, &same.driver);
                // Of two cards of one make, the one that is meant.
                best(&|a| fits(a) && a.index == same.index).or_else(|| best(&fits)).into_iter().collect()
            }
        };
        if chosen.is_empty() { Err(self.none_of(found)) } else { Ok(chosen) }
    }

    fn none_of(&self, found: &[AdapterSummary]) -> RuntimeError {
        let wanted = match self {
            Self::Best => "any",
            Self::Hardware => "hardware",
            Self::Named(name) => name,
            Self::Same(same) => &same.name,
        };
        let found = match found {
            [] => "none".to_owned(),
            _ => found.iter().map(|a| format!("[{}] {a}", a.index)).collect::<Vec<_>>().join("; "),
        };
        RuntimeError::NoAdapter { wanted: wanted.to_owned(), found }
    }
}

pub(crate) fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    AdapterSummary {
        index,
        name: info.name.clone(),
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
            wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => AdapterKind::Other,
        },
        caps: Caps::of(adapter),
    }
}

/// One for the process: what lies on another device is then known as such and refused. Two instances would count their
/// resources alike, and mistake one for another.
static INSTANCE: LazyLock<wgpu::Instance> =
    LazyLock::new(|| wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle()));

pub(crate) async fn enumerate() -> Vec<wgpu::Adapter> {
    INSTANCE.enumerate_adapters(wgpu::Backends::PRIMARY).await
}

/// Every adapter of this machine.
pub async fn adapters() -> Vec<AdapterSummary> {
    enumerate().await.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, kind: AdapterKind) -> AdapterSummary {
        let caps = Caps::new(wgpu::Features::empty(), &wgpu::Limits::default());
        AdapterSummary { index, name: name.into(), backend: "vulkan".into(), driver: "Mesa 25".into(), kind, caps }
    }

    fn machine() -> Vec<AdapterSummary> {
        vec![
            adapter(0, "llvmpipe", AdapterKind::Software),
            adapter(1, "Iris", AdapterKind::Integrated),
            adapter(2, "GeForce", AdapterKind::Discrete),
        ]
    }

    #[test]
    fn hardware_comes_before_software() {
        assert_eq!(Select::Best.choose(&machine()), Ok(2));
        assert_eq!(Select::Best.choose(&machine()[..1]), Ok(0));
        assert_eq!(Select::Hardware.choose(&machine()[..2]), Ok(1));
    }

    #[test]
    fn what_gives_no_device_is_followed_by_the_next_unless_it_was_meant() {
        assert_eq!(Select::Best.candidates(&machine()), Ok(vec![2, 1, 0]));
        assert_eq!(Select::Hardware.candidates(&machine()), Ok(vec![2, 1]));
        assert_eq!(Select::Named("e".into()).candidates(&machine()), Ok(vec![2]));
        assert_eq!(Select::Same(machine()[1].clone()).candidates(&machine()), Ok(vec![1]));
    }

    #[test]
    fn names_and_numbers_are_understood() {
        assert_eq!(Select::Named("LLVM".into()).choose(&machine()), Ok(0));
        assert_eq!(Select::Named("1".into()).choose(&machine()), Ok(1));
        let numbered = [adapter(0, "GeForce RTX 4090", AdapterKind::Discrete)];
        assert_eq!(Select::Named("4090".into()).choose(&numbered), Ok(0));
    }

    #[test]
    fn the_same_adapter_is_found_again_beside_its_twin() {
        let twins = [adapter(0, "GeForce", AdapterKind::Discrete), adapter(1, "GeForce", AdapterKind::Discrete)];
        assert_eq!(Select::Same(twins[1].clone()).choose(&twins), Ok(1));
        assert_eq!(Select::Same(machine()[0].clone()).choose(&machine()), Ok(0), "worse than others, but meant");
        let moved = AdapterSummary { index: 7, ..machine()[1].clone() };
        assert_eq!(Select::Same(moved).choose(&machine()), Ok(1));
    }

    #[test]
    fn what_was_found_is_listed() {
        let error = Select::Named("Radeon".into()).choose(&machine()).expect_err("there is no Radeon").to_string();
        assert!(error.contains("Radeon") && error.contains("[1] Iris"), "{error}");
        let none = Select::Hardware.choose(&[]).expect_err("there is nothing").to_string();
        assert_eq!(none, "no GPU adapter fits `hardware`; found: none");
    }
}
