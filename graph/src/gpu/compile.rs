//! Compilation of the pipelines of all steps, by several threads, while the first steps are already being bound.

use crate::error::GraphError;
use crate::record::Recording;
use mobilediffusion_kernels::{Stage, Storage, wgsl};
use mobilediffusion_runtime::{Binding, Gpu, Pipeline, RuntimeError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

/// WGSL module to compile.
struct Module {
    kernel: &'static str,
    text: String,
    bindings: Vec<Binding>,
}

/// Compiles the pipelines of all stages, each distinct module once, and passes them to `bind` with the number of the
/// stage, in order. The first stage that fails ends the work, independently of the order in which the threads finish.
///
/// # Errors
/// If a module does not compile, or `bind` fails; the error is that of the first such stage.
pub(super) fn each_stage(
    gpu: &Gpu,
    storage: Storage,
    (recording, stages): (&Recording, &[(usize, Stage)]),
    mut bind: impl FnMut(usize, &Arc<Pipeline>) -> Result<(), GraphError>,
) -> Result<(), GraphError> {
    let (modules, module_of) = modules((recording, stages), storage)?;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        let (next, stop, all) = (&next, &stop, &modules);
        on_threads(scope, all, move || {
            while let Some((number, module)) = take(next, all).filter(|_| !stop.load(Ordering::Relaxed)) {
                let made = gpu.pipeline(module.kernel, &module.text, &module.bindings);
                // The receiver is gone once a stage has failed.
                let _ = send.send((number, made));
            }
        });
        let mut made: Vec<Option<Result<Arc<Pipeline>, RuntimeError>>> = modules.iter().map(|_| None).collect();
        let mut one = |stage: usize| {
            let (module, (step, _)) = (module_of[stage], &stages[stage]);
            while made[module].is_none() {
                let (number, result) = receive.recv().expect("every module is compiled by one of the threads");
                made[number] = Some(result);
            }
            let at = GraphError::at(&recording.nodes[*step].path);
            let pipeline = made[module].clone().expect("the loop above has received it").map_err(at)?;
            bind(stage, &pipeline)
        };
        let done = (0..stages.len()).try_for_each(&mut one);
        stop.store(true, Ordering::Relaxed);
        done
    })
}

/// Compiles the pipelines of all stages until `stop` is set, and leaves errors to [`each_stage`].
pub(super) fn ahead(
    gpu: &Gpu,
    storage: Storage,
    (recording, stages): (&Recording, &[(usize, Stage)]),
    stop: &AtomicBool,
) {
    let Ok((modules, _)) = modules((recording, stages), storage) else { return };
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        on_threads(scope, &modules, || {
            while let Some((_, module)) = take(&next, &modules).filter(|_| !stop.load(Ordering::Relaxed)) {
                let _ = gpu.pipeline(module.kernel, &module.text, &module.bindings);
            }
        });
    });
}

/// Runs `work` on as many threads as there are cores, but no more than modules, or on this thread if none can be started.
fn on_threads<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    modules: &[Module],
    work: impl Fn() + Clone + Send + 'scope,
) {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(modules.len());
    let start = || thread::Builder::new().spawn_scoped(scope, work.clone());
    if (0..threads).filter(|_| start().is_ok()).count() == 0 {
        work();
    }
}

/// Takes the next module that no thread has begun.
fn take<'a>(next: &AtomicUsize, modules: &'a [Module]) -> Option<(usize, &'a Module)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    modules.get(number).map(|module| (number, module))
}

/// Composes all modules; returns the distinct ones in order of first use, and the index of each stage's module.
fn modules(
    (recording, stages): (&Recording, &[(usize, Stage)]),
    storage: Storage,
) -> Result<(Vec<Module>, Vec<usize>), GraphError> {
    let (mut modules, mut known, mut module_of) = (Vec::new(), HashMap::new(), Vec::new());
    // Most stages share template, constants and bindings with one before them, and thus the module.
    let mut composed: HashMap<_, usize> = HashMap::new();
    for (step, stage) in stages {
        let bindings = stage.bindings();
        let key = (stage.program.wgsl.as_ptr(), &stage.program.constants, bindings.clone());
        if let Some(&number) = composed.get(&key) {
            module_of.push(number);
            continue;
        }
        let node = &recording.nodes[*step];
        let kernel = node.kernel.name();
        let text = wgsl::compose(&stage.program, storage).map_err(|unknown| GraphError::Device {
            node: node.path.clone(),
            source: RuntimeError::Validation { what: kernel.to_owned(), message: unknown.to_string() },
        })?;
        let number = *known.entry((text.clone(), bindings.clone())).or_insert_with(|| {
            modules.push(Module { kernel, text, bindings });
            modules.len() - 1
        });
        composed.insert(key, number);
        module_of.push(number);
    }
    Ok((modules, module_of))
}
