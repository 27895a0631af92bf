//! Stand-in for matrix units, which runs variants that use them on devices that have none.
//!
//! It rewrites calls of matrix units to functions in plain WGSL. Workgroups, subgroups and addresses in workgroup
//! memory stay the same, so tiles for units of every size are tested. How a driver implements matrices is not tested.
//! Floats may be stored in any type. Weights of attention that are subnormal in f16 become zero, as WGSL allows.
//!
//! Each lane of a subgroup keeps `EDGE * EDGE / SUBGROUP` neighbours in a row of the sums and that row of the left
//! factor. Of the right factor it keeps the address only: kernels multiply by it before anything is written there
//! again.

use mobilediffusion_kernels::{Program, Stage, Storage, names, wgsl};
use std::fmt::Write;

/// Rewrites a stage that uses matrix units to one that does not.
pub(crate) fn without_units(stage: Stage, storage: Storage) -> Stage {
    let program = &stage.program;
    let Some(matrix) = program.constants.iter().position(|constant| *constant == (names::MATRIX, 1)) else {
        return stage;
    };
    let composed = |wgsl| {
        let program = Program { wgsl, ..program.clone() };
        wgsl::compose(&Stage { program, ..stage.clone() }, storage).expect("it composes")
    };
    let (before, text) = (composed(""), composed(program.wgsl));
    let body = text.strip_prefix(&before).expect("prelude and constants come first");
    let mut constants = program.constants.clone();
    // `compose` has already resolved the conditions on the constant; without it no feature is required of the
    // device.
    constants.remove(matrix);
    let wide = constants.contains(&("WIDE", 1));
    let program = Program { wgsl: String::leak(spelt_out(body, wide)), constants, ..program.clone() };
    Stage { program, ..stage }
}

/// Calls that load matrices, up to the array's name, and the prefix of the functions that replace them.
const LOADS: [(&str, &str); 3] =
    [("coopLoadT<Left>(&", "left_of_"), ("coopLoadT<Right>(&", "rows_of_"), ("coopLoad<Right>(&", "columns_of_")];
/// Call that stores a matrix, up to its value, and the prefix of the functions that replace it.
const STORE: (&str, &str) = ("coopStoreT(", "keep_in_");

/// Expressions that assume f16, and their replacements for any storage type.
const WORDS: [(&str, &str); 4] = [
    ("array<f16", "array<f32"),
    ("= Pack(select(", "= store_normal(select("),
    ("vec4<f32>(rounded)", "load4(rounded)"),
    ("coopMultiplyAdd(", "multiply_add("),
];

/// Replaces the calls of matrix units in a shader's text, and appends the functions they become.
fn spelt_out(body: &str, wide: bool) -> String {
    let (mut text, mut factors, mut sums) = (String::new(), Vec::new(), Vec::new());
    for line in body.lines().filter(|line| !line.contains("= coop_mat")) {
        let mut line = WORDS.iter().fold(line.to_owned(), |line, (word, instead)| line.replace(word, instead));
        for load in LOADS {
            line = without(line, load, &mut factors);
        }
        writeln!(text, "{}", without(line, STORE, &mut sums)).expect("writing to a string succeeds");
    }
    let main = text.find("fn main(").expect("there is an entry point");
    let begin = main + text[main..].find(" {\n").expect("it has a body") + 3;
    text.insert_str(begin, "    stand_in_lane = thread % SUBGROUP;\n");
    text + &functions(&factors, &sums, wide)
}

/// Replaces the calls of one kind in a line, and notes the arrays they access. After `call` follows `array[at],
/// stride)` for a load, or `value, &array[at], stride)` for a store.
fn without(line: String, (call, instead): (&str, &str), arrays: &mut Vec<String>) -> String {
    let Some((start, rest)) = line.split_once(call) else { return line };
    let (value, rest) = if call.ends_with('&') { ("", rest) } else { rest.split_once('&').expect("an array") };
    let (array, rest) = rest.split_once('[').expect("an element");
    let (at, rest) = rest.split_once("], ").expect("a stride");
    if !arrays.iter().any(|known| known == array) {
        arrays.push(array.to_owned());
    }
    without(format!("{start}{instead}{array}({value}{at}, {rest}"), (call, instead), arrays)
}

/// Returns the functions that replace matrix units, for the arrays of factors and of sums. With `wide` the arrays hold
/// vec4s, else scalars.
fn functions(factors: &[String], sums: &[String], wide: bool) -> String {
    let (factor, sum) = if wide {
        ("load4(ARRAY[at + row * stride + i / 4u])[i % 4u]", "ARRAY[at + row * stride + i / 4u][i % 4u]")
    } else {
        ("ARRAY[at + row * stride + i]", "ARRAY[at + row * stride + i]")
    };
    let mut text = SHARED.to_owned();
    for array in factors {
        text += &FACTORS.replace("CELL", factor).replace("ARRAY", array);
    }
    for array in sums {
        text += &SUMS.replace("CELL", sum).replace("ARRAY", array);
    }
    let case =
        |(number, array)| format!("case {number}u: {{ return cell_of_{array}(right.at, right.stride, row, i); }}");
    let cases: String = (0..).zip(factors).map(case).collect();
    let numbers: String = (0..).zip(factors).map(|(number, array)| format!("const IN_{array} = {number}u;")).collect();
    text + &numbers + &RIGHT.replace("CASES", &cases)
}

const SHARED: &str = "
const OWN = EDGE * EDGE / SUBGROUP;
alias Left = array<f32, EDGE>;
alias Sum = array<f32, OWN>;
struct Right { array: u32, at: u32, stride: u32, by_rows: bool }
var<private> stand_in_lane: u32;
fn own_row() -> u32 { return stand_in_lane * OWN / EDGE; }
fn own_column() -> u32 { return stand_in_lane * OWN % EDGE; }
// Stores numbers as a device may that takes halves below the normal ones for zero.
fn store_normal(v: vec4<f32>) -> Pack { return store4(select(v, vec4<f32>(0.0), abs(v) < vec4<f32>(6.1035e-5))); }
fn multiply_add(left: Left, right: Right, sum: Sum) -> Sum {
    var factor = left;
    var all = sum;
    for (var j = 0u; j < OWN; j++) {
        for (var i = 0u; i < EDGE; i++) { all[j] += factor[i] * right_at(right, i, own_column() + j); }
    }
    return all;
}
";

const RIGHT: &str = "
fn right_at(right: Right, k: u32, column: u32) -> f32 {
    let row = select(column, k, right.by_rows);
    let i = select(k, column, right.by_rows);
    switch right.array {
        CASES
        default: { return 0.0; }
    }
}
";

const FACTORS: &str = "
fn cell_of_ARRAY(at: u32, stride: u32, row: u32, i: u32) -> f32 { return CELL; }
fn left_of_ARRAY(at: u32, stride: u32) -> Left {
    var all: Left;
    for (var i = 0u; i < EDGE; i++) { all[i] = cell_of_ARRAY(at, stride, own_row(), i); }
    return all;
}
fn rows_of_ARRAY(at: u32, stride: u32) -> Right { return Right(IN_ARRAY, at, stride, true); }
fn columns_of_ARRAY(at: u32, stride: u32) -> Right { return Right(IN_ARRAY, at, stride, false); }
";

const SUMS: &str = "
fn keep_in_ARRAY(sum: Sum, at: u32, stride: u32) {
    var own = sum;
    let row = own_row();
    for (var j = 0u; j < OWN; j++) {
        let i = own_column() + j;
        CELL = own[j];
    }
}
";
