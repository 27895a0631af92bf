//! Composes the WGSL module of a [`Stage`]: storage prelude, constants, imported shared files, and the kernel's file.

use crate::kernel::{DType, Stage};
use crate::names;
use crate::storage::{Storage, WeightType};
use mobilediffusion_runtime::shader::{self, Compose, ComposeError};

/// Names and texts of the shared files, which a kernel's file inserts by lines `#import <name>`.
pub const COMMON: &[(&str, &str)] = &[
    ("activation", include_str!("../../shaders/common/activation.wgsl")),
    ("attention_matrix", include_str!("../../shaders/common/attention_matrix.wgsl")),
    ("block_moments", include_str!("../../shaders/common/block_moments.wgsl")),
    ("gemm", include_str!("../../shaders/common/gemm.wgsl")),
    ("gemm_columns", include_str!("../../shaders/common/gemm_columns.wgsl")),
    ("gemm_fetch", include_str!("../../shaders/common/gemm_fetch.wgsl")),
    ("gemm_matrix", include_str!("../../shaders/common/gemm_matrix.wgsl")),
    ("gemm_parts", include_str!("../../shaders/common/gemm_parts.wgsl")),
    ("gemm_sums", include_str!("../../shaders/common/gemm_sums.wgsl")),
    ("gemm_winograd", include_str!("../../shaders/common/gemm_winograd.wgsl")),
    ("grid", include_str!("../../shaders/common/grid.wgsl")),
    ("matrix_unit", include_str!("../../shaders/common/matrix_unit.wgsl")),
    ("multiplied", include_str!("../../shaders/common/multiplied.wgsl")),
    ("prediction", include_str!("../../shaders/common/prediction.wgsl")),
    ("product", include_str!("../../shaders/common/product.wgsl")),
    ("product_end", include_str!("../../shaders/common/product_end.wgsl")),
    ("product_part", include_str!("../../shaders/common/product_part.wgsl")),
    ("rows", include_str!("../../shaders/common/rows.wgsl")),
    ("scratch", include_str!("../../shaders/common/scratch.wgsl")),
    ("prologue", include_str!("../../shaders/common/prologue.wgsl")),
    ("sum_all", include_str!("../../shaders/common/sum_all.wgsl")),
    ("tile_moments", include_str!("../../shaders/common/tile_moments.wgsl")),
];

/// Composes the text of the module of a stage.
///
/// # Errors
/// Returns a [`ComposeError`] if the program's file or a shared one has an unknown import or a wrong condition.
pub fn compose(Stage { program, operands }: &Stage, storage: Storage) -> Result<String, ComposeError> {
    // Sums of weights are not stored in 16 bits beside other floats.
    let sums = operands.iter().any(|operand| operand.dtype == DType::WeightSum) && storage.weights == WeightType::F16;
    let storage = if sums { storage.with_weights(WeightType::Floats) } else { storage };
    let by_matrices = program.constants.contains(&(names::MATRIX, 1));
    let prelude = if by_matrices { "enable wgpu_cooperative_matrix;\n" } else { "" }.to_owned() + &storage.prelude();
    shader::compose(&Compose { prelude: &prelude, constants: &program.constants, body: program.wgsl, common: COMMON })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::GROUP;

    #[test]
    fn shaders_and_grids_agree_on_the_size_of_a_group() {
        let (_, grid) = COMMON.iter().find(|(name, _)| *name == "grid").expect("it is shared");
        assert!(grid.contains(&format!("const GROUP = {GROUP}u;")), "{grid}");
    }
}
