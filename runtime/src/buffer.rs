//! Buffers: made with a label, filled in bounded chunks, read back through a staging buffer that is made once.

use crate::device::{Gpu, Incidents};
use crate::error::RuntimeError;
use crate::pass::Bound;
use crate::tally::Tally;
use futures_channel::oneshot;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A buffer on the device.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(crate) raw: wgpu::Buffer,
    label: String,
    bytes: u64,
}

impl Buffer {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it holds, for people.
    pub fn label(&self) -> &str {
        &self.label
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A tensor: bound whole as storage, copied to and from.
    Storage,
    /// Tensors side by side: parts of it are bound, so that the whole may be larger than a binding.
    Arena,
    /// Parameters of kernels.
    Uniform,
    /// The way back to the host.
    Staging,
    /// What a timer's timestamps are resolved to.
    Timestamps,
}

/// What outputs hold before a kernel runs: a NaN with a pattern of its own, as one f32 and as two f16, so that an element
/// nobody wrote is found.
pub const POISON: u32 = 0x7FC1_7FC1;

/// Bytes uploaded between two waits, of all buffers. wgpu keeps a staging copy of everything written until the next submission is
/// done, so this bounds the host's extra memory.
const UPLOAD_CHUNK: usize = 8 << 20;

impl Gpu {
    /// Makes a buffer of at least four bytes; its content is zero.
    ///
    /// # Errors
    /// If it is beyond the adapter's limits, or there is no memory for it.
    pub fn buffer(&self, label: &str, bytes: u64, role: Role) -> Result<Buffer, RuntimeError> {
        let bytes = bytes.max(4).next_multiple_of(4);
        let caps = self.caps();
        let too_large = |limit, allowed| RuntimeError::TooLarge { what: label.to_owned(), bytes, limit, allowed };
        if bytes > caps.max_buffer_bytes {
            return Err(too_large("adapter's largest buffer", caps.max_buffer_bytes));
        }
        if role == Role::Storage && bytes > caps.max_binding_bytes {
            return Err(too_large("adapter's largest storage binding", caps.max_binding_bytes));
        }
        use wgpu::BufferUsages as Usage;
        let usage = match role {
            Role::Storage | Role::Arena => Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST,
            Role::Uniform => Usage::UNIFORM | Usage::COPY_DST,
            Role::Staging => Usage::MAP_READ | Usage::COPY_DST,
            Role::Timestamps => Usage::QUERY_RESOLVE | Usage::COPY_SRC,
        };
        // What is read brings the count of passes along.
        let size = if role == Role::Staging { bytes + Tally::BYTES } else { bytes };
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let raw = self.scoped(label, bytes, || self.device.create_buffer(&descriptor))?;
        self.buffers_made.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer { raw, label: label.to_owned(), bytes })
    }

    /// Writes `data` to the start of a buffer. `data` is a multiple of four bytes.
    ///
    /// # Errors
    /// If it does not fit, or the device is lost.
    pub fn upload(&self, buffer: &Buffer, data: &[u8]) -> Result<(), RuntimeError> {
        self.upload_to(Bound::whole(buffer), data)
    }

