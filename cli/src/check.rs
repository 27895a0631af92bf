//! `check`: compares kernels with their references or with case files; or a whole plan, step by step.

use crate::Failure;
use crate::args::{Check, time_left, until};
use crate::compile::{compile, save};
use crate::device::{device, open, shown_as};
use crate::graphs::{NetworkName, borrowed, inputs, recorded, weights};
use crate::terminal::{note, one_line, printable, result};
use mobilediffusion_graph::{Against, Weights, compare};
use mobilediffusion_kernels::casefile::CaseFile;
use mobilediffusion_kernels::kernel::split;
use mobilediffusion_kernels::runner::{RunError, Verdict, check_case, check_file, check_variants};
use mobilediffusion_kernels::variant::runnable;
use mobilediffusion_kernels::{
    Case, Device, FAMILIES, Family, GpuDevice, Kernel, Operand, Storage, Tolerance, Variant,
};
use mobilediffusion_runtime::{AdapterKind, Gpu, RuntimeError, Select};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) fn run(args: &Check) -> Result<(), Failure> {
    let gpu = open(&args.device)?.map(Arc::new);
    let device = device(gpu.as_ref(), Some(args.dtype), args.weights_dtype)?;
    if args.every_variant && gpu.is_none() {
        return Err("--every-variant: expected a GPU, found the CPU, on which kernels have no variants".into());
    }
    note(&shown_as(&device));
    if let Some(network) = args.plan {
        return plan(args, network, device);
    }
    result(&format!("{:6} {:18} {:>9} {:>9} {:>17}  case", "", "kernel", "max abs", "rel L2", "tolerance"))?;
    let (mut tally, mut unused) = (Tally::default(), Vec::new());
    if args.paths.is_empty() {
        let checked = gpu.as_deref().map(open_checked).transpose()?.map(Arc::new);
        let both = gpu.as_ref().zip(checked.as_ref());
        let wanted = |family: &&Family| args.kernels.is_empty() || args.kernels.iter().any(|name| name == family.name);
        let families: Vec<&Family> = FAMILIES.iter().filter(wanted).collect();
        let time_left = time_left(until(args.within));
        let software = gpu.as_ref().is_some_and(|gpu| gpu.adapter().kind == AdapterKind::Software);
        for (number, family) in (1..).zip(&families) {
            let cases = (family.cases)();
            if let Some((trusted, watched)) = both.filter(|_| args.every_variant) {
                let title = format!("[{number}/{}] compiling {}", families.len(), family.name);
                let storage = device.storage();
                let kernels = cases.iter().map(|case| case.kernel.as_ref());
                let all = kernels.map(|kernel| (kernel, runnable(kernel, trusted.caps(), storage)));
                compile(&title, &[trusted, watched], storage, all, time_left);
            }
            for (seed, case) in (1..).zip(cases) {
                if !time_left() || (args.within.is_some() && is_slow(software, &case)) {
                    tally.left_out += 1;
                    continue;
                }
                for (variant, verdict) in verdicts(both, &device, &case, seed, args.every_variant) {
                    tally.row(case.kernel.as_ref(), verdict, &variant)?;
                }
            }
        }
        checked.iter().for_each(|gpu| save(gpu));
        if let Some(gpu) = gpu.as_ref().filter(|_| args.every_variant && families.iter().any(|f| uses_matrices(f))) {
            unused = gpu.refused_matrices().iter().map(ToString::to_string).collect();
        }
    }
    for path in &args.paths {
        match case_files(path) {
            Ok(files) => files.iter().try_for_each(|file| tally.file(&device, file))?,
            Err(why) => tally.error(&format!("{}: {why}", path.display()))?,
        }
    }
    gpu.iter().for_each(|gpu| save(gpu));
    let Tally { passed, failed, left_out } = tally;
    if left_out > 0 {
        note(&format!("{left_out} cases were left out to end within the time"));
    }
    if failed > 0 {
        return Err(format!("{failed} of {} cases failed", passed + failed).into());
    }
    if passed == 0 {
        return Err("no case was checked".into());
    }
    if !unused.is_empty() {
        return Err(format!("not every variant was checked: {}", unused.join("; ")).into());
    }
    note(&format!("{passed} case{} passed", if passed == 1 { "" } else { "s" }));
    Ok(())
}

/// Runs a case and returns the verdicts: on the CPU one; on a GPU one for the variant that it would choose or one for
/// every variant, each with its label. Of `both` devices the first trusts shaders and the second checks them as they
/// run. The second runs only if all verdicts of the first are good, and its verdicts are the ones returned.
fn verdicts(
    both: Option<(&Arc<Gpu>, &Arc<Gpu>)>,
    device: &Device,
    case: &Case,
    seed: u64,
    every_variant: bool,
) -> Vec<(String, Result<Verdict, RunError>)> {
    let Some((trusted, watched)) = both else { return vec![(String::new(), check_case(device, case, seed))] };
    let on = |gpu: &Arc<Gpu>| {
        if every_variant {
            let each = check_variants(GpuDevice { gpu, storage: device.storage() }, case, seed).into_iter();
            return each.map(|(variant, verdict)| (label(&variant), verdict)).collect();
        }
        vec![(String::new(), check_case(&Device::Gpu(Arc::clone(gpu), device.storage()), case, seed))]
    };
    let mut rows: Vec<_> = on(trusted);
    if rows.iter().all(|(_, verdict)| verdict.as_ref().is_ok_and(|verdict| verdict.failure.is_none())) {
        rows = on(watched);
    }
    rows
}

