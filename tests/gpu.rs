//! Running one case of a kernel on a device.

use crate::split;
use mobilediffusion_kernels::check::POISON;
use mobilediffusion_kernels::{Access, Case, DType, Operand, Storage, wgsl};
use mobilediffusion_runtime::{Binding, Bound, Gpu, Role, RuntimeError};

/// Poisoned bytes around every buffer's tensor, to catch writes outside of it. A multiple of every alignment.
const FENCE: usize = 256;

/// Storage types this device can run.
pub fn storages(gpu: &Gpu) -> Vec<Storage> {
    let native = gpu.caps().shader_f16.then_some(Storage::F16);
    [Storage::F32, Storage::F16Packed].into_iter().chain(native).collect()
}

/// Rounds inputs to what the device will hold, so that the reference sees the same numbers.
pub fn stored(case: &Case, storage: Storage, inputs: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let (read, _) = split(case);
    let round = |(o, values): (&Operand, Vec<f32>)| {
        if values.is_empty() {
            return values;
        }
        storage.decode(o.dtype, &o.shape, &storage.encode(o.dtype, &o.shape, &values))
    };
    read.iter().zip(inputs).map(round).collect()
}

fn poison(bytes: usize) -> Vec<u8> {
    POISON.to_le_bytes().into_iter().cycle().take(bytes).collect()
}

/// Runs a case on `inputs` (dense, PyTorch's orientation) and returns what was written, dense.
///
/// # Errors
/// If the device refuses anything, or a kernel wrote outside its outputs or left padding that is not zero.
pub fn run_gpu(gpu: &Gpu, storage: Storage, case: &Case, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, String> {
    run(gpu, storage, case, inputs).map_err(|error| error.to_string())?
}

fn run(
    gpu: &Gpu,
    storage: Storage,
    case: &Case,
    inputs: &[Vec<f32>],
) -> Result<Result<Vec<Vec<f32>>, String>, RuntimeError> {
    let kernel = case.kernel.as_ref();
    let program = kernel.program();
    let text = wgsl::compose(&program, storage).expect("the shaders of the list compose");
    let operands = kernel.operands();
    let mut bindings = vec![Binding::Uniform];
    bindings.extend(operands.iter().map(|o| if o.access == Access::Read { Binding::Read } else { Binding::Write }));
    let pipeline = gpu.pipeline(kernel.name(), &text, &bindings)?;

    let params: Vec<u8> = program.params.iter().flat_map(mobilediffusion_kernels::Param::bytes).collect();
    let uniform = gpu.buffer("params", params.len() as u64, Role::Uniform)?;
    gpu.upload(&uniform, &params)?;
    let mut values = inputs.iter();
    let mut buffers = Vec::new();
    for operand in &operands {
        let shape = operand.layout.packed_shape(&operand.shape);
        let bytes = if operand.present { storage.tensor_bytes(operand.dtype, &shape) } else { 16 };
        let buffer = gpu.buffer(operand.name, (bytes + 2 * FENCE) as u64, Role::Storage)?;
        let mut content = poison((bytes + 2 * FENCE).next_multiple_of(4));
        if operand.access == Access::Read {
            let values = values.next().expect("one value per read operand").clone();
            if operand.present {
                let packed = operand.layout.pack(&operand.shape, values);
                content[FENCE..FENCE + bytes].copy_from_slice(&storage.encode(operand.dtype, &shape, &packed));
            }
        }
        gpu.upload(&buffer, &content)?;
        buffers.push((buffer, bytes));
    }
    let mut bound = vec![Bound::whole(&uniform)];
    bound.extend(buffers.iter().map(|(buffer, bytes)| Bound {
        buffer,
        offset: FENCE as u64,
        bytes: bytes.next_multiple_of(4) as u64,
    }));
    let dispatch = gpu.dispatch(kernel.name(), &pipeline, &bound, program.grid)?;
    gpu.submit([&dispatch])?;

    let mut outputs = Vec::new();
    for (operand, (buffer, bytes)) in operands.iter().zip(&buffers).filter(|(o, _)| o.access == Access::Write) {
        let staging = gpu.buffer("staging", buffer.bytes(), Role::Staging)?;
        let all = gpu.download(buffer, &staging, buffer.bytes())?;
        match inside(operand, storage, &all, *bytes) {
            Ok(values) => outputs.push(values),
            Err(message) => return Ok(Err(format!("{kernel:?} {storage:?}: {message}"))),
        }
    }
    Ok(Ok(outputs))
}

fn inside(operand: &Operand, storage: Storage, all: &[u8], bytes: usize) -> Result<Vec<f32>, String> {
    let fences = [&all[..FENCE], &all[FENCE + bytes..]];
    let whole = |fence: &[u8]| fence.iter().zip(poison(fence.len())).all(|(got, want)| *got == want);
    if bytes.is_multiple_of(4) && !fences.into_iter().all(whole) {
        return Err(format!("`{}` was written outside its bounds", operand.name));
    }
    let values = storage.decode(operand.dtype, &operand.shape, &all[FENCE..FENCE + bytes]);
    // Encoding again puts zeros into the padding: any other byte there, NaN included, is a kernel's mistake.
    let clean = operand.dtype == DType::U32
        || storage.encode(operand.dtype, &operand.shape, &values) == all[FENCE..FENCE + bytes]
        || values.iter().any(|v| v.is_nan());
    if clean { Ok(values) } else { Err(format!("`{}` has padding that is not zero", operand.name)) }
}
