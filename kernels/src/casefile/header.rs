//! Headers of safetensors files, read once, with errors that name the tensor, and what was expected and found.

use super::params::cut;
use super::{json, shortened};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// Words for a file that many programs make of its full size, in zeros, before they download it.
pub const UNFINISHED: &str = "it was not downloaded or written to its end";

/// Most bytes of a header, the limit of the safetensors crate.
const LARGEST: usize = 100_000_000;

/// Key under which a header holds texts, and no tensor.
const METADATA: &str = "__metadata__";

/// Reads the header of a safetensors file: the position of the data, from which the offsets of tensors count, and the
/// tensors. They fill the rest of the file, one after the other.
///
/// # Errors
/// Description of the defect in one line: what was expected and found, and of which tensor.
pub fn read(file: &[u8]) -> Result<(usize, Metadata), String> {
    let (start, header) = text(file)?;
    let Value::Object(entries) = json::parse(header).map_err(|error| cut(&error.to_string()))? else {
        return Err("expected an object as its header".to_owned());
    };
    let (mut texts, mut tensors) = (None, Vec::new());
    for (name, value) in entries {
        let wrong = |error: serde_json::Error| format!("`{}`: {}", shortened(&name), cut(&error.to_string()));
        if name == METADATA {
            texts = Option::<HashMap<_, _>>::deserialize(value).map_err(wrong)?;
        } else {
            let info = TensorInfo::deserialize(value).map_err(wrong)?;
            tensors.push((name, info));
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let bytes = tensors.iter().try_fold(0, |begin, (name, info)| placed(begin, name, info))?;
    let (expected, found) = (start as u128 + bytes as u128, file.len());
    if expected != found as u128 {
        return Err(format!("its header is that of a file of {expected} bytes, it has {found}"));
    }
    let metadata = Metadata::new(texts, tensors).map_err(|error| cut(&error.to_string()))?;
    Ok((start, metadata))
}

/// Returns the position of the data and the text of the header.
fn text(file: &[u8]) -> Result<(usize, &str), String> {
    if file.starts_with(b"version https://git-lfs") {
        return Err("it is a Git LFS pointer, and not the file that this stands for".to_owned());
    }
    let Some((length, rest)) = file.split_first_chunk() else {
        return Err(format!("expected a header and its length, found {} bytes", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length == 0 {
        return Err(format!("it begins with zeros: {UNFINISHED}"));
    }
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= LARGEST) else {
        return Err(format!("it is a file of another kind: its first 8 bytes are no length of a header ({length})"));
    };
    let Some(header) = rest.get(..length) else {
        return Err(format!("expected a header of at most {} bytes, found one of {length}", rest.len()));
    };
    let text = std::str::from_utf8(header).map_err(|error| format!("its header is no text: {error}"))?;
    Ok((size_of::<u64>() + header.len(), text))
}

/// Returns where the data of a tensor ends that has to begin at `begin`.
fn placed(
    begin: usize,
    name: &str,
    TensorInfo { dtype, shape, data_offsets: (first, last) }: &TensorInfo,
) -> Result<usize, String> {
    let tensor = || format!("`{}`, {} of {dtype}", shortened(name), shortened(&format!("{shape:?}")));
    let elements = shape.iter().try_fold(1_usize, |all, size| all.checked_mul(*size));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
    let bytes = bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
    let Some(end) = bytes.and_then(|bytes| begin.checked_add(bytes)) else {
        return Err(format!("{}: expected a whole number of bytes that fits into 64 bits", tensor()));
    };
    if (begin, end) != (*first, *last) {
        return Err(format!("{}: expected data_offsets [{begin}, {end}], found [{first}, {last}]", tensor()));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes of a file with a header and `data` bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![1; data]].concat()
    }

    /// Returns the bytes of a file of a tensor `a` of 24 bytes, and a tensor `b` of 8 bytes at these offsets.
    fn with_b_at(first: usize, last: usize) -> Vec<u8> {
        let a = r#""a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}"#;
        let b = format!(r#""b":{{"dtype":"F16","shape":[4],"data_offsets":[{first},{last}]}}"#);
        file(&format!("{{{b},{a}}}"), 32)
    }

    #[test]
    fn a_header_is_read_as_the_crate_reads_it() {
        let bytes = with_b_at(24, 32);
        let (start, header) = read(&bytes).expect("it is valid");
        let (length, expected) = safetensors::SafeTensors::read_metadata(&bytes).expect("it is valid");
        assert_eq!((start, header.offset_keys()), (8 + length, expected.offset_keys()));
        let (_, header) = read(&file("{\"__metadata__\":{\"a\":\"b\"}}  ", 0)).expect("padding is allowed");
        assert_eq!(header.metadata().as_ref().map(|texts| texts["a"].as_str()), Some("b"));
        assert!(read(&file("{\"__metadata__\":null}", 0)).is_ok(), "there is nothing to say");
        let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
        };
        let (whole, none) = (entry("a", "F4", "[2]", "[0,1]"), entry("b", "F32", "[9223372036854775807,0]", "[1,1]"));
        let last = entry("c", "F8_E4M3", "[3]", "[1,4]");
        assert!(read(&file(&format!("{{{whole},{none},{last}}}"), 4)).is_ok(), "two in a byte, none, and one in each");
    }

    #[test]
    fn a_tensor_in_a_wrong_place_is_named_with_the_right_one() {
        for (first, last) in [(20, 28), (28, 36), (24, 40), (24, 31), (24, usize::MAX), (32, 24), (25, 32)] {
            let error = read(&with_b_at(first, last)).expect_err("it is not after the other");
            let expected = format!("`b`, [4] of F16: expected data_offsets [24, 32], found [{first}, {last}]");
            assert_eq!(error, expected);
        }
        let error = read(&with_b_at(0, 8)).expect_err("both begin the data");
        assert_eq!(error, "`a`, [2, 3] of F32: expected data_offsets [8, 32], found [0, 24]");
        let whole = with_b_at(24, 32);
        let error = read(&whole[..whole.len() - 1]).expect_err("it is cut off");
        let (expected, found) = (whole.len(), whole.len() - 1);
        assert_eq!(error, format!("its header is that of a file of {expected} bytes, it has {found}"));
    }

    #[test]
    fn what_is_no_header_is_explained() {
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            file(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), 16)
        };
        let huge = "[4294967296,4294967296]";
        for (bytes, words) in [
            (tensor("F32", huge, "[0,16]"), "`w`, [4294967296, 4294967296] of F32: expected a whole number of bytes"),
            (tensor("F4", "[1]", "[0,16]"), "`w`, [1] of F4: expected a whole number of bytes"),
            (tensor("F33", "[4]", "[0,16]"), "`w`: unknown variant `F33`"),
            (tensor("F32", "[-4]", "[0,16]"), "`w`: invalid value: integer `-4`"),
            (tensor("F32", "[4]", "[16]"), "`w`: invalid length 1"),
            (file(r#"{"w":{"shape":[1]}}"#, 0), "`w`: missing field `dtype`"),
            (file(r#"{"w":1,"w":2}"#, 0), "the key `w` is there twice at line 1"),
            (file(r#"{"__metadata__":{"a":1}}"#, 0), "`__metadata__`: invalid type: integer `1`"),
            (file("[]", 0), "expected an object as its header"),
            (file("{", 0), "EOF while parsing"),
            ([&[2, 0, 0, 0, 0, 0, 0, 0][..], b"\xff}"].concat(), "its header is no text"),
            (b"PK\x03\x04 a pickle".to_vec(), "it is a file of another kind: its first 8 bytes are no length"),
            (
                [&[6, 0, 0, 0, 0, 0, 0, 0][..], b"{\"a\":"].concat(),
                "expected a header of at most 5 bytes, found one of 6",
            ),
            (vec![1; 3], "expected a header and its length, found 3 bytes"),
        ] {
            let error = read(&bytes).expect_err(words);
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn names_and_shapes_of_any_length_are_cut() {
        let (long, shape) = ("x".repeat(1 << 20), vec!["1"; 1 << 18].join(","));
        for header in [
            format!(r#"{{"{long}":{{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}}}"#),
            format!(r#"{{"x":{{"dtype":"F32","shape":[{shape}],"data_offsets":[1,5]}}}}"#),
            format!(r#"{{"x":{{"dtype":"{long}","shape":[1],"data_offsets":[0,4]}}}}"#),
        ] {
            let error = read(&file(&header, 4)).expect_err("it is not right");
            assert!(error.len() < 500, "{} bytes: {error:.1000}", error.len());
        }
    }
}
