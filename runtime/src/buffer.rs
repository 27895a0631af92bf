//! Device buffers, uploads in chunks of bounded size, copies, and read-back through staging buffers.

use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::incidents::Incidents;
use crate::pass::Bound;
use crate::tally::Tally;
use crate::vulkan;
use futures_channel::oneshot;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A labelled buffer on the device. Clones refer to the same memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(crate) raw: wgpu::Buffer,
    label: String,
    bytes: u64,
}

impl Buffer {
    /// Returns the size in bytes, a multiple of four.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the label, which names the buffer in error messages.
    pub fn label(&self) -> &str {
        &self.label
    }
}

/// Purpose of a buffer, which decides how it can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A storage buffer that is bound as a whole. It can be copied from and to, and is at most as large as a binding.
    Storage,
    /// A storage buffer that is bound in parts, such as an arena of several tensors. It can be copied from and to, and
    /// may be larger than a binding.
    Arena,
    /// A uniform buffer with the parameters of kernels. It can be copied to.
    Uniform,
    /// A buffer that the host can map, for reading data back. It can be copied to. It occupies four bytes more than its
    /// size, for the device's count of passes.
    Staging,
    /// A buffer that timestamp queries are resolved to. It can be copied from.
    Timestamps,
}

/// Bit pattern that tests fill outputs with before a kernel runs, so that unwritten elements are found. It is a NaN
/// both as one f32 and as two f16.
pub const POISON: u32 = 0x7FC1_7FC1;

/// Number of bytes that are uploaded, to all buffers together, between two waits. wgpu keeps a staging copy of all
/// written data until the next submission is done, so this bounds the extra memory on the host.
const UPLOAD_CHUNK: usize = 8 << 20;

impl Gpu {
    /// Returns the number of bytes that this process may still allocate in the device's own memory, as the driver
    /// estimates it (`VK_EXT_memory_budget`). `None` on other backends than Vulkan and where the driver does not know.
    pub fn free_memory(&self) -> Option<u64> {
        vulkan::free_memory(&self.device)
    }

