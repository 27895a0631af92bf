//! What is kept from one run of the program to the next in files of the user's cache folder: compiled pipelines, and what
//! others ask to be kept beside them.
//!
//! The name of a file of pipelines says which adapter, driver and version of this crate wrote it, its checksum that it is
//! whole, and a header of wgpu's inside that it fits the device. Any other file is as good as none.

use crate::device::Gpu;
use crate::error::RuntimeError;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What a file begins with; a checksum of four bytes and wgpu's data follow.
const MAGIC: [u8; 8] = *b"mdpipes1";

/// The cache the driver fills while it compiles, and where it is kept.
#[derive(Debug)]
pub(crate) struct PipelineFile {
    path: PathBuf,
    pub(crate) raw: wgpu::PipelineCache,
    /// Pipelines that had been compiled when the file was last known to hold them.
    saved: AtomicU64,
    /// The checksum of what is in the file.
    written: AtomicU32,
}

impl PipelineFile {
    /// Absent where the device has no such cache.
    fn open(gpu: &Gpu, folder: &Path) -> Option<Self> {
        if !gpu.caps().pipeline_cache {
            return None;
        }
        let path = folder.join(file_name(&gpu.device.adapter_info())?);
        let file = std::fs::read(&path).unwrap_or_default();
        let data = unsealed(&file);
        let raw = make(gpu, data).or_else(|_| make(gpu, None)).ok()?;
        let written = AtomicU32::new(data.map_or(0, crc32fast::hash));
        Some(Self { path, raw, saved: AtomicU64::new(0), written })
    }
}

/// Writes a file that appears whole or not at all: beside its place, then it is renamed.
/// What is there and is no file, as a terminal, is written to.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(path: &Path, data: &[u8]) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return std::fs::write(path, data);
    }
    // The folder of a bare name is an empty path.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut beside = tempfile::Builder::new();
    // What any new file has, where a temporary one would be its owner's alone.
    #[cfg(unix)]
    beside.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = beside.tempfile_in(folder)?;
    file.write_all(data)?;
    file.persist(path)?;
    Ok(())
}

fn write(path: &Path, data: &[u8]) -> Result<(), RuntimeError> {
    let unwritten =
        |error: std::io::Error| RuntimeError::Unwritten { path: path.display().to_string(), reason: error.to_string() };
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    folder.and_then(|()| write_whole(path, data)).map_err(unwritten)
}

impl Gpu {
    /// The same device, which takes up what was compiled on it before from a file in `folder`, and keeps there what it
    /// compiles from now on. Where the driver knows no such thing, and where the file is not right, all is compiled.
    pub fn with_pipeline_cache(mut self, folder: &Path) -> Self {
        self.cache_folder = Some(folder.to_owned());
        self.pipeline_file = PipelineFile::open(&self, folder);
        self
    }

    /// The same with a folder of the user's own, where the system has one for what programs can do without.
    pub fn with_user_cache(self) -> Self {
        match dirs::cache_dir() {
            Some(folder) => self.with_pipeline_cache(&folder.join("mobilediffusion")),
            None => self,
        }
    }

    /// Writes what was compiled since the last time to the file of [`with_pipeline_cache`](Self::with_pipeline_cache);
    /// without one, and if nothing new was, it does nothing. The file appears whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written, which costs nothing but time in the next run, or the device is lost.
    pub fn save_pipelines(&self) -> Result<(), RuntimeError> {
        let Some(file) = &self.pipeline_file else { return Ok(()) };
        let made = self.counters().pipelines;
        if file.saved.load(Ordering::Relaxed) == made {
            return Ok(());
        }
        let Some(data) = self.scoped("the compiled pipelines", 0, || file.raw.get_data())? else { return Ok(()) };
        // What came out of the file as it is need not be written again.
        let checksum = crc32fast::hash(&data);
        if file.written.load(Ordering::Relaxed) != checksum || !file.path.exists() {
            write(&file.path, &sealed(&data))?;
            file.written.store(checksum, Ordering::Relaxed);
        }
        file.saved.store(made, Ordering::Relaxed);
        Ok(())
    }

    /// A file that was kept in the folder of [`with_pipeline_cache`](Self::with_pipeline_cache); none without either.
    pub fn kept(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.cache_folder.as_ref()?.join(name)).ok()
    }

    /// Keeps a file there; it appears whole or not at all.
    ///
    /// # Errors
    /// If there is no such folder, or it cannot be written to.
    pub fn keep(&self, name: &str, data: &[u8]) -> Result<(), RuntimeError> {
        let nowhere =
            || RuntimeError::Unwritten { path: name.to_owned(), reason: "there is no cache folder".to_owned() };
        write(&self.cache_folder.as_ref().ok_or_else(nowhere)?.join(name), data)
    }
}

#[expect(unsafe_code, reason = "the driver trusts the bytes it is given")]
fn make(gpu: &Gpu, data: Option<&[u8]>) -> Result<wgpu::PipelineCache, RuntimeError> {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("compiled pipelines"), data, fallback: true };
    // SAFETY: the bytes must come from `PipelineCache::get_data`. Only `save_pipelines` writes files of this name and
    // beginning, into a folder of the user's own; the checksum finds damage, and wgpu's header another device.
    gpu.scoped("the compiled pipelines", 0, || unsafe { gpu.device.create_pipeline_cache(&descriptor) })
}

/// One name for every adapter, driver and version of this crate; none where wgpu keeps no pipelines.
fn file_name(info: &wgpu::AdapterInfo) -> Option<String> {
    let adapter = wgpu::util::pipeline_cache_key(info)?;
    let parts = [&info.name, &info.driver, &info.driver_info, env!("CARGO_PKG_VERSION")];
    Some(format!("{adapter}_{:08x}", crc32fast::hash(parts.join("\n").as_bytes())))
}

fn sealed(data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &crc32fast::hash(data).to_le_bytes(), data].concat()
}

/// The data of a whole file.
fn unsealed(file: &[u8]) -> Option<&[u8]> {
    let (checksum, data) = file.strip_prefix(&MAGIC)?.split_first_chunk()?;
    (u32::from_le_bytes(*checksum) == crc32fast::hash(data)).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_whole_and_devices_stay_devices() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("file");
        for text in ["first", "second"] {
            write_whole(&path, text.as_bytes()).expect("it can be written");
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 1, "something is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
            std::fs::write(folder.path().join("plain"), "").expect("it can be written");
            let plain = std::fs::metadata(folder.path().join("plain")).expect("it is there").permissions().mode();
            assert_eq!(mode, plain, "not the rights of any new file");
            write_whole(Path::new("/dev/null"), b"gone").expect("it takes everything");
            assert!(!std::fs::metadata("/dev/null").expect("it is there").is_file());
        }
        assert!(write_whole(&folder.path().join("none/file"), b"").is_err(), "there is no such folder");
        assert!(!folder.path().join("none").exists(), "nobody asked for a folder");
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