    /// Like [`upload`](Self::upload), to the start of a part of a buffer.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn upload_to(&self, to: Bound<'_>, data: &[u8]) -> Result<(), RuntimeError> {
        if data.len() as u64 > to.bytes {
            let (what, bytes, allowed) = (to.buffer.label.clone(), data.len() as u64, to.bytes);
            return Err(RuntimeError::TooLarge { what, bytes, limit: "buffer", allowed });
        }
        self.upload_chunks(to, data.chunks(UPLOAD_CHUNK))
    }

    /// Fills a buffer with [`POISON`], so that whatever nobody writes afterwards is found.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn poison(&self, buffer: &Buffer) -> Result<(), RuntimeError> {
        let bytes = usize::try_from(buffer.bytes).expect("the buffer is in memory");
        let chunk = POISON.to_le_bytes().repeat(bytes.min(UPLOAD_CHUNK) / 4);
        let lens = (0..bytes).step_by(UPLOAD_CHUNK).map(|start| (bytes - start).min(UPLOAD_CHUNK));
        self.upload_chunks(Bound::whole(buffer), lens.map(|len| &chunk[..len]))
    }

    /// Writes chunks behind each other.
    fn upload_chunks<'a>(&self, to: Bound<'_>, chunks: impl Iterator<Item = &'a [u8]>) -> Result<(), RuntimeError> {
        let (buffer, mut offset) = (to.buffer, to.offset);
        for chunk in chunks {
            let bytes = chunk.len() as u64;
            self.scoped(&buffer.label, bytes, || self.queue.write_buffer(&buffer.raw, offset, chunk))?;
            // Many small buffers add up just as one large one does.
            let pending = self.pending_upload.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if pending >= UPLOAD_CHUNK as u64 {
                self.pending_upload.store(0, Ordering::Relaxed);
                self.scoped(&buffer.label, 0, || self.queue.submit([]))?;
                self.wait()?;
            }
            offset += bytes;
        }
        Ok(())
    }

    /// Copies the first `bytes` of one buffer to another on the device.
    ///
    /// # Errors
    /// If either is too short, or the device is lost.
    pub fn copy(&self, from: &Buffer, to: &Buffer, bytes: u64) -> Result<(), RuntimeError> {
        self.copy_part(Bound { bytes, ..Bound::whole(from) }, Bound::whole(to))
    }

    /// Copies a part of one buffer to the start of a part of another, on the device.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub fn copy_part(&self, from: Bound<'_>, to: Bound<'_>) -> Result<(), RuntimeError> {
        let bytes = copied_bytes(from, to)?;
        self.scoped(&to.buffer.label, 0, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&from.buffer.raw, from.offset, &to.buffer.raw, to.offset, bytes);
            self.queue.submit([encoder.finish()]);
        })
    }

    /// Sends a part of a buffer on its way to the host, through `staging`, behind everything submitted before. It has
    /// arrived when the device has been waited for; a browser does that by itself.
    ///
    /// # Errors
    /// If a buffer is too short, or the device is lost.
    pub fn start_download(&self, from: Bound<'_>, staging: &Buffer) -> Result<Download, RuntimeError> {
        let expected = self.start_reading(from, staging)?;
        let (send, mapped) = oneshot::channel();
        let range = 0..from.bytes.next_multiple_of(4) + Tally::BYTES;
        self.scoped(&staging.label, 0, || {
            staging.raw.map_async(wgpu::MapMode::Read, range.clone(), move |result| {
                // The receiver is gone only if nobody wants the bytes any more.
                let _ = send.send(result);
            });
        })?;
        let (staging, incidents) = (staging.clone(), Arc::clone(&self.incidents));
        Ok(Download { staging, range, bytes: from.bytes, expected, mapped, incidents })
    }

    /// Copies a part of a buffer, and behind it the count of passes; what that has to be. A pass of its own makes it another
    /// count than that of the copy before, which stays where a copy fails.
    fn start_reading(&self, from: Bound<'_>, staging: &Buffer) -> Result<u32, RuntimeError> {
        let bytes = copied_bytes(from, Bound::whole(staging))?;
        let mut passes = self.tally.passes();
        self.scoped(&staging.label, 0, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.tally.count(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
            encoder.copy_buffer_to_buffer(&from.buffer.raw, from.offset, &staging.raw, 0, bytes);
            self.tally.copy(&mut encoder, &staging.raw, bytes);
            self.queue.submit([encoder.finish()]);
        })?;
        *passes = passes.wrapping_add(1);
        Ok(*passes)
    }

    /// Reads the first `bytes` of a buffer through `staging`, waiting for everything submitted before.
    ///
    /// # Errors
    /// If a buffer is too short, or the device is lost.
    pub fn download(&self, buffer: &Buffer, staging: &Buffer, bytes: u64) -> Result<Vec<u8>, RuntimeError> {
        self.download_from(Bound { bytes, ..Bound::whole(buffer) }, staging)
    }

    /// Like [`download`](Self::download), of a part of a buffer.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub fn download_from(&self, from: Bound<'_>, staging: &Buffer) -> Result<Vec<u8>, RuntimeError> {
        let download = self.start_download(from, staging)?;
        self.wait()?;
        // Ready, except when another thread that waits is just about to say so.
        pollster::block_on(download.bytes())
    }
}

/// Bytes that a copy moves: whole words.
fn copied_bytes(from: Bound<'_>, to: Bound<'_>) -> Result<u64, RuntimeError> {
    let bytes = from.bytes.next_multiple_of(4);
    if bytes > to.bytes.next_multiple_of(4) {
        let (what, allowed) = (to.buffer.label.clone(), to.bytes);
        return Err(RuntimeError::TooLarge { what, bytes, limit: "buffer", allowed });
    }
    Ok(bytes)
}

/// Bytes on their way from the device to the host.
#[derive(Debug)]
pub struct Download {
    staging: Buffer,
    range: Range<u64>,
    bytes: u64,
    /// The count of passes that has to come along.
    expected: u32,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
    incidents: Arc<Incidents>,
}

impl Download {
    /// The bytes, once they have arrived.
    ///
    /// # Errors
    /// If the device was lost on the way, or did not carry out all that was submitted before.
    pub async fn bytes(mut self) -> Result<Vec<u8>, RuntimeError> {
        match (&mut self.mapped).await {
            Ok(mapped) => self.take(mapped),
            Err(_) => Err(self.refused("the read-back did not finish".to_owned())),
        }
    }

    fn take(&self, mapped: Result<(), wgpu::BufferAsyncError>) -> Result<Vec<u8>, RuntimeError> {
        mapped.map_err(|error| self.refused(error.to_string()))?;
        let view = self.staging.raw.get_mapped_range(self.range.clone());
        let view = view.map_err(|error| self.refused(error.to_string()))?;
        let (_, passes) = view.split_last_chunk().expect("the count is in the range");
        if u32::from_le_bytes(*passes) != self.expected {
            return Err(self.incidents.lose("it did not carry out all that was submitted".to_owned()));
        }
        Ok(view[..usize::try_from(self.bytes).expect("the buffer is in memory")].to_vec())
    }

    fn refused(&self, message: String) -> RuntimeError {
        let what = self.staging.label.clone();
        self.incidents.loss().unwrap_or(RuntimeError::Validation { what, message })
    }
}

/// The staging buffer is free again, whether the bytes were taken or not.
impl Drop for Download {
    fn drop(&mut self) {
        self.staging.raw.unmap();
    }
}