    /// Creates a buffer filled with zeros. The size is rounded up to a multiple of four bytes, and to at least four.
    ///
    /// # Errors
    /// [`RuntimeError::TooLarge`] if the size exceeds a limit of the adapter, [`RuntimeError::OutOfMemory`] if the
    /// memory cannot be allocated, or [`RuntimeError::Lost`].
    pub fn buffer(&self, label: &str, bytes: u64, role: Role) -> Result<Buffer, RuntimeError> {
        // Every read-back carries the device's count of passes behind the data.
        let behind = if role == Role::Staging { Tally::BYTES } else { 0 };
        let caps = self.caps();
        let too_large =
            |bytes, limit, allowed| RuntimeError::TooLarge { what: label.to_owned(), bytes, limit, allowed };
        let sizes =
            bytes.max(4).checked_next_multiple_of(4).and_then(|bytes| Some((bytes, bytes.checked_add(behind)?)));
        let largest = caps.max_buffer_bytes;
        let (bytes, size) = sizes.ok_or_else(|| too_large(bytes, "adapter's largest buffer", largest))?;
        if size > largest {
            return Err(too_large(size, "adapter's largest buffer", largest));
        }
        if role == Role::Storage && bytes > caps.max_binding_bytes {
            return Err(too_large(bytes, "adapter's largest storage binding", caps.max_binding_bytes));
        }
        use wgpu::BufferUsages as Usage;
        let usage = match role {
            Role::Storage | Role::Arena => Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST,
            Role::Uniform => Usage::UNIFORM | Usage::COPY_DST,
            Role::Staging => Usage::MAP_READ | Usage::COPY_DST,
            Role::Timestamps => Usage::QUERY_RESOLVE | Usage::COPY_SRC,
        };
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let raw = self.scoped(label, Some(bytes), || self.device.create_buffer(&descriptor))?;
        self.buffers_made.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer { raw, label: label.to_owned(), bytes })
    }

    /// Writes `data` to the start of a buffer or of a part of one. The offset of the part and the length of `data` must
    /// be multiples of four bytes; `data` may be shorter than the destination.
    ///
    /// Large uploads are split into chunks, with waits for the device in between, to bound the extra memory on the
    /// host.
    ///
    /// # Errors
    /// [`RuntimeError::TooLarge`] if the data does not fit, [`RuntimeError::Validation`] if it is misaligned or outside
    /// the buffer, or an error of the device.
    pub fn upload<'a>(&self, to: impl Into<Bound<'a>>, data: &[u8]) -> Result<(), RuntimeError> {
        let to = to.into();
        if data.len() as u64 > to.bytes {
            let (what, bytes, allowed) = (to.buffer.label.clone(), data.len() as u64, to.bytes);
            return Err(RuntimeError::TooLarge { what, bytes, limit: "destination", allowed });
        }
        self.upload_chunks(to, data.chunks(UPLOAD_CHUNK))
    }

    /// Fills a buffer with [`POISON`], so that elements which are not written afterwards can be found.
    ///
    /// # Errors
    /// If the device is lost or has not enough memory.
    pub fn poison(&self, buffer: &Buffer) -> Result<(), RuntimeError> {
        let bytes = usize::try_from(buffer.bytes).expect("the buffer is in memory");
        let chunk = POISON.to_le_bytes().repeat(bytes.min(UPLOAD_CHUNK) / 4);
        let lens = (0..bytes).step_by(UPLOAD_CHUNK).map(|start| (bytes - start).min(UPLOAD_CHUNK));
        self.upload_chunks(Bound::whole(buffer), lens.map(|len| &chunk[..len]))
    }

    /// Writes chunks one behind the other, from the offset of `to`.
    fn upload_chunks<'a>(&self, to: Bound<'_>, chunks: impl Iterator<Item = &'a [u8]>) -> Result<(), RuntimeError> {
        let (buffer, mut offset) = (to.buffer, to.offset);
        for chunk in chunks {
            let bytes = chunk.len() as u64;
            self.scoped(&buffer.label, Some(bytes), || self.queue.write_buffer(&buffer.raw, offset, chunk))?;
            // Counted across buffers, since many small uploads add up to a large one.
            let pending = self.pending_upload.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if pending >= UPLOAD_CHUNK as u64 {
                self.pending_upload.store(0, Ordering::Relaxed);
                self.scoped(&buffer.label, None, || self.queue.submit([]))?;
                self.wait()?;
            }
            offset += bytes;
        }
        Ok(())
    }

    /// Copies a buffer, or a part of one, to the start of another buffer or of a part of it. The copy happens on the
    /// device and is not waited for. Offsets must be multiples of four bytes; the size is rounded up to a multiple of
    /// four.
    ///
    /// # Errors
    /// [`RuntimeError::TooLarge`] if the source is larger than the destination, [`RuntimeError::Validation`] if a part
    /// is misaligned or outside its buffer or both lie in one buffer, or an error of the device.
    pub fn copy<'a, 'b>(&self, from: impl Into<Bound<'a>>, to: impl Into<Bound<'b>>) -> Result<(), RuntimeError> {
        let (from, to) = (from.into(), to.into());
        let bytes = copied_bytes(from, to)?;
        self.scoped(&to.buffer.label, None, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&from.buffer.raw, from.offset, &to.buffer.raw, to.offset, bytes);
            self.queue.submit([encoder.finish()]);
        })
    }

    /// Starts to read a buffer, or a part of one, back to the host through `staging`, after everything submitted
    /// before.
    ///
    /// The data arrives while the device is waited for, for instance with [`wait`](Self::wait) or
    /// [`finished`](Self::finished); a browser needs no wait. `staging` is in use until the [`Download`] is dropped or
    /// its bytes are taken.
    ///
    /// # Errors
    /// [`RuntimeError::TooLarge`] if `staging` is too small, [`RuntimeError::Validation`] if the part is misaligned or
    /// outside its buffer, or an error of the device.
    pub fn start_download<'a>(&self, from: impl Into<Bound<'a>>, staging: &Buffer) -> Result<Download, RuntimeError> {
        let from = from.into();
        let (copied, expected) = self.start_reading(from, staging)?;
        let (send, mapped) = oneshot::channel();
        let range = 0..copied + Tally::BYTES;
        self.scoped(&staging.label, None, || {
            staging.raw.map_async(wgpu::MapMode::Read, range.clone(), move |result| {
                // The receiver is gone if the download was dropped; then the result is not needed.
                let _ = send.send(result);
            });
        })?;
        let (staging, incidents) = (staging.clone(), Arc::clone(&self.incidents));
        Ok(Download { staging, range, bytes: from.bytes, expected, mapped, incidents })
    }

    /// Copies a part of a buffer to `staging`, with the device's count of passes behind it. Returns the number of bytes
    /// in front of the count, and the value that the count must have. The copy is preceded by a pass of its own, so that
    /// its count differs from the count of the copy before, which is what remains in `staging` if this copy fails.
    fn start_reading(&self, from: Bound<'_>, staging: &Buffer) -> Result<(u64, u32), RuntimeError> {
        let bytes = copied_bytes(from, Bound::whole(staging))?;
        let mut passes = self.tally.passes();
        self.counted(&staging.label, &mut passes, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.tally.count(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
            encoder.copy_buffer_to_buffer(&from.buffer.raw, from.offset, &staging.raw, 0, bytes);
            self.tally.copy(&mut encoder, &staging.raw, bytes);
            self.queue.submit([encoder.finish()]);
        })?;
        Ok((bytes, *passes))
    }

    /// Reads a buffer, or a part of one, back to the host through `staging`, and blocks until everything submitted
    /// before is done.
    ///
    /// # Errors
    /// The errors of [`start_download`](Self::start_download), [`wait`](Self::wait) and [`Download::bytes`].
    pub fn download<'a>(&self, from: impl Into<Bound<'a>>, staging: &Buffer) -> Result<Vec<u8>, RuntimeError> {
        let download = self.start_download(from, staging)?;
        self.wait()?;
        // The result is ready, unless another thread that polls the device is just about to deliver it.
        pollster::block_on(download.bytes())
    }
}

