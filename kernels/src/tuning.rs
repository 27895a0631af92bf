//! Measured tuning: the fastest variant of a kernel for a problem, for each adapter, in a file of the user's cache
//! folder.
//!
//! [`choose`](crate::variant::choose) prefers a measured variant to its own estimate. The file carries a hash of the
//! kernels' variants and WGSL. A file that does not parse, or that was written with other kernels, counts as empty.
//! Entries of other adapters, other drivers and variants that no longer exist are not used.

use crate::kernel::{Kernel, Program, has_weights};
use crate::storage::{FloatType, Storage, WeightType};
use crate::variant::Variant;
use crate::{FAMILIES, wgsl};
use crc32fast::Hasher;
use mobilediffusion_runtime::{AdapterSummary, Gpu, RuntimeError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Name of the file in the cache folder.
const FILE: &str = "variants.json";

/// Names of the fastest variants on one adapter, by problem.
pub type Measured = BTreeMap<String, String>;

/// Measurements of all adapters of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    adapters: BTreeMap<String, Measured>,
}

/// Content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Hash of the kernels that were measured: others may be slower or faster.
    kernels: String,
    adapters: BTreeMap<String, Measured>,
}

impl Tuning {
    /// Reads the file of a device's cache folder. A file that is missing or not valid gives an empty table; for one
    /// that is not valid, the second value is a line that says why.
    pub fn read(gpu: &Gpu) -> (Self, Option<String>) {
        match gpu.kept(FILE).map(|text| Self::parse(&text)) {
            None => (Self::default(), None),
            Some(Ok(tuning)) => (tuning, None),
            Some(Err(why)) => (Self::default(), Some(format!("{FILE} of the cache folder is ignored: {why}"))),
        }
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Returns a line that says what is wrong: the text is not such a table, or it was written with other kernels.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let Content { kernels, adapters } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let expected = kernels_hash();
        if kernels == expected {
            Ok(Self { adapters })
        } else {
            Err(format!("it was measured with other kernels, expected hash {expected}, found {kernels}"))
        }
    }

    /// Writes the table to the file. Entries that other processes wrote since this table was read are kept.
    ///
    /// # Errors
    /// If there is no cache folder, or the file cannot be written.
    pub fn write(&self, gpu: &Gpu) -> Result<(), RuntimeError> {
        gpu.keep(FILE, &Self::read(gpu).0.with(self).text(kernels_hash()))
    }

    /// Checks that [`write`](Self::write) can write the file of a device's cache folder.
    ///
    /// # Errors
    /// The errors of [`write`](Self::write).
    pub fn check_write(gpu: &Gpu) -> Result<(), RuntimeError> {
        gpu.check_keep(FILE)
    }

    /// Returns the text of a file, for kernels with the given hash.
    fn text(self, kernels: &str) -> Vec<u8> {
        let content = Content { kernels: kernels.to_owned(), adapters: self.adapters };
        (serde_json::to_string_pretty(&content).expect("names are strings") + "\n").into_bytes()
    }

    /// Returns the union of both tables. Where both know a problem, the entry of `other` holds.
    fn with(mut self, other: &Self) -> Self {
        for (adapter, measured) in &other.adapters {
            let known = self.adapters.entry(adapter.clone()).or_default();
            known.extend(measured.iter().map(|(problem, variant)| (problem.clone(), variant.clone())));
        }
        self
    }

    /// Records `variant` as the fastest one of a problem on an adapter.
    pub fn note(&mut self, adapter: &AdapterSummary, (kernel, storage): (&dyn Kernel, Storage), variant: &Variant) {
        let measured = self.adapters.entry(key(adapter)).or_default();
        measured.insert(problem(kernel, storage), variant.name.to_owned());
    }

    /// Returns the measurements that were made on this adapter with this driver.
    pub fn of(&self, adapter: &AdapterSummary) -> Measured {
        self.adapters.get(&key(adapter)).cloned().unwrap_or_default()
    }
}

