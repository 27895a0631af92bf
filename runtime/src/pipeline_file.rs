//! Files in the cache folder that are kept from one run of the program to the next: compiled pipelines, and data of
//! other crates.
//!
//! The name of a pipeline file identifies the adapter, the driver, whether shaders are checked as they run, and the
//! version of this crate. A checksum ensures that the file is intact, and a header that wgpu writes and checks ensures
//! that it fits the device. A file that fails a check is ignored.

use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::files::{check_folder, check_regular, read_file, write_whole};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// First bytes of a pipeline file. A checksum of four bytes and wgpu's data follow.
const MAGIC: [u8; 8] = *b"mdpipes1";

/// A pipeline cache, which the driver fills while it compiles, and the file in which it is kept.
#[derive(Debug)]
pub(crate) struct PipelineFile {
    path: PathBuf,
    pub(crate) raw: wgpu::PipelineCache,
    /// Value of [`Counters::pipelines`](crate::Counters::pipelines) when the file was last known to be up to date.
    saved: AtomicU64,
    /// Checksum of the data in the file.
    written: AtomicU32,
}

/// Largest size of a file of the cache folder that is read. Drivers keep some hundred MiB at most.
const MOST_BYTES: u64 = 1 << 30;

impl PipelineFile {
    /// Opens the cache of a device from its file in `folder`. Returns `None` if the device has no pipeline cache.
    fn open(gpu: &Gpu, folder: &Path) -> Option<Self> {
        if !gpu.caps().pipeline_cache {
            return None;
        }
        let name = file_name(&gpu.device.adapter_info(), gpu.shader_checks, env!("CARGO_PKG_VERSION"));
        let path = folder.join(name?);
        let file = read_file(&path, MOST_BYTES).unwrap_or_default();
        let data = unsealed(&file);
        let raw = make(gpu, data).or_else(|_| make(gpu, None)).ok()?;
        let written = AtomicU32::new(data.map_or(0, crc32fast::hash));
        Some(Self { path, raw, saved: AtomicU64::new(0), written })
    }
}

/// Creates the folder of a file of the cache folder if necessary, and returns it. Refuses what is there but no file.
fn folder_of(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    if path.exists() {
        check_regular(path)?;
    }
    Ok(folder)
}

/// Writes a file of the cache folder atomically, after creating the folder if necessary.
fn write(path: &Path, data: &[u8]) -> Result<(), RuntimeError> {
    folder_of(path).and_then(|_| write_whole(path, data)).map_err(unwritten(path))
}

/// Checks that [`write`] can write a file, without writing it.
fn check_write(path: &Path) -> Result<(), RuntimeError> {
    folder_of(path).and_then(check_folder).map_err(unwritten(path))
}

fn unwritten(path: &Path) -> impl Fn(io::Error) -> RuntimeError {
    move |error| RuntimeError::Unwritten { path: path.display().to_string(), reason: error.to_string() }
}

impl Gpu {
    /// Uses `folder` as the cache folder of this device: pipelines that were compiled in an earlier run are loaded from
    /// a file there, and [`save_pipelines`](Self::save_pipelines) writes new ones to it. If the driver does not support
    /// this, or the file is missing or damaged, all pipelines are compiled from source.
    ///
    /// The driver trusts the contents of the file beyond a checksum and a header, so only trusted users should be able
    /// to write to `folder`.
    #[must_use]
    pub fn with_pipeline_cache(mut self, folder: &Path) -> Self {
        // Files are also written long after this, when the process may have another working directory.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        self.pipeline_file = PipelineFile::open(&self, &folder);
        self.cache_folder = Some(folder);
        self
    }

    /// Uses the folder `mobilediffusion` in the user's cache directory as the cache folder, see
    /// [`with_pipeline_cache`](Self::with_pipeline_cache). Without a cache directory, this changes nothing.
    #[must_use]
    pub fn with_user_cache(self) -> Self {
        match dirs::cache_dir() {
            Some(folder) => self.with_pipeline_cache(&folder.join("mobilediffusion")),
            None => self,
        }
    }

    /// Writes the compiled pipelines to the file in the cache folder, atomically. Does nothing if there is no cache
    /// folder, the driver does not support it, or nothing new was compiled.
    ///
    /// # Errors
    /// [`RuntimeError::Unwritten`] if the file cannot be written, which only means that the next run compiles again, or
    /// an error of the device.
    pub fn save_pipelines(&self) -> Result<(), RuntimeError> {
        let Some(file) = &self.pipeline_file else { return Ok(()) };
        let made = self.counters().pipelines;
        if file.saved.load(Ordering::Relaxed) == made {
            return Ok(());
        }
        let Some(data) = self.scoped("the compiled pipelines", None, || file.raw.get_data())? else { return Ok(()) };
        // Data that is unchanged since it was read from the file is not written again.
        let checksum = crc32fast::hash(&data);
        if file.written.load(Ordering::Relaxed) != checksum || !file.path.exists() {
            write(&file.path, &sealed(&data))?;
            file.written.store(checksum, Ordering::Relaxed);
        }
        file.saved.store(made, Ordering::Relaxed);
        Ok(())
    }

    /// Reads a file of the cache folder. Returns `None` if there is no cache folder or no such file, or it is longer than
    /// 1 GiB.
    pub fn kept(&self, name: &str) -> Option<Vec<u8>> {
        read_file(&self.cache_folder.as_ref()?.join(name), MOST_BYTES).ok()
    }

