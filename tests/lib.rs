//! Helpers of the cross-crate tests: running one case of a kernel and saying what went wrong in a way that can be
//! repeated.

pub mod gpu;

use mobilediffusion_kernels::check::{self, Agreement, POISON};
use mobilediffusion_kernels::{Access, Case, DType, Operand, Storage, Tolerance};

/// The operands a case reads and those it writes.
pub fn split(case: &Case) -> (Vec<Operand>, Vec<Operand>) {
    case.kernel.operands().into_iter().partition(|operand| operand.access == Access::Read)
}

/// The tolerance of a case: its kernel's, or none on whole numbers.
pub fn tolerance(case: &Case) -> Tolerance {
    if case.exact { Tolerance::EXACT } else { case.kernel.tolerance() }
}

/// The tolerance of a case on a device that stores floats as `storage`: rounding the output to f16 costs at most half
/// a unit, 2^-11, of the value.
pub fn storage_tolerance(case: &Case, storage: Storage) -> Tolerance {
    let mut tolerance = if case.exact { Tolerance::EXACT } else { case.kernel.tolerance() };
    let stored_as_elem = case.kernel.operands().iter().any(|o| o.access == Access::Write && o.dtype == DType::Elem);
    if storage != Storage::F32 && stored_as_elem {
        tolerance.relative += 2.0_f64.powi(-11);
    }
    tolerance
}

/// Runs the CPU form on `inputs` (dense, PyTorch's orientation). Outputs start poisoned and are fenced.
pub fn run_cpu(case: &Case, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    const FENCE: usize = 16;
    let (read, written) = split(case);
    let pack = |(operand, values): (&Operand, &Vec<f32>)| {
        if operand.present { operand.layout.pack(&operand.shape, values.clone()) } else { Vec::new() }
    };
    let packed: Vec<Vec<f32>> = read.iter().zip(inputs).map(pack).collect();
    let poison = f32::from_bits(POISON);
    let mut outputs: Vec<Vec<f32>> = written.iter().map(|o| vec![poison; o.host_len() + 2 * FENCE]).collect();
    let lens: Vec<usize> = written.iter().map(Operand::host_len).collect();
    {
        let mut inner: Vec<&mut [f32]> =
            outputs.iter_mut().zip(&lens).map(|(all, len)| &mut all[FENCE..FENCE + len]).collect();
        case.kernel.cpu(&packed.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut inner);
    }
    let inside = |(all, len): (Vec<f32>, usize)| {
        let fenced = all[..FENCE].iter().chain(&all[FENCE + len..]).all(|v| v.to_bits() == POISON);
        assert!(fenced, "{:?} wrote outside its output", case.kernel);
        all[FENCE..FENCE + len].to_vec()
    };
    outputs.into_iter().zip(lens).map(inside).collect()
}

/// Compares results with the reference.
///
/// # Errors
/// A text that names the kernel, the case, the operand, the seed and the first wrong element.
pub fn judge(
    case: &Case,
    seed: u64,
    inputs: &[Vec<f32>],
    outputs: &[Vec<f32>],
    tolerance: Tolerance,
) -> Result<Agreement, String> {
    let (_, written) = split(case);
    let mut worst = Agreement::default();
    for ((operand, got), want) in written.iter().zip(outputs).zip(check::expected(case, inputs)) {
        let tolerance = if operand.dtype == DType::U32 { Tolerance::EXACT } else { tolerance };
        let agreement = check::compare(&check::widen(operand, got), &want, &operand.shape, tolerance)
            .map_err(|mismatch| format!("{:?} `{}` seed {seed}: {mismatch}", case.kernel, operand.name))?;
        worst.max_abs = worst.max_abs.max(agreement.max_abs);
        worst.relative_l2 = worst.relative_l2.max(agreement.relative_l2);
    }
    Ok(worst)
}
