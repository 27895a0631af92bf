//! Compilation of the pipelines of all units, by several threads, while the first units are already being bound.

use super::planned::PlannedUnit;
use crate::error::GraphError;
use crate::record::Recording;
use mobilediffusion_kernels::{GpuDevice, Storage, wgsl};
use mobilediffusion_runtime::{Binding, Gpu, Pipeline, RuntimeError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

/// WGSL module to compile.
struct Module {
    kernel: &'static str,
    text: String,
    bindings: Vec<Binding>,
    made: OnceLock<Result<Arc<Pipeline>, RuntimeError>>,
}

impl Module {
    /// Returns the module's pipeline or why there is none: compiles it, waits for the thread that does, or finds what
    /// that thread found.
    fn pipeline(&self, gpu: &Gpu) -> &Result<Arc<Pipeline>, RuntimeError> {
        self.made.get_or_init(|| gpu.pipeline(self.kernel, &self.text, &self.bindings))
    }
}

/// Passes the pipelines of each unit's stages to `bind` with the number of the unit, in order, while other threads
/// compile those of later units. The first unit that fails ends the work.
///
/// # Errors
/// If a module does not compile, or `bind` fails; the error is that of the first such unit.
pub(super) fn each_unit(
    GpuDevice { gpu, storage }: GpuDevice<'_>,
    recording: &Recording,
    units: &[PlannedUnit],
    mut bind: impl FnMut(usize, &[Arc<Pipeline>]) -> Result<(), GraphError>,
) -> Result<(), GraphError> {
    let modules = Modules::new(storage, recording, units)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        modules.compile(scope, gpu, &stop);
        let mut one = |(number, of_stages): (usize, &Vec<usize>)| {
            let pipelines = of_stages.iter().map(|module| modules.all[*module].pipeline(gpu).clone());
            let pipelines: Vec<Arc<Pipeline>> = pipelines
                .collect::<Result<_, _>>()
                .map_err(GraphError::at(&recording.nodes[units[number].step].path))?;
            bind(number, &pipelines)
        };
        let done = modules.of_units.iter().enumerate().try_for_each(&mut one);
        stop.store(true, Ordering::Relaxed);
        done
    })
}

/// Compiles the pipelines of all units until `stop` is set, and leaves errors to [`each_unit`]. None is lost: it composes
/// and compiles again what failed here, a device remains lost, and [`Gpu::pipeline`] takes no errors of other calls.
pub(super) fn ahead(device: GpuDevice<'_>, recording: &Recording, units: &[PlannedUnit], stop: &AtomicBool) {
    if let Ok(modules) = Modules::new(device.storage, recording, units) {
        thread::scope(|scope| modules.compile(scope, device.gpu, stop));
    }
}

/// Modules of a recording, as a queue for the threads that compile them.
struct Modules {
    /// Modules in order of first use.
    all: Vec<Module>,
    /// Index of the module of each stage of each unit.
    of_units: Vec<Vec<usize>>,
    /// Number of modules that threads have begun to compile.
    begun: AtomicUsize,
}

impl Modules {
    /// Composes all modules.
    fn new(storage: Storage, recording: &Recording, units: &[PlannedUnit]) -> Result<Self, GraphError> {
        let (mut all, mut of_units) = (Vec::new(), Vec::with_capacity(units.len()));
        // Most stages share template, constants and bindings with one before them, and thus the module.
        let mut composed: HashMap<_, usize> = HashMap::new();
        for PlannedUnit { step, stages, .. } in units {
            let node = &recording.nodes[*step];
            let mut of_stages = Vec::with_capacity(stages.len());
            for stage in stages {
                let (program, bindings) = (&stage.program, stage.bindings());
                let key = (program.wgsl.as_ptr(), &program.constants, bindings.clone());
                let number = composed.get(&key).copied().unwrap_or(all.len());
                if number == all.len() {
                    let kernel = node.kernel.name();
                    let text = wgsl::compose(stage, storage).map_err(|unknown| GraphError::Device {
                        node: node.path.clone(),
                        error: RuntimeError::Validation { what: kernel.to_owned(), message: unknown.to_string() },
                    })?;
                    composed.insert(key, number);
                    all.push(Module { kernel, text, bindings, made: OnceLock::new() });
                }
                of_stages.push(number);
            }
            of_units.push(of_stages);
        }
        Ok(Self { all, of_units, begun: AtomicUsize::new(0) })
    }

    /// Starts to compile on as many threads as there are cores, until `stop` is set. Errors are left to the thread that
    /// binds, which meets them in order, and so is all the work where no thread can be started.
    fn compile<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        gpu: &'scope Gpu,
        stop: &'scope AtomicBool,
    ) {
        let work = move || {
            while !stop.load(Ordering::Relaxed)
                && let Some(module) = self.all.get(self.begun.fetch_add(1, Ordering::Relaxed))
            {
                module.pipeline(gpu);
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(self.all.len());
        (0..threads).for_each(|_| drop(thread::Builder::new().spawn_scoped(scope, work)));
    }
}
