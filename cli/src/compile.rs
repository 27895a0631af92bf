//! Compilation of kernels before they are checked or timed, on all threads, and the file that keeps it for later runs.

use crate::terminal::each_with_bar;
use mobilediffusion_kernels::{Kernel, Storage, Variant, wgsl};
use mobilediffusion_runtime::Gpu;
use std::collections::HashSet;

/// Compiles kernels, each by several variants, on every one of `gpus` while there is time, the first ones first. Whoever
/// runs them finds them compiled, and so does a later run of the program. An error is left to whoever runs them, who
/// meets it again and reports it.
pub(crate) fn compile<'a>(
    title: &str,
    gpus: &[&Gpu],
    storage: Storage,
    kernels: impl IntoIterator<Item = (&'a dyn Kernel, Vec<Variant>)>,
    time_left: impl Fn() -> bool + Sync,
) {
    let (mut known, mut modules) = (HashSet::new(), Vec::new());
    for (kernel, variants) in kernels {
        for stage in variants.iter().flat_map(|variant| kernel.stages(variant)) {
            if let Ok(text) = wgsl::compose(&stage, storage)
                && known.insert(text.clone())
            {
                modules.push((kernel.name(), text, stage.bindings()));
            }
        }
    }
    let work: Vec<_> = modules.iter().flat_map(|module| gpus.iter().map(move |gpu| (gpu, module))).collect();
    each_with_bar(title, &work, |(gpu, (name, text, bindings))| {
        if time_left() {
            let _ = gpu.pipeline(name, text, bindings);
        }
    });
    gpus.iter().for_each(|gpu| save(gpu));
}

/// Saves what was compiled on a GPU for later runs. If that fails they compile again, which costs time and nothing else;
/// a device that is lost is reported by whoever needs it.
pub(crate) fn save(gpu: &Gpu) {
    let _ = gpu.save_pipelines();
}
