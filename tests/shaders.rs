//! Checks every shader of every case without a GPU: that it parses, validates, translates to every backend's language,
//! and agrees with its kernel on bindings and parameters.

use mobilediffusion_kernels::draw::Draw;
use mobilediffusion_kernels::kernel::has_weights;
use mobilediffusion_kernels::variant::{Machine, MatrixUnit, Needs, choose, runnable};
use mobilediffusion_kernels::{
    Access, Case, DType, FAMILIES, Family, FloatType, Param, Program, Stage, Storage, Variant, WeightType, wgsl,
};
use mobilediffusion_runtime::Caps;
use mobilediffusion_tests::random;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, Scalar, ScalarKind, StorageAccess, TypeInner};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// Number of storage buffers that every WebGPU device offers to a shader.
const MAX_STORAGE_BUFFERS: usize = 8;
/// Number of workgroups on an axis that every WebGPU device offers.
const MAX_GRID: u32 = 65_535;

/// Matrix units of Apple's GPUs, the only ones that Metal has.
const APPLE: MatrixUnit = MatrixUnit { edge: 8, subgroup: 32 };

/// What a valid module declares, or the error of the first check that failed.
type Checked = Result<Interface, String>;

/// What a module declares that its kernel must agree with. Thousands of whole modules would take gigabytes.
struct Interface {
    /// Global variables with a binding, in order of their bindings.
    bound: Vec<Bound>,
    /// Name and members of the type of the first binding.
    params: (Option<String>, Vec<Member>),
}

/// Name of a struct's member, its offset in bytes, and its kind if it is a scalar of four bytes.
type Member = (String, u32, Option<ScalarKind>);

struct Bound {
    at: (u32, u32),
    name: Option<String>,
    space: AddressSpace,
    /// Scalar of which an array consists, alone or in vectors; none if it is no array.
    scalar: Option<Scalar>,
}

impl Interface {
    fn of(module: &Module) -> Self {
        let mut bound: Vec<_> = module.global_variables.iter().filter_map(|(_, v)| Some((v.binding?, v))).collect();
        bound.sort_by_key(|(at, _)| (at.group, at.binding));
        let params = bound.first().map_or_else(Default::default, |(_, var)| members(module, var.ty));
        let scalar = |ty: naga::Handle<naga::Type>| match module.types[ty].inner {
            TypeInner::Array { base, .. } => module.types[base].inner.scalar(),
            _ => None,
        };
        let bound = bound.into_iter().map(|(at, var)| Bound {
            at: (at.group, at.binding),
            name: var.name.clone(),
            space: var.space,
            scalar: scalar(var.ty),
        });
        Self { bound: bound.collect(), params }
    }
}

/// Returns the name and the members of a struct, none for another type.
fn members(module: &Module, ty: naga::Handle<naga::Type>) -> (Option<String>, Vec<Member>) {
    let ty = &module.types[ty];
    let TypeInner::Struct { members, .. } = &ty.inner else { return (ty.name.clone(), Vec::new()) };
    let of = |member: &naga::StructMember| {
        let kind = match module.types[member.ty].inner {
            TypeInner::Scalar(Scalar { kind, width: 4 }) => Some(kind),
            _ => None,
        };
        (member.name.clone().unwrap_or_default(), member.offset, kind)
    };
    (ty.name.clone(), members.iter().map(of).collect())
}

fn capabilities(storage: Storage, needs: &Needs) -> Capabilities {
    let matrices = needs.matrix.map_or(Capabilities::empty(), |_| Capabilities::COOPERATIVE_MATRIX);
    let floats = match storage.floats {
        FloatType::F32 if storage.weights == WeightType::F16 => Capabilities::SHADER_FLOAT16_IN_FLOAT32,
        FloatType::F32 => Capabilities::empty(),
        FloatType::F16 => Capabilities::SHADER_FLOAT16,
        FloatType::F16Packed => Capabilities::SHADER_FLOAT16_IN_FLOAT32,
    };
    matrices | floats
}

