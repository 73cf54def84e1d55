//! What a module's data segments leave in its fresh memory, kept in a sealed file that every run maps privately: the
//! kernel copies the pages that a run writes, and copies no others.
//!
//! Nothing here works out what a segment means. The image is what the engine handed over when it instantiated the module
//! once ([`Recording`]); a module for which that fails, or would run code of the guest, has none and is filled each time.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use wasmer::WASM_PAGE_SIZE;

/// From the first byte to the last. The file stays in memory while the worker lives, outside any run's limit.
pub const MAX_IMAGE_BYTES: usize = 32 * 1024 * 1024;
/// Of all segments together. Filling fewer pages costs no more than mapping them.
pub const MIN_SEGMENT_BYTES: usize = 128 * 1024;

const NAME: &str = "agentfactory-image";

/// The segments of one instantiation, written to a file at the places that they have in the memory.
#[derive(Debug)]
pub struct Recording {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    segments: usize,
    segment_bytes: usize,
    start: usize,
    end: usize,
    /// The file is not what the memory would be.
    useless: bool,
}

impl Recording {
    /// # Errors
    /// The kernel has no sealable files in memory, or no memory.
    pub fn begin() -> rustix::io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
            // Kernels before 6.3 know no such flag.
            Err(Errno::INVAL) => memfd_create(NAME, flags),
            created => created,
        }?;
        Ok(Self {
            file: File::from(file),
            written: Mutex::default(),
        })
    }

    /// Take one segment, of which the engine has checked that it lies within the memory.
    pub fn take(&self, start: usize, data: &[u8]) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.segments += 1;
        if data.is_empty() || written.useless {
            return;
        }
        let end = start + data.len();
        let (first, last) = match written.segment_bytes {
            0 => (start, end),
            _ => (written.start.min(start), written.end.max(end)),
        };
        // Before it is written: a segment at either end of a large memory would keep a page each.
        written.useless =
            last - first > MAX_IMAGE_BYTES || self.file.write_all_at(data, start as u64).is_err();
        written.segment_bytes = written.segment_bytes.saturating_add(data.len());
        (written.start, written.end) = (first, last);
    }

    /// Seal what was taken; `None` if it is not worth it, or is not all.
    #[must_use]
    pub fn finish(self) -> Option<Image> {
        let written = self
            .written
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if written.useless || written.segment_bytes < MIN_SEGMENT_BYTES {
            return None;
        }
        // Whole pages of the memory, whatever the machine's are: it has no part of one.
        let start = written.start / WASM_PAGE_SIZE * WASM_PAGE_SIZE;
        let end = written.end.next_multiple_of(WASM_PAGE_SIZE);
        let file = OwnedFd::from(self.file);
        ftruncate(&file, end as u64).ok()?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).ok()?;
        Some(Image {
            file,
            segments: written.segments,
            start,
            end,
        })
    }
}

/// The bytes `start..end` of a module's fresh memory, in a file that nobody can change any more.
#[derive(Debug)]
pub struct Image {
    file: OwnedFd,
    /// How many there are: a memory that begins as the image passes over as many.
    pub segments: usize,
    start: usize,
    end: usize,
}

impl Image {
    /// Let a fresh memory of `size` bytes at `base` begin as the image.
    ///
    /// # Safety
    /// `base..base + size` is memory of the caller, mapped privately at a page's border, that nothing refers to yet.
    ///
    /// # Errors
    /// The kernel refused; the range may then be unmapped and must not be used.
    pub unsafe fn map_over(&self, base: NonNull<u8>, size: usize) -> rustix::io::Result<()> {
        if self.end > size {
            return Err(Errno::INVAL);
        }
        // SAFETY: the range lies within the caller's (checked above), who keeps nothing in it. A private mapping of a
        // sealed file: what is written stays in this mapping, and nobody shortens the file under it.
        unsafe {
            mmap(
                base.as_ptr().add(self.start).cast(),
                self.end - self.start,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED,
                &self.file,
                self.start as u64,
            )
        }
        .map(|_| ())
    }
}
