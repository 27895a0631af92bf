//! Stand-in for matrix units, which runs variants that use them on devices that have none.
//!
//! It rewrites calls of matrix units to functions in plain WGSL. Workgroups, subgroups and addresses in workgroup
//! memory stay the same, so tiles for units of every size are tested. How a driver implements matrices is not tested.
//! Floats may be stored in any type. Weights of attention that are subnormal in f16 become zero, as WGSL allows.
//!
//! Each lane of a subgroup keeps `EDGE * EDGE / SUBGROUP` neighbours in a row of the sums and that row of the left
//! factor. Of the right factor it keeps the address only: kernels multiply by it before anything is written there
//! again. A shader has dozens of multiplications, and compiling them takes most of the time, so each is short: two
//! loops and a scalar product.

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
const LEFT: (&str, &str) = ("coopLoadT<Left>(&", "left_of_");
const RIGHT_BY_ROWS: (&str, &str) = ("coopLoadT<Right>(&", "rows_of_");
const RIGHT_BY_COLUMNS: (&str, &str) = ("coopLoad<Right>(&", "columns_of_");
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
    let (mut text, mut arrays) = (String::new(), Arrays::default());
    for line in body.lines().filter(|line| !line.contains("= coop_mat")) {
        let line = WORDS.iter().fold(line.to_owned(), |line, (word, instead)| line.replace(word, instead));
        let line = without(line, LEFT, &mut arrays.left);
        let line = without(line, RIGHT_BY_ROWS, &mut arrays.by_rows);
        let line = without(line, RIGHT_BY_COLUMNS, &mut arrays.by_columns);
        writeln!(text, "{}", without(line, STORE, &mut arrays.sums)).expect("writing to a string succeeds");
    }
    let main = text.find("fn main(").expect("there is an entry point");
    let begin = main + text[main..].find(" {\n").expect("it has a body") + 3;
    text.insert_str(begin, "    stand_in_lane = thread % SUBGROUP;\n");
    text + &arrays.functions(wide)
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

/// Arrays in workgroup memory that a shader's matrices are loaded from and stored in.
#[derive(Default)]
struct Arrays {
    left: Vec<String>,
    by_rows: Vec<String>,
    by_columns: Vec<String>,
    sums: Vec<String>,
}

impl Arrays {
    /// Returns the functions that replace matrix units. With `wide` the arrays hold vec4s, else scalars.
    fn functions(&self, wide: bool) -> String {
        let (four, factor, sum) = if wide {
            let four = "load4(ARRAY[at + i / 4u])";
            (four, "load4(ARRAY[at + i / 4u])[i % 4u]", "ARRAY[at + i / 4u][i % 4u]")
        } else {
            let four = "vec4<f32>(ARRAY[at + i], ARRAY[at + i + 1u], ARRAY[at + i + 2u], ARRAY[at + i + 3u])";
            (four, "ARRAY[at + i]", "ARRAY[at + i]")
        };
        let each = |arrays: &[String], text: &str| -> String {
            let text = text.replace("FOUR", four).replace("FACTOR", factor).replace("SUM", sum);
            arrays.iter().map(|array| text.replace("ARRAY", array)).collect()
        };
        let left = each(&self.left, LEFT_FACTOR);
        let right = each(&self.by_rows, BY_ROWS) + &each(&self.by_columns, BY_COLUMNS);
        [SHARED, &left, &right, &self.right_four(), &each(&self.sums, SUMS)].concat()
    }

    /// Returns the function that reads a right factor, from whichever array it is in.
    fn right_four(&self) -> String {
        let by_rows = self.by_rows.iter().map(|array| format!("by_rows_{array}"));
        let by_columns = self.by_columns.iter().map(|array| format!("by_columns_{array}"));
        let all: Vec<String> = by_rows.chain(by_columns).collect();
        let numbers: String = (0..).zip(&all).map(|(number, name)| format!("const IN_{name} = {number}u;\n")).collect();
        let call = |name: &String| format!("return four_{name}(right.at, right.stride, k, column);");
        let (last, others) = all.split_last().expect("a product has a right factor");
        let others: String =
            others.iter().map(|name| format!("if right.array == IN_{name} {{ {} }}\n", call(name))).collect();
        let head = "fn right_four(right: Right, k: u32, column: u32) -> vec4<f32>";
        format!("{numbers}{head} {{\n{others}{}\n}}\n", call(last))
    }
}

const SHARED: &str = "
const OWN = EDGE * EDGE / SUBGROUP;
alias Left = array<vec4<f32>, EDGE / 4>;
alias Sum = array<f32, OWN>;
struct Right { array: u32, at: u32, stride: u32 }
var<private> stand_in_lane: u32;
fn own_row() -> u32 { return stand_in_lane * OWN / EDGE; }
fn own_column() -> u32 { return stand_in_lane * OWN % EDGE; }
// Stores numbers as a device may that takes halves below the normal ones for zero.
fn store_normal(v: vec4<f32>) -> Pack { return store4(select(v, vec4<f32>(0.0), abs(v) < vec4<f32>(6.1035e-5))); }
fn multiply_add(left: Left, right: Right, sum: Sum) -> Sum {
    var factor = left;
    var all = sum;
    let column = own_column();
    for (var j = 0u; j < OWN; j++) {
        var sum_j = all[j];
        for (var i = 0u; i < EDGE / 4u; i++) { sum_j += dot(factor[i], right_four(right, 4u * i, column + j)); }
        all[j] = sum_j;
    }
    return all;
}
";

const LEFT_FACTOR: &str = "
fn left_four_ARRAY(at: u32, i: u32) -> vec4<f32> { return FOUR; }
fn left_of_ARRAY(base: u32, stride: u32) -> Left {
    var all: Left;
    for (var i = 0u; i < EDGE / 4u; i++) { all[i] = left_four_ARRAY(base + own_row() * stride, 4u * i); }
    return all;
}
";

// Four neighbours in a column of the right factor, which lie in as many rows of the array.
const BY_ROWS: &str = "
fn right_cell_ARRAY(at: u32, i: u32) -> f32 { return FACTOR; }
fn four_by_rows_ARRAY(base: u32, stride: u32, k: u32, column: u32) -> vec4<f32> {
    var all: vec4<f32>;
    for (var i = 0u; i < 4u; i++) { all[i] = right_cell_ARRAY(base + (k + i) * stride, column); }
    return all;
}
fn rows_of_ARRAY(at: u32, stride: u32) -> Right { return Right(IN_by_rows_ARRAY, at, stride); }
";

// Four neighbours in a column of the right factor, which are neighbours in the array.
const BY_COLUMNS: &str = "
fn four_by_columns_ARRAY(base: u32, stride: u32, i: u32, column: u32) -> vec4<f32> {
    let at = base + column * stride;
    return FOUR;
}
fn columns_of_ARRAY(at: u32, stride: u32) -> Right { return Right(IN_by_columns_ARRAY, at, stride); }
";

const SUMS: &str = "
fn keep_in_ARRAY(sum: Sum, base: u32, stride: u32) {
    var own = sum;
    let at = base + own_row() * stride;
    for (var j = 0u; j < OWN; j++) {
        let i = own_column() + j;
        SUM = own[j];
    }
}
";
