//! What was measured: the fastest variant of a kernel for a problem, by adapter, in a file of the user's cache folder.
//!
//! [`choose`](crate::variant::choose) takes what stands there before its own estimate. A file that is not right, and what
//! was measured on another adapter or driver, or of a variant that is no more, is as good as nothing.

use crate::kernel::Kernel;
use crate::storage::Storage;
use crate::variant::Variant;
use mobilediffusion_runtime::{AdapterSummary, Gpu, RuntimeError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Its name in the folder.
const FILE: &str = "variants.json";

/// Names of variants by problem, of one adapter.
pub type Measured = BTreeMap<String, String>;

/// What was measured on all adapters of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Version of this crate: another one's shaders may be slower or faster.
    version: String,
    adapters: BTreeMap<String, Measured>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), adapters: BTreeMap::new() }
    }
}

impl Tuning {
    /// What is kept for a device's machine. If what is kept is not right, it is nothing, with a line that says why.
    pub fn read(gpu: &Gpu) -> (Self, Option<String>) {
        match gpu.kept(FILE).map(|text| Self::parse(&text)) {
            None => (Self::default(), None),
            Some(Ok(tuning)) => (tuning, None),
            Some(Err(why)) => (Self::default(), Some(format!("{FILE} of the cache folder is ignored: {why}"))),
        }
    }

    /// The text of a file.
    ///
    /// # Errors
    /// A line that says what is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let found: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let expected = env!("CARGO_PKG_VERSION");
        let Self { version, .. } = &found;
        if version == expected { Ok(found) } else { Err(format!("expected version {expected}, found {version}")) }
    }

    /// Keeps it for the sessions to come, beside what others have noted there since it was read.
    ///
    /// # Errors
    /// If there is no cache folder, or it cannot be written to.
    pub fn write(&self, gpu: &Gpu) -> Result<(), RuntimeError> {
        let text = serde_json::to_string_pretty(&Self::read(gpu).0.with(self)).expect("names are strings") + "\n";
        gpu.keep(FILE, text.as_bytes())
    }

    /// Both, and of what both know what the other one says.
    fn with(mut self, other: &Self) -> Self {
        for (adapter, measured) in &other.adapters {
            let known = self.adapters.entry(adapter.clone()).or_default();
            known.extend(measured.iter().map(|(problem, variant)| (problem.clone(), variant.clone())));
        }
        self
    }

    /// Notes which variant was the fastest.
    pub fn note(&mut self, adapter: &AdapterSummary, (kernel, storage): (&dyn Kernel, Storage), variant: &Variant) {
        let measured = self.adapters.entry(key(adapter)).or_default();
        measured.insert(problem(kernel, storage), variant.name.to_owned());
    }

    /// What was measured on this adapter, with this driver.
    pub fn of(&self, adapter: &AdapterSummary) -> Measured {
        self.adapters.get(&key(adapter)).cloned().unwrap_or_default()
    }
}

fn key(adapter: &AdapterSummary) -> String {
    format!("{}, {}, {}", adapter.name, adapter.backend, adapter.driver)
}

/// A problem with the storage it is solved in, by its sizes.
pub(crate) fn problem(kernel: &dyn Kernel, storage: Storage) -> String {
    format!("{} {storage} {}", kernel.name(), kernel.params_json())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Linear;
    use crate::variant::{Machine, choose, runnable};
    use mobilediffusion_runtime::{AdapterKind, Caps};

    fn adapter(driver: &str) -> AdapterSummary {
        let (name, backend, driver) = ("Iris".to_owned(), "vulkan".to_owned(), driver.to_owned());
        AdapterSummary { index: 0, name, backend, driver, kind: AdapterKind::Integrated, caps: Caps::PORTABLE }
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
        let half = Machine { storage: Storage::F16_PACKED, ..machine("Mesa 25") };
        assert_eq!(choose(&linear(4096), &half), estimate(4096), "another storage");
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
        let text = serde_json::to_vec(&tuning).expect("names are strings");
        assert_eq!(Tuning::parse(&text), Ok(tuning));
        assert!(Tuning::parse(&text[..text.len() - 1]).is_err(), "cut short");
        assert!(Tuning::parse(b"{}").is_err(), "no version");
        let other = String::from_utf8(text).expect("JSON").replace(env!("CARGO_PKG_VERSION"), "0.0.7");
        let why = Tuning::parse(other.as_bytes()).expect_err("another version");
        assert!(why.contains("0.0.7"), "{why}");
    }
}
