//! Checks of the sizes in a case file that are the same for all kernels.

use super::{LARGEST_SIZE, shortened};
use crate::prologue::Norm;
use serde::Deserialize;
use serde_json::Value;

/// Returns what is wrong with a value by itself. Sizes are limited before the kernel computes with them, so that products
/// of a few sizes cannot overflow.
pub(super) fn impossible(key: &str, value: &Value) -> Option<String> {
    match value {
        Value::Object(parts) => parts.iter().find_map(|(key, value)| impossible(key, value)),
        Value::Number(number) if key == "eps" => {
            let eps = number.as_f64().map_or(f32::NAN, |eps| eps as f32);
            let fits = eps.is_finite() && eps >= Norm::LEAST_EPS;
            (!fits).then(|| format!("`eps` is {number}, expected a finite f32 of at least {:e}", Norm::LEAST_EPS))
        }
        Value::Number(number) => number
            .as_u64()
            .filter(|size| *size > LARGEST_SIZE)
            .map(|_| format!("`{}` is {number}, expected at most {LARGEST_SIZE}", shortened(key))),
        _ => None,
    }
}

/// Returns the key of a list that was read as an object, by the order of its values.
pub(super) fn list_for_object<'a>(key: &'a str, written: &'a Value, read: &Value) -> Option<&'a str> {
    match (written, read) {
        (Value::Array(_), Value::Object(_)) => Some(key),
        (Value::Object(parts), _) => parts.iter().find_map(|(key, part)| list_for_object(key, part, &read[key])),
        _ => None,
    }
}

/// Returns what is wrong with the sizes, by the error of reading them. Serde's errors do not say that they are about the
/// norm, nor what it may be.
pub(super) fn unread(sizes: &Value, error: &serde_json::Error) -> String {
    let norm = sizes.get("source").and_then(|source| source.get("norm"));
    match norm.and_then(|norm| Norm::deserialize(norm).err()) {
        Some(error) => format!(
            "`source.norm`: {}, expected \"none\", {{\"rows\": {{\"eps\": E}}}} or {{\"channels\": {{\"images\": N, \"activation\": A}}}}",
            cut(&error.to_string())
        ),
        None => cut(&error.to_string()),
    }
}

/// Leaves out the middle of a long message: a name or value from a file can have any length.
pub(super) fn cut(message: &str) -> String {
    let message = &message.replace(char::is_control, " ");
    const ENDS: usize = 150;
    let ends = message.char_indices().nth(ENDS).zip(message.char_indices().nth_back(ENDS));
    match ends {
        Some(((head, _), (tail, _))) if head < tail => format!("{} ... {}", &message[..head], &message[tail..]),
        _ => message.to_owned(),
    }
}
