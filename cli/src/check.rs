//! `check`: kernels against their references, or against case files from elsewhere; or a whole plan, step by step.

use crate::Failure;
use crate::args::{Check, Floats, WeightsDtype};
use crate::graphs::{Network, borrowed, inputs};
use crate::terminal::{note, one_line, result};
use mobilediffusion_graph::{Against, Device, Weights, compare};
use mobilediffusion_kernels::casefile::CaseFile;
use mobilediffusion_kernels::runner::{RunError, Target, Verdict, check_case, check_file, check_variants, split};
use mobilediffusion_kernels::{Case, FAMILIES, Family, FloatType, Kernel, Operand, Storage, Tolerance, Variant};
use mobilediffusion_model::networks::Shape;
use mobilediffusion_model::{DeviceChoice, ModelError, Options};
use mobilediffusion_runtime::{Gpu, RuntimeError, Select};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) fn run(args: &Check) -> Result<(), Failure> {
    let gpu = open(&args.device)?;
    let target = target(gpu.as_ref(), args.dtype, args.weights_dtype)?;
    match &gpu {
        None => note(&format!("device: CPU, {}", target.storage())),
        Some(gpu) => note(&format!("device: {}, {}", gpu.adapter(), target.storage())),
    }
    if let Some(network) = args.plan {
        let storage = target.storage();
        let device = gpu.map_or(Device::Cpu(storage.weights), |gpu| Device::Gpu(Arc::new(gpu), storage));
        return plan(args, network, device);
    }
    result(&format!("{:6} {:18} {:>9} {:>9} {:>17}  case", "", "kernel", "max abs", "rel L2", "tolerance"))?;
    let mut tally = Tally::default();
    if args.paths.is_empty() {
        let checked = gpu.as_ref().map(open_checked).transpose()?;
        let both = gpu.as_ref().zip(checked.as_ref());
        let wanted = |family: &&Family| args.kernels.is_empty() || args.kernels.iter().any(|name| name == family.name);
        for (seed, case) in FAMILIES.iter().filter(wanted).flat_map(|family| (1..).zip((family.cases)())) {
            for (variant, verdict) in verdicts(both, target, &case, seed, args.every_variant) {
                tally.row(case.kernel.as_ref(), verdict, &variant)?;
            }
        }
    }
    for path in &args.paths {
        match case_files(path) {
            Ok(files) => files.iter().try_for_each(|file| tally.file(target, file))?,
            Err(why) => tally.error(&format!("{}: {why}", path.display()))?,
        }
    }
    let Tally { passed, failed } = tally;
    if failed > 0 {
        return Err(format!("{failed} of {} cases failed", passed + failed).into());
    }
    note(&format!("{passed} cases passed"));
    Ok(())
}

/// What came of a case, on a GPU by the variant it would take or by every one, each with its label: with shaders trusted
/// and, if that is right, with shaders watched as they run, on the second of `both`.
fn verdicts(
    both: Option<(&Gpu, &Gpu)>,
    target: Target<'_>,
    case: &Case,
    seed: u64,
    every_variant: bool,
) -> Vec<(String, Result<Verdict, RunError>)> {
    let Some((trusted, watched)) = both else { return vec![(String::new(), check_case(target, case, seed))] };
    let on = |gpu| {
        if every_variant {
            let each = check_variants((gpu, target.storage()), case, seed).into_iter();
            return each.map(|(variant, verdict)| (label(&variant), verdict)).collect();
        }
        vec![(String::new(), check_case(Target::Gpu(gpu, target.storage()), case, seed))]
    };
    let mut rows: Vec<_> = on(trusted);
    if rows.iter().all(|(_, verdict)| verdict.as_ref().is_ok_and(|verdict| verdict.failure.is_none())) {
        rows = on(watched);
    }
    rows
}

/// What tells a variant from the kernel's others, if there are any.
fn label(variant: &Variant) -> String {
    if variant.name == Variant::ONLY.name { String::new() } else { format!("by {}: ", variant.name) }
}

/// Runs a network's plan step by step on the device and on what it is held to.
fn plan(args: &Check, network: Network, device: Device) -> Result<(), Failure> {
    let config = args.networks.config()?;
    let size = args.networks.size.unwrap_or(config.defaults.image_size);
    let shape = Shape::own(&config, size)?;
    let recording = network.record(&config, &shape)?;
    let values = inputs(&recording);
    let references = args.references || matches!(device, Device::Cpu(_));
    let mut weights = Weights::new(device, network.weights(&args.networks)?);
    let rounded = Storage::F32.with_weights(args.weights_dtype.into());
    let mut cpu = Weights::new(Device::CPU, network.weights(&args.networks)?).rounded(rounded);
    let (truth, name) = match references {
        true => (Against::References(&cpu), "the kernels' references"),
        false => (Against::Device(&mut cpu), "the CPU"),
    };
    let steps = recording.nodes.len();
    note(&format!(
        "{} of {}, {size}x{size} pixels: {steps} steps against {name}",
        network.title(),
        config.defaults.name
    ));
    match compare(&recording, truth, &mut weights, &borrowed(&values), &mut |_, _| ())? {
        Some(divergence) => {
            result(&divergence.to_string())?;
            Err(format!("step {} of {steps} computes something else", divergence.step).into())
        }
        None => Ok(result(&format!("all {steps} steps agree"))?),
    }
}