/// Checks everything about a module that depends on its text alone.
fn check_text(text: &str, storage: Storage, needs: &Needs) -> Checked {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities(storage, needs));
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(text))?;
    let [entry] = module.entry_points.as_slice() else { return Err("expected one entry point".into()) };
    if entry.name != "main" || entry.stage != naga::ShaderStage::Compute {
        return Err(format!("expected the compute entry point main, found {} ({:?})", entry.name, entry.stage));
    }
    let invocations: u32 = entry.workgroup_size.iter().product();
    if invocations > needs.invocations {
        return Err(format!("{invocations} invocations in a workgroup"));
    }
    let bytes = workgroup_bytes(&module, &info);
    if bytes > needs.workgroup_bytes {
        return Err(format!("{bytes} bytes of workgroup memory"));
    }
    translate(&module, &info, needs)?;
    Ok(Interface::of(&module))
}

fn workgroup_bytes(module: &Module, info: &ModuleInfo) -> u32 {
    let used = info.get_entry_point(0);
    let in_workgroup = module.global_variables.iter().filter(|(_, var)| var.space == AddressSpace::WorkGroup);
    in_workgroup
        .filter(|(handle, _)| !used[*handle].is_empty())
        .map(|(_, var)| module.types[var.ty].inner.size(module.to_ctx()))
        .sum()
}

/// Translates a module for Vulkan, Metal and, unless it uses matrix units, Direct3D.
fn translate(module: &Module, info: &ModuleInfo, needs: &Needs) -> Result<(), String> {
    // `needs` does not tell: a stage without matrices can belong to a variant that uses them in another stage.
    let matrices = module.types.iter().any(|(_, ty)| matches!(ty.inner, TypeInner::CooperativeMatrix { .. }));
    if !matrices {
        let text = to_hlsl(module, info).map_err(|e| format!("Direct3D: {e}"))?;
        check_hlsl(&text).map_err(|e| format!("Direct3D: {e}"))?;
        keep("hlsl", &text);
    }
    naga::back::spv::write_vec(module, info, &Default::default(), None).map_err(|e| format!("SPIR-V: {e}"))?;
    let metal = to_metal(module, info).map_err(|e| format!("Metal: {e}"))?;
    if !matrices || needs.matrix == Some(APPLE) {
        keep("metal", &metal);
    }
    Ok(())
}

