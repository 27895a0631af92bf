//! Buffers: made with a label, filled in bounded chunks, read back through a staging buffer that is made once.

use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::pass::Bound;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

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

/// Bytes uploaded between two waits. wgpu keeps a staging copy of everything written until the next submission is
/// done, so this bounds the host's extra memory.
const UPLOAD_CHUNK: usize = 32 << 20;

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
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
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
        let buffer = to.buffer;
        if data.len() as u64 > to.bytes {
            let (bytes, allowed) = (data.len() as u64, to.bytes);
            return Err(RuntimeError::TooLarge { what: buffer.label.clone(), bytes, limit: "buffer", allowed });
        }
        for (index, chunk) in data.chunks(UPLOAD_CHUNK).enumerate() {
            let offset = to.offset + (index * UPLOAD_CHUNK) as u64;
            self.scoped(&buffer.label, chunk.len() as u64, || self.queue.write_buffer(&buffer.raw, offset, chunk))?;
            if chunk.len() == UPLOAD_CHUNK {
                self.queue.submit([]);
                self.wait()?;
            }
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
        let bytes = from.bytes.next_multiple_of(4);
        self.scoped(&to.buffer.label, 0, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&from.buffer.raw, from.offset, &to.buffer.raw, to.offset, bytes);
            self.queue.submit([encoder.finish()]);
        })
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
        let bytes = from.bytes;
        self.copy_part(from, Bound::whole(staging))?;
        let (send, receive) = mpsc::channel();
        let range = 0..bytes.next_multiple_of(4);
        self.scoped(&staging.label, 0, || {
            staging.raw.map_async(wgpu::MapMode::Read, range.clone(), move |result| {
                // The receiver is gone only if we left early with an error of our own.
                let _ = send.send(result);
            });
        })?;
        self.wait()?;
        let refused = |message: String| RuntimeError::Validation { what: staging.label.clone(), message };
        match receive.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(refused(error.to_string())),
            Err(_) => return Err(refused("the read-back did not finish".to_owned())),
        }
        let view = staging.raw.get_mapped_range(range).map_err(|error| refused(error.to_string()))?;
        let data = view[..usize::try_from(bytes).expect("the buffer is in memory")].to_vec();
        drop(view);
        staging.raw.unmap();
        Ok(data)
    }
}
