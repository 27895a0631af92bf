//! Compilation of kernels before they are checked or timed, on all threads.

use crate::terminal::each_with_bar;
use mobilediffusion_kernels::{Kernel, Storage, Variant, wgsl};
use mobilediffusion_runtime::Gpu;
use std::collections::HashSet;

/// Compiles kernels, each by several variants, on every one of `gpus` while there is time, the first ones first. Whoever
/// runs them finds them compiled. An error is left to that run, which meets it again and reports it.
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
}
