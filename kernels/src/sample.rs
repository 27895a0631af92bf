//! Problems prepared for timing: sizes as text, and operands that are cheap to make at the model's sizes.

use crate::WeightType;
use crate::check;
use crate::kernel::{Case, Kernel, Operand, split};
use crate::panels::Aligned;
use crate::random::Random;
use serde_json::Value;

/// Returns the sizes of a problem as one short text. Sizes that are zero, `false`, `none` or null are left out.
pub fn text(kernel: &dyn Kernel) -> String {
    let Value::Object(sizes) = kernel.params_json() else { return String::new() };
    let part = |(name, value): (&String, &Value)| match value {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some(name.clone()),
        Value::Number(number) if number.as_f64() == Some(0.0) => None,
        // Fractional sizes are f32. As f64 they would show more digits than were given.
        Value::Number(number) if number.is_f64() => Some(format!("{name}={}", number.as_f64().unwrap_or(0.0) as f32)),
        Value::String(text) if text == "none" => None,
        Value::String(text) => Some(format!("{name}={text}")),
        other => Some(format!("{name}={}", shortened(other))),
    };
    sizes.iter().filter_map(part).collect::<Vec<_>>().join(" ")
}

/// Returns a value whose fractional numbers have the digits of an f32, at any depth.
fn shortened(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let short = number.as_f64().and_then(|exact| (exact as f32).to_string().parse::<f64>().ok());
            short.map_or_else(|| value.clone(), Value::from)
        }
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shortened(value))).collect(),
        other => other.clone(),
    }
}

/// Returns values of all operands that a case reads, in order, dense and in PyTorch's orientation. Large operands
/// repeat a block of random values. The length of the block is a prime, so that no two rows are equal.
pub fn inputs(case: &Case, seed: u64) -> Vec<Vec<f32>> {
    const BLOCK: usize = 65_521;
    let mut random = Random::new(seed);
    let (read, _) = split(case.kernel.as_ref());
    let values = |operand: Operand| {
        let (len, fill) = (operand.host_len(), case.fill_of(operand.name));
        let block = check::fill(&Operand { shape: vec![len.min(BLOCK)], ..operand }, fill, &mut random);
        block.iter().copied().cycle().take(len).collect()
    };
    read.into_iter().map(values).collect()
}

/// Packs the result of [`inputs`] for the CPU form, with matrices of weights stored as `weights`.
pub fn packed(case: &Case, weights: WeightType, inputs: Vec<Vec<f32>>) -> Vec<Aligned> {
    let (read, _) = split(case.kernel.as_ref());
    let pairs = read.iter().zip(inputs);
    pairs.map(|(o, values)| Aligned::from(o.pack_for_cpu(weights, values).as_slice())).collect()
}

/// Allocates the outputs of a case on the host, filled with zeros.
pub fn outputs(case: &Case) -> Vec<Vec<f32>> {
    let (_, written) = split(case.kernel.as_ref());
    written.iter().map(|o| vec![0.0; o.host_len()]).collect()
}

/// Runs the CPU form of a case on inputs from [`packed`].
pub fn run(case: &Case, packed: &[Aligned], outputs: &mut [Vec<f32>]) {
    let inputs: Vec<&[f32]> = packed.iter().map(|values| &**values).collect();
    let mut outputs: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    case.kernel.cpu(&inputs, &mut outputs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FAMILIES;

    #[test]
    fn fractions_have_the_digits_of_an_f32() {
        let prologue = crate::Prologue { norm: crate::Norm::Rows { eps: 1e-5 }, ..crate::Prologue::default() };
        let text = text(&crate::Linear { rows: 1, k: 2, cols: 3, prologue, ..crate::Linear::default() });
        assert!(text.contains(r#""eps":1e-5"#) || text.contains(r#""eps":0.00001"#), "{text}");
    }

    #[test]
    fn every_model_shape_has_a_text_and_inputs_of_the_right_length() {
        for family in FAMILIES {
            for case in (family.model_shapes)().iter().take(1) {
                assert!(!text(case.kernel.as_ref()).is_empty(), "{} says nothing of its sizes", family.name);
                let (read, _) = split(case.kernel.as_ref());
                let lens: Vec<usize> = read.iter().map(Operand::host_len).collect();
                let made: Vec<usize> = inputs(case, 1).iter().map(Vec::len).collect();
                assert_eq!(made, lens, "{}", family.name);
            }
        }
    }
}