/// Returns whether a case may take a minute, in which nothing can interrupt it. `software` stands for a software driver.
fn is_slow(software: bool, case: &Case) -> bool {
    software && case.is_long()
}

/// Returns whether a family has variants for matrix units.
fn uses_matrices(family: &Family) -> bool {
    (family.cases)().iter().flat_map(|case| case.kernel.variants()).any(|variant| variant.needs.matrix.is_some())
}

/// Returns the label of a variant, empty if the kernel has only one.
fn label(variant: &Variant) -> String {
    if variant.name == Variant::ONLY.name { String::new() } else { format!("by {}: ", variant.name) }
}

/// Runs a network's plan step by step on the device, and compares it with the CPU device or the references.
fn plan(args: &Check, name: NetworkName, device: Device) -> Result<(), Failure> {
    let source = args.networks.source()?;
    let (network, recording, title) = recorded(name, &source.config, args.networks.size, None)?;
    let values = inputs(&recording);
    let references = args.references || matches!(device, Device::Cpu(_));
    let rounded = Storage::F32.with_weights(args.weights_dtype);
    let weights = weights(network, &source, &device)?.rounded(rounded);
    let cpu = Weights::new(Device::CPU, source.open(network)?).rounded(rounded);
    let (truth, name) = match references {
        true => (Against::References(&cpu), "the kernels' references"),
        false => (Against::Device(&cpu), "the CPU"),
    };
    let steps = recording.nodes().len();
    note(&format!("{title}: {steps} steps against {name}"));
    match compare(&recording, truth, &weights, &borrowed(&values))? {
        Some(divergence) => {
            result(&divergence.to_string())?;
            Err(format!("step {} of {steps} differs", divergence.step).into())
        }
        None => Ok(result(&format!("all {steps} steps agree"))?),
    }
}

/// Opens a GPU again, with shaders checked as they run.
fn open_checked(gpu: &Gpu) -> Result<Gpu, RuntimeError> {
    pollster::block_on(Gpu::open_checked(&Select::Same(gpu.adapter().clone()))).map(Gpu::with_user_cache)
}

/// Returns the case files that a path stands for: a file itself, or the `.safetensors` files of a folder, sorted by
/// name.
fn case_files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: Vec<PathBuf> = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_, Failure>>()?;
    let mut files: Vec<_> = entries.into_iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    if files.is_empty() { Err("expected a folder with .safetensors files, found none in it".into()) } else { Ok(files) }
}

/// Number of cases printed so far.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Number of cases that were not reached in time, or would not end in time.
    left_out: usize,
}

impl Tally {
    /// Runs a case file and prints its row.
    fn file(&mut self, device: &Device, path: &Path) -> Result<(), Failure> {
        match CaseFile::read(path) {
            Ok(file) => {
                let label = printable(&format!("{}: ", path.display()));
                self.row(file.case.kernel.as_ref(), check_file(device, &file), &label)
            }
            Err(error) => self.error(&error.to_string()),
        }
    }

    /// Prints an error as the row of a case.
    fn error(&mut self, text: &str) -> Result<(), Failure> {
        self.failed += 1;
        Ok(result(&format!("ERROR  {}", one_line(text)))?)
    }

    /// Prints the row of a case. `label` distinguishes it from other rows of the kernel.
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

/// Formats a tolerance, `1.0e-7+2.0e-6r`: the absolute part, and the part relative to the value.
fn allowed(Tolerance { absolute, relative, .. }: Tolerance) -> String {
    if (absolute, relative) == (0.0, 0.0) { "exact".to_owned() } else { format!("{absolute:.1e}+{relative:.1e}r") }
}

/// Formats the shapes of a kernel's operands: `x[2, 3] w[4, 3] -> y[2, 4]`.
fn shapes(kernel: &dyn Kernel) -> String {
    let list = |operands: Vec<Operand>| {
        let present = operands.iter().filter(|o| o.present);
        present.map(|o| format!("{}{:?}", o.name, o.shape)).collect::<Vec<_>>().join(" ")
    };
    let (read, written) = split(kernel);
    format!("{} -> {}", list(read), list(written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cases_of_more_workgroups_than_an_axis_are_slow() {
        let slow = |software| {
            let cases = FAMILIES.iter().flat_map(|family| (family.cases)());
            let slow = cases.filter(|case| is_slow(software, case));
            slow.map(|case| (case.kernel.name(), case.kernel.operands()[0].shape[0])).collect::<Vec<_>>()
        };
        assert_eq!((slow(true), slow(false)), (vec![("channel_moments", 65_537), ("layer_norm", 65_537)], vec![]));
    }
}