/// Translates a module to Metal's language with wgpu's options for a trusted shader.
fn to_metal(module: &Module, info: &ModuleInfo) -> Result<String, String> {
    use naga::back::msl;
    let options = msl::Options {
        lang_version: (2, 4),
        bounds_check_policies: Default::default(),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let (text, translation) =
        msl::write_string(module, info, &options, &Default::default()).map_err(|e| e.to_string())?;
    let names = translation.entry_point_names;
    names.into_iter().find_map(Result::err).map_or(Ok(text), |e| Err(e.to_string()))
}

/// Translates a module to HLSL with wgpu's options for a trusted shader.
fn to_hlsl(module: &Module, info: &ModuleInfo) -> Result<String, String> {
    use naga::back::hlsl;
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let (pipeline, mut text) = (hlsl::PipelineOptions::default(), String::new());
    let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    let names = written.map_err(|e| e.to_string())?.entry_point_names;
    names.into_iter().find_map(Result::err).map_or(Ok(text), |e| Err(e.to_string()))
}

/// Checks that no function is defined twice. naga 30 defines the function for a zero value `T()` once for every name of
/// the type, and compilers refuse the second definition.
fn check_hlsl(text: &str) -> Result<(), String> {
    let mut heads = text.lines().filter(|line| line.starts_with(|c: char| c.is_alphabetic()) && line.contains('('));
    let mut seen = HashSet::new();
    match heads.find(|head| !seen.insert(*head)) {
        Some(twice) => Err(format!("defined twice: {twice}")),
        None => Ok(()),
    }
}

/// Writes a translated module into the folder `SHADER_FOLDER`, if that is set, for `tests/direct3d` and `tests/metal`. With
/// `SHADER_EVERY=n` about one module in `n` is written; all of them are more than a gigabyte.
fn keep(language: &str, text: &str) {
    let Some(folder) = std::env::var_os("SHADER_FOLDER") else { return };
    let every = std::env::var("SHADER_EVERY").map_or(1, |every| every.parse().expect("SHADER_EVERY is a number"));
    let folder = Path::new(&folder).join(language);
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let name = hasher.finish();
    if !name.is_multiple_of(every) {
        return;
    }
    let path = folder.join(format!("{name:016x}.{language}"));
    std::fs::create_dir_all(folder).and_then(|()| std::fs::write(path, text)).expect("the folder takes files");
}

/// Returns the scalars of which the array of an operand consists, alone or in vectors.
fn scalar_of(dtype: DType, storage: Storage) -> Scalar {
    match (dtype, storage.weights, storage.floats) {
        (DType::F32, ..) => Scalar::F32,
        (DType::U32, ..) | (DType::Weight | DType::WeightSum, WeightType::Int8, _) => Scalar::U32,
        (DType::Weight, WeightType::F16, FloatType::F32) | (_, _, FloatType::F16Packed) => Scalar::U32,
        (_, _, FloatType::F16) => Scalar { kind: ScalarKind::Float, width: 2 },
        (_, _, FloatType::F32) => Scalar::F32,
    }
}

/// Checks a module against the stage of a kernel: grid, bindings, names, access, element types and parameters.
fn check_stage(Stage { program, operands }: &Stage, storage: Storage, module: &Interface) -> Result<(), String> {
    if program.grid.iter().any(|groups| !(1..=MAX_GRID).contains(groups)) {
        return Err(format!("grid {:?}", program.grid));
    }
    let bound = &module.bound;
    // An operand that is left out keeps its binding number, but the module does not declare it.
    let numbered = (1..).zip(operands);
    let (numbers, operands): (Vec<u32>, Vec<_>) = numbered.filter(|(_, operand)| operand.present).unzip();
    if !bound.iter().map(|var| var.at).eq([0].iter().chain(&numbers).map(|i| (0, *i))) {
        let found: Vec<_> = bound.iter().map(|var| (var.at, &var.name)).collect();
        return Err(format!("expected bindings 0 and {numbers:?}, found {found:?}"));
    }
    if operands.len() > MAX_STORAGE_BUFFERS {
        return Err(format!("{} storage buffers", operands.len()));
    }
    if bound[0].space != AddressSpace::Uniform {
        return Err("binding 0 is not the uniform".into());
    }
    check_params(&program.params, module)?;
    for (operand, var) in operands.iter().zip(&bound[1..]) {
        let binding = var.at.1;
        let access = match operand.access {
            Access::Read => StorageAccess::LOAD,
            Access::Write => StorageAccess::LOAD | StorageAccess::STORE,
        };
        if var.name.as_deref() != Some(operand.name) || var.space != (AddressSpace::Storage { access }) {
            return Err(format!(
                "binding {binding}: expected `{}` ({:?}), found {:?} in {:?}",
                operand.name, operand.access, var.name, var.space
            ));
        }
        let expected = scalar_of(operand.dtype, storage);
        if var.scalar != Some(expected) {
            return Err(format!("binding {binding}: `{}` has {:?}, expected {expected:?}", operand.name, var.scalar));
        }
    }
    Ok(())
}

fn check_params(params: &[Param], module: &Interface) -> Result<(), String> {
    let (name, found) = &module.params;
    if name.as_deref() != Some("Params") {
        return Err(format!("expected the uniform's type Params, found {name:?}"));
    }
    let expected: Vec<Member> = (0..)
        .step_by(4)
        .zip(params)
        .map(|(offset, param)| {
            let kind = if matches!(param, Param::U(..)) { ScalarKind::Uint } else { ScalarKind::Float };
            (param.name().to_owned(), offset, Some(kind))
        })
        .collect();
    if *found == expected { Ok(()) } else { Err(format!("expected params {expected:?}, found {found:?}")) }
}

/// Modules checked so far by their text, with the result.
type Texts = HashMap<String, Checked>;

/// Checks a case in every variant and storage type.
fn check_variants(case: &Case, texts: &mut Texts) -> Result<(), String> {
    let variants = case.kernel.variants();
    if runnable(case.kernel.as_ref(), &Caps::PORTABLE, Storage::F32).is_empty() {
        return Err(format!("{:?}: no variant runs everywhere: {variants:?}", case.kernel));
    }
    variants.iter().try_for_each(|variant| check_storages(case, variant, texts))
}

fn check_storages(case: &Case, variant: &Variant, texts: &mut Texts) -> Result<(), String> {
    let stages = case.kernel.stages(variant);
    let grid = stages[0].program.grid;
    if variant.name != Variant::ONLY.name && grid.iter().map(|axis| *axis as usize).product::<usize>() < variant.groups
    {
        return Err(format!("{:?} {variant:?}: grid {grid:?}", case.kernel));
    }
    let floats = [Storage::F32, Storage::F16, Storage::F16_PACKED];
    let narrow = [WeightType::F16, WeightType::Int8];
    let narrow = floats.into_iter().flat_map(|storage| narrow.map(|weights| storage.with_weights(weights)));
    let all = floats.into_iter().chain(narrow.filter(|_| has_weights(case.kernel.as_ref())));
    let fits = |storage: &Storage| variant.needs.matrix.is_none() || storage.floats == FloatType::F16;
    for (storage, stage) in all.filter(fits).flat_map(|storage| stages.iter().map(move |stage| (storage, stage))) {
        let text = wgsl::compose(stage, storage).map_err(|e| e.to_string())?;
        let checked = texts.entry(text).or_insert_with_key(|text| check_text(text, storage, &variant.needs));
        let verdict = checked.as_ref().map_err(String::clone).and_then(|module| check_stage(stage, storage, module));
        verdict.map_err(|e| format!("{:?} {} {storage}: {e}", case.kernel, variant.name))?;
    }
    Ok(())
}

/// Checks a family's built-in cases and shapes, and random problems, which combine switches in ways that none of those
/// does. Returns the failures.
fn check_family(family: &Family) -> Vec<String> {
    let mut texts = Texts::new();
    let cases = (family.cases)().into_iter().chain((family.model_shapes)());
    let mut failures: Vec<String> = cases.filter_map(|case| check_variants(&case, &mut texts).err()).collect();
    if texts.is_empty() {
        failures.push(format!("{}: no shader was checked", family.name));
    }
    let texts = RefCell::new(texts);
    let check = |case: &Case, _, _: &mut Draw<'_>| check_variants(case, &mut texts.borrow_mut());
    failures.extend(random::problems(family, 150, check).err());
    failures
}

#[test]
fn every_shader_agrees_with_its_kernel() {
    let failures: Vec<String> = FAMILIES.par_iter().with_max_len(1).flat_map(check_family).collect();
    assert!(
        failures.is_empty(),
        "{} failures, the first:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

#[test]
fn mistakes_are_noticed() {
    let family = mobilediffusion_kernels::family("linear").expect("there is a linear kernel");
    let case = (family.cases)().into_iter().next().expect("it has cases");
    let variant = choose(case.kernel.as_ref(), &Machine::PORTABLE);
    let program = case.kernel.program(&variant);
    let stage = |program: &Program| Stage { program: program.clone(), operands: case.kernel.operands() };
    let text = wgsl::compose(&stage(&program), Storage::F32).expect("it composes");
    let verdict = |text: &str, program: &Program| {
        let stage = stage(program);
        check_text(text, Storage::F32, &Needs::PORTABLE).and_then(|module| check_stage(&stage, Storage::F32, &module))
    };
    assert_eq!(verdict(&text, &program), Ok(()));
    let changed = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is not in the shader");
        verdict(&changed, &program)
    };
    assert!(changed("@binding(1)", "@binding(9)").is_err(), "a gap in the bindings");
    assert!(changed("var<storage, read>", "var<storage, read_write>").is_err(), "an input that is written");
    let module = check_text(&text, Storage::F32, &Needs::PORTABLE).expect("it is right");
    let halves = check_stage(&stage(&program), Storage::F16, &module);
    assert!(halves.is_err_and(|e| e.contains("binding 1: `x` has")), "elements of another type");
    assert!(changed("fn main", "fn start").is_err(), "another entry point");
    assert!(changed("array<vec4<f32>, SCRATCH>", "array<vec4<f32>, 2048>").is_err(), "too much workgroup memory");
    let with = |params: Vec<Param>, grid: [u32; 3]| verdict(&text, &Program { params, grid, ..program.clone() });
    let mut turned = program.params.clone();
    turned.reverse();
    assert!(with(turned, program.grid).is_err(), "params in another order");
    assert!(with(program.params[1..].to_vec(), program.grid).is_err(), "a missing param");
    assert!(with(program.params.clone(), [MAX_GRID + 1, 1, 1]).is_err(), "a grid that is too large");
    let twin = "alias Twin = vec4<f32>;\nfn a() -> vec4<f32> { return Twin(); }\nfn b() -> vec4<f32> { return vec4<f32>(); }\n";
    assert!(verdict(&(text.clone() + twin), &program).is_err_and(|e| e.contains("twice")), "a type with two names");
}