fn key(adapter: &AdapterSummary) -> String {
    format!("{}, {}, {}", adapter.name, adapter.backend, adapter.driver)
}

/// Key of a problem: the kernel's name, the storage and the sizes. How weights are stored matters to kernels that read
/// some.
pub(crate) fn problem(kernel: &dyn Kernel, storage: Storage) -> String {
    let storage = if has_weights(kernel) { storage } else { storage.with_weights(WeightType::Floats) };
    format!("{} {storage} {}", kernel.name(), kernel.params_json())
}

/// Hash of all that decides how fast a variant is: the variants of every kernel at the model's shapes with their WGSL
/// and constants, the shared WGSL, and the preludes of the storage types. It is a CRC-32, which unlike the standard
/// library's hashers does not depend on the build.
fn kernels_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        let mut hash = Hasher::new();
        for (name, text) in wgsl::COMMON {
            add_text(&mut hash, name);
            add_text(&mut hash, text);
        }
        for floats in [FloatType::F32, FloatType::F16, FloatType::F16Packed] {
            for weights in [WeightType::Floats, WeightType::F16, WeightType::Int8] {
                add_text(&mut hash, &Storage { floats, weights }.prelude());
            }
        }
        let cases = FAMILIES.iter().flat_map(|family| (family.model_shapes)());
        let programs = cases.flat_map(|case| {
            let stages = |variant: Variant| {
                let stages = case.kernel.stages(&variant).into_iter();
                stages.map(|stage| (variant.name, stage.program)).collect::<Vec<_>>()
            };
            case.kernel.variants().into_iter().flat_map(stages).collect::<Vec<_>>()
        });
        add_programs(&mut hash, programs);
        format!("{:08x}", hash.finalize())
    })
}

/// Adds a text and a byte that no UTF-8 text contains, so that texts cannot run into each other.
fn add_text(hash: &mut Hasher, text: &str) {
    hash.update(text.as_bytes());
    hash.update(&[0xff]);
}