/// The GPU that is meant, or none for the CPU.
pub(crate) fn open(choice: &DeviceChoice) -> Result<Option<Gpu>, Failure> {
    let Some(select) = choice.select() else { return Ok(None) };
    match pollster::block_on(Gpu::open(&select)).map(Gpu::with_user_cache) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(RuntimeError::NoAdapter { .. }) if *choice == DeviceChoice::Auto => Ok(None),
        Err(error) if *choice == DeviceChoice::Auto => {
            note(&format!("warning: no GPU could be opened: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The same GPU again, with shaders watched as they run.
fn open_checked(gpu: &Gpu) -> Result<Gpu, RuntimeError> {
    pollster::block_on(Gpu::open_checked(&Select::Same(gpu.adapter().clone()))).map(Gpu::with_user_cache)
}

/// Where kernels run and how tensors are stored there; what the CPU does not store is refused in the words of `generate`.
pub(crate) fn target(gpu: Option<&Gpu>, floats: Floats, weights: WeightsDtype) -> Result<Target<'_>, ModelError> {
    let Some(gpu) = gpu else {
        Options { floats: floats.into(), ..Options::default() }.check_cpu()?;
        return Ok(Target::Cpu(weights.into()));
    };
    Ok(Target::Gpu(gpu, floats.storage(gpu).with_weights(weights.into())))
}

impl Floats {
    /// How a plan is made for them; both forms of f16 take the same bytes.
    pub(crate) fn planned(self) -> Storage {
        if self == Self::F32 { Storage::F32 } else { Storage::F16 }
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        if self == Self::F32 { "f32" } else { "f16" }
    }

    /// Those of a storage.
    pub(crate) fn of(storage: Storage) -> Self {
        if storage.floats == FloatType::F32 { Self::F32 } else { Self::F16 }
    }

    /// What this GPU stores if nobody says.
    pub(crate) fn default_of(gpu: &Gpu) -> Self {
        Self::of(mobilediffusion_model::Floats::Auto.stored(gpu.adapter().kind, gpu.caps().shader_f16))
    }

    /// How this GPU stores them: in f16 proper, if it can.
    pub(crate) fn storage(self, gpu: &Gpu) -> Storage {
        mobilediffusion_model::Floats::from(self).stored(gpu.adapter().kind, gpu.caps().shader_f16)
    }
}

impl WeightsDtype {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Int8 { "int8" } else { "floats" }
    }
}

/// A file itself, or what a folder holds, by name.
fn case_files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: Vec<PathBuf> = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_, Failure>>()?;
    let mut files: Vec<_> = entries.into_iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    if files.is_empty() { Err("there is no .safetensors file in this folder".into()) } else { Ok(files) }
}

/// What was printed so far.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn file(&mut self, target: Target<'_>, path: &Path) -> Result<(), Failure> {
        match CaseFile::read(path) {
            Ok(file) => {
                let label = format!("{}: ", path.display());
                self.row(file.case.kernel.as_ref(), check_file(target, &file), &label)
            }
            Err(error) => self.error(&error.to_string()),
        }
    }

    fn error(&mut self, text: &str) -> Result<(), Failure> {
        self.failed += 1;
        Ok(result(&format!("ERROR  {}", one_line(text)))?)
    }

    /// `label` tells it from others of the kernel.
    fn row(&mut self, kernel: &dyn Kernel, verdict: Result<Verdict, RunError>, label: &str) -> Result<(), Failure> {
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(error) => return self.error(&format!("{label}{}: {error}", kernel.name())),
        };
        let word = if verdict.failure.is_none() { "pass" } else { "FAIL" };
        let (agreement, tolerance) = (verdict.agreement, allowed(verdict.tolerance));
        let mut line = format!(
            "{word:6} {:18} {:9.2e} {:9.2e} {tolerance:>17}  {label}{}",
            kernel.name(),
            agreement.max_abs,
            agreement.relative_l2,
            shapes(kernel)
        );
        match verdict.failure {
            Some(why) => {
                self.failed += 1;
                line.push_str(&format!("; {}", one_line(&why)));
            }
            None => self.passed += 1,
        }
        Ok(result(&line)?)
    }
}

/// `1.0e-7+2.0e-6r`: what is allowed of any value, and in proportion to it.
fn allowed(Tolerance { absolute, relative, .. }: Tolerance) -> String {
    if (absolute, relative) == (0.0, 0.0) { "exact".to_owned() } else { format!("{absolute:.1e}+{relative:.1e}r") }
}

/// `x[2, 3] w[4, 3] -> y[2, 4]`
fn shapes(kernel: &dyn Kernel) -> String {
    let list = |operands: Vec<Operand>| {
        let present = operands.iter().filter(|o| o.present);
        present.map(|o| format!("{}{:?}", o.name, o.shape)).collect::<Vec<_>>().join(" ")
    };
    let (read, written) = split(kernel);
    format!("{} -> {}", list(read), list(written))
}