/// Returns the number of bytes that a copy moves, which is rounded up to whole words.
///
/// # Errors
/// If they do not fit into `to`.
fn copied_bytes(from: Bound<'_>, to: Bound<'_>) -> Result<u64, RuntimeError> {
    // A length that cannot be rounded up is larger than any buffer. Words are compared, whose number does not overflow.
    match from.bytes.checked_next_multiple_of(4) {
        Some(bytes) if bytes / 4 <= to.bytes.div_ceil(4) => Ok(bytes),
        rounded => Err(RuntimeError::TooLarge {
            what: to.buffer.label.clone(),
            bytes: rounded.unwrap_or(from.bytes),
            limit: "destination",
            allowed: to.bytes,
        }),
    }
}

/// A read-back in progress, made by [`Gpu::start_download`]. Dropping it cancels the read-back.
#[derive(Debug)]
pub struct Download {
    staging: Buffer,
    range: Range<u64>,
    bytes: u64,
    /// Value that the count of passes behind the data must have.
    expected: u32,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
    incidents: Arc<Incidents>,
}

impl Download {
    /// Returns the bytes as soon as they have arrived. The future completes only if the device is waited for.
    ///
    /// # Errors
    /// [`RuntimeError::Lost`] if the device was lost meanwhile or skipped a pass that was submitted before, or
    /// [`RuntimeError::Validation`] if the staging buffer cannot be mapped.
    pub async fn bytes(mut self) -> Result<Vec<u8>, RuntimeError> {
        match (&mut self.mapped).await {
            Ok(mapped) => self.take(mapped),
            Err(_) => Err(self.refused("the read-back ended without a result".to_owned())),
        }
    }

    fn take(&self, mapped: Result<(), wgpu::BufferAsyncError>) -> Result<Vec<u8>, RuntimeError> {
        mapped.map_err(|error| self.refused(error.to_string()))?;
        let view = self.staging.raw.get_mapped_range(self.range.clone());
        let view = view.map_err(|error| self.refused(error.to_string()))?;
        let (_, passes) = view.split_last_chunk().expect("the range holds the count");
        if u32::from_le_bytes(*passes) != self.expected {
            return Err(self.incidents.lose("the driver skipped a pass that was submitted".to_owned()));
        }
        Ok(view[..usize::try_from(self.bytes).expect("the buffer is in memory")].to_vec())
    }

    /// Returns the loss of the device if it is lost, otherwise a validation error with this message.
    fn refused(&self, message: String) -> RuntimeError {
        let what = self.staging.label.clone();
        self.incidents.loss().unwrap_or(RuntimeError::Validation { what, message })
    }
}

/// Unmaps the staging buffer, so that it can be used again whether the bytes were taken or not.
impl Drop for Download {
    fn drop(&mut self) {
        self.staging.raw.unmap();
    }
}