/// Adds variants by name, with their constants. A WGSL body that several of them share is added once.
fn add_programs(hash: &mut Hasher, programs: impl IntoIterator<Item = (&'static str, Program)>) {
    let mut bodies = BTreeSet::new();
    for (variant, program) in programs {
        add_text(hash, variant);
        for (name, value) in &program.constants {
            add_text(hash, name);
            hash.update(&value.to_le_bytes());
        }
        if bodies.insert(program.wgsl) {
            add_text(hash, program.wgsl);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::{Machine, choose, runnable};
    use crate::{Add, Linear};
    use mobilediffusion_runtime::{AdapterKind, Caps};

    fn adapter(driver: &str) -> AdapterSummary {
        let (name, backend, driver) = ("Iris".to_owned(), "vulkan".to_owned(), driver.to_owned());
        AdapterSummary {
            index: 0,
            name,
            backend,
            driver,
            kind: AdapterKind::Integrated,
            vendor: 0,
            units: None,
            caps: Caps::PORTABLE,
        }
    }

    fn linear(rows: usize) -> Linear {
        Linear { rows, k: 64, cols: 64, ..Linear::default() }
    }

    /// A table in which the slowest variant by estimate is the fastest for 4096 rows.
    fn table() -> (Tuning, Variant) {
        let slow = *runnable(&linear(4096), &Caps::PORTABLE, Storage::F32).last().expect("there are several");
        let mut tuning = Tuning::default();
        tuning.note(&adapter("Mesa 25"), (&linear(4096), Storage::F32), &slow);
        (tuning, slow)
    }

    #[test]
    fn what_was_measured_comes_before_the_estimate() {
        let (tuning, slow) = table();
        let machine = |driver: &str| Machine { tuned: tuning.of(&adapter(driver)), ..Machine::PORTABLE };
        let estimate = |rows| choose(&linear(rows), &Machine::PORTABLE);
        assert_ne!(estimate(4096), slow, "else nothing is tested");
        assert_eq!(choose(&linear(4096), &machine("Mesa 25")), slow);
        assert_eq!(choose(&linear(2048), &machine("Mesa 25")), estimate(2048), "another problem");
        assert_eq!(choose(&linear(4096), &machine("Mesa 26")), estimate(4096), "another driver");
        for (name, backend) in [("Arc", "vulkan"), ("Iris", "dx12")] {
            let other = AdapterSummary { name: name.to_owned(), backend: backend.to_owned(), ..adapter("Mesa 25") };
            assert!(tuning.of(&other).is_empty(), "another adapter: {other}");
        }
        let half = Machine { storage: Storage::F16_PACKED, ..machine("Mesa 25") };
        assert_eq!(choose(&linear(4096), &half), estimate(4096), "another storage");
    }

    #[test]
    fn how_weights_are_stored_matters_where_there_are_weights() {
        let stored = [WeightType::Floats, WeightType::F16, WeightType::Int8].map(|w| Storage::F32.with_weights(w));
        let problems = |kernel: &dyn Kernel| BTreeSet::from(stored.map(|storage| problem(kernel, storage)));
        assert_eq!((problems(&linear(64)).len(), problems(&Add { rows: 1, c: 4 }).len()), (3, 1));
    }

    #[test]
    fn a_variant_that_is_no_more_or_does_not_fit_is_not_taken() {
        let (mut tuning, slow) = table();
        let unknown = Variant { name: "1x1", ..slow };
        tuning.note(&adapter("Mesa 25"), (&linear(4096), Storage::F32), &unknown);
        let machine = Machine { tuned: tuning.of(&adapter("Mesa 25")), ..Machine::PORTABLE };
        assert_eq!(choose(&linear(4096), &machine), choose(&linear(4096), &Machine::PORTABLE));
    }

    #[test]
    fn what_others_noted_in_the_meantime_is_kept() {
        let (mine, slow) = table();
        let fast = choose(&linear(4096), &Machine::PORTABLE);
        let mut others = Tuning::default();
        others.note(&adapter("Mesa 25"), (&linear(2048), Storage::F32), &fast);
        others.note(&adapter("Mesa 25"), (&linear(4096), Storage::F32), &fast);
        others.note(&adapter("Mesa 26"), (&linear(4096), Storage::F32), &fast);
        let both = others.with(&mine);
        let kept = |driver, rows| both.of(&adapter(driver)).get(&problem(&linear(rows), Storage::F32)).cloned();
        assert_eq!(kept("Mesa 25", 4096).as_deref(), Some(slow.name), "measured last");
        assert_eq!(kept("Mesa 25", 2048).as_deref(), Some(fast.name));
        assert_eq!(kept("Mesa 26", 4096).as_deref(), Some(fast.name));
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_another_is_told() {
        let (tuning, _) = table();
        let text = tuning.clone().text(kernels_hash());
        assert_eq!(Tuning::parse(&text), Ok(tuning));
        assert!(Tuning::parse(&text[..text.len() - 2]).is_err(), "cut short");
        assert!(Tuning::parse(b"{}").is_err(), "no hash");
    }

    #[test]
    fn entries_of_other_kernels_are_not_used() {
        let (tuning, _) = table();
        let why = Tuning::parse(&tuning.text("0123456789abcdef")).expect_err("other kernels");
        assert!(why.contains("0123456789abcdef") && why.contains(kernels_hash()), "{why}");
    }

    #[test]
    fn names_constants_and_wgsl_change_the_hash() {
        let program = linear(64).program(&choose(&linear(64), &Machine::PORTABLE));
        let hash = |name, program: &Program| {
            let mut hash = Hasher::new();
            add_programs(&mut hash, [(name, program.clone())]);
            hash.finalize()
        };
        let same = hash("64x64", &program);
        assert_eq!(hash("64x64", &program), same);
        assert_ne!(hash("64x32", &program), same, "another name");
        assert_ne!(hash("64x64", &Program { wgsl: "", ..program.clone() }), same, "another shader");
        let mut changed = program.clone();
        changed.constants[0].1 ^= 1;
        assert_ne!(hash("64x64", &changed), same, "another constant");
    }
}