    /// Writes a file to the cache folder, atomically.
    ///
    /// # Errors
    /// [`RuntimeError::Unwritten`] if there is no cache folder, or the file cannot be written.
    pub fn keep(&self, name: &str, data: &[u8]) -> Result<(), RuntimeError> {
        write(&self.place_of(name)?, data)
    }

    /// Checks that [`keep`](Self::keep) can write a file, without writing it. Creates the cache folder if necessary.
    ///
    /// # Errors
    /// The errors of [`keep`](Self::keep).
    pub fn check_keep(&self, name: &str) -> Result<(), RuntimeError> {
        check_write(&self.place_of(name)?)
    }

    /// Returns the path of a file in the cache folder.
    fn place_of(&self, name: &str) -> Result<PathBuf, RuntimeError> {
        let nowhere =
            || RuntimeError::Unwritten { path: name.to_owned(), reason: "there is no cache folder".to_owned() };
        Ok(self.cache_folder.as_ref().ok_or_else(nowhere)?.join(name))
    }
}

/// Creates a pipeline cache, filled with `data` if there is any.
#[expect(unsafe_code, reason = "the driver trusts the bytes it is given")]
fn make(gpu: &Gpu, data: Option<&[u8]>) -> Result<wgpu::PipelineCache, RuntimeError> {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("compiled pipelines"), data, fallback: true };
    // SAFETY: the bytes must come from `PipelineCache::get_data`. Only `save_pipelines` writes files of this name with
    // this first bytes, into a folder of the user's own. The checksum detects damage, and wgpu's header detects another
    // device.
    gpu.scoped("the compiled pipelines", None, || unsafe { gpu.device.create_pipeline_cache(&descriptor) })
}

/// Returns a file name that is specific to the adapter, the driver, whether shaders are checked as they run, and the
/// `version` of this crate. Returns `None` if wgpu has no pipeline cache on this backend.
///
/// With checks, shaders are compiled to something else. Devices with and without them that wrote to one file would each
/// drop what the other has compiled.
fn file_name(info: &wgpu::AdapterInfo, shader_checks: bool, version: &str) -> Option<String> {
    let adapter = wgpu::util::pipeline_cache_key(info)?;
    let mut parts = vec![&info.name, &info.driver, &info.driver_info, version];
    parts.extend(shader_checks.then_some("checked"));
    Some(format!("{adapter}_{:08x}", crc32fast::hash(parts.join("\n").as_bytes())))
}

/// Returns the contents of a pipeline file: the first bytes, the checksum and the data.
fn sealed(data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &crc32fast::hash(data).to_le_bytes(), data].concat()
}

/// Returns the data of a pipeline file, or `None` if the file is not intact.
fn unsealed(file: &[u8]) -> Option<&[u8]> {
    let (checksum, data) = file.strip_prefix(&MAGIC)?.split_first_chunk()?;
    (u32::from_le_bytes(*checksum) == crc32fast::hash(data)).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn only_regular_files_are_kept() {
        let folder = tempfile::tempdir().expect("there is room");
        for path in [folder.path(), Path::new("/dev/zero")] {
            for error in
                [write(path, b"data"), check_write(path)].map(|result| result.expect_err("no file").to_string())
            {
                assert!(error.contains("expected a file, found"), "{error}");
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_before() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("made/file");
        check_write(&path).expect("it can be made");
        assert!(!path.exists() && path.with_file_name("").exists(), "only the folder is made");
        write(&path, b"data").expect("it can be made");
        let below = path.join("file");
        let mut refused = vec![below.as_path()];
        // Not even the superuser makes files there.
        refused.extend(cfg!(target_os = "linux").then_some(Path::new("/proc/file")));
        for path in refused {
            let error = check_write(path).expect_err("nothing can be made there").to_string();
            assert!(error.starts_with(&format!("cannot write `{}`: ", path.display())), "{error}");
        }
    }

    #[test]
    fn every_adapter_driver_and_version_has_a_file_of_its_own() {
        let with_checks = |shader_checks, change: &dyn Fn(&mut wgpu::AdapterInfo), version: &str| {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, wgpu::Backend::Vulkan);
            (info.name, info.driver, info.driver_info) = ("Iris".into(), "Mesa".into(), "25.1".into());
            change(&mut info);
            file_name(&info, shader_checks, version).expect("Vulkan keeps pipelines")
        };
        let with = |change: &dyn Fn(&mut wgpu::AdapterInfo), version| with_checks(false, change, version);
        let names = [
            with(&|_| {}, "1"),
            with(&|_| {}, "2"),
            with(&|info| info.name = "Arc".into(), "1"),
            with(&|info| info.driver = "ANV".into(), "1"),
            with(&|info| info.driver_info = "25.2".into(), "1"),
            with(&|info| info.device = 7, "1"),
            with_checks(true, &|_| {}, "1"),
        ];
        let different: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "a name is used twice: {names:?}");
        assert_eq!(with(&|_| {}, "1"), names[0], "the same file every time");
    }

    #[test]
    fn damage_is_found() {
        let file = sealed(b"compiled");
        assert_eq!(unsealed(&file), Some(&b"compiled"[..]));
        for at in 0..file.len() {
            assert_eq!(unsealed(&file[..at]), None, "cut at {at}");
            let mut damaged = file.clone();
            damaged[at] ^= 4;
            assert_eq!(unsealed(&damaged), None, "damaged at {at}");
        }
    }
}
