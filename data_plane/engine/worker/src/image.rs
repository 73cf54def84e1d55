//! What a module's data segments leave in its fresh memory, kept in a sealed file that every run maps privately: the
//! kernel copies the pages that a run writes, and copies no others.
//!
//! Nothing here works out what a segment means. The image is what the engine handed over when it instantiated the module
//! once ([`Recording`]); a module for which that fails, or would run code of the guest, has none and is filled each time.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use wasmer::WASM_PAGE_SIZE;

/// From the first byte to the last. The file stays in memory while the worker lives, outside any run's limit.
pub const MAX_IMAGE_BYTES: usize = 32 * 1024 * 1024;
/// Of all segments together. Filling fewer pages costs less than mapping them: a saved agent in JavaScript has half of
/// this, and runs a tenth longer on an image.
pub const MIN_SEGMENT_BYTES: usize = 512 * 1024;

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

    /// Seal what was taken; `None` if it is not worth it, or is not all. A run that begins on it is given the pages
    /// `to_be_written` of its memory at once.
    #[must_use]
    pub fn finish(self, to_be_written: Vec<Range<u64>>) -> Option<Image> {
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
            to_be_written,
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
    to_be_written: Vec<Range<u64>>,
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
        }?;
        self.copy_to_be_written(base, size);
        Ok(())
    }

    /// Give the memory its own copies of pages that a run writes, each of which would be a fault of its own.
    fn copy_to_be_written(&self, base: NonNull<u8>, size: usize) {
        for range in &self.to_be_written {
            let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end))
            else {
                return;
            };
            // SAFETY: the range lies within the caller's memory, and giving it its pages changes no byte of it.
            let copied = end <= size
                && unsafe {
                    let at = base.as_ptr().add(start).cast();
                    madvise(at, end - start, Advice::LinuxPopulateWrite)
                }
                .is_ok();
            if !copied {
                // A kernel before 5.14, or larger pages: the run faults, as it would without.
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::{Mmap, MmapMut};

    use super::*;

    static LARGE: [u8; MIN_SEGMENT_BYTES] = [7; MIN_SEGMENT_BYTES];

    fn recorded(segments: &[(usize, &[u8])]) -> Option<Image> {
        let recording = Recording::begin().expect("a file in memory");
        for (start, data) in segments {
            recording.take(*start, data);
        }
        recording.finish(Vec::new())
    }

    /// Ones, where the image is not mapped.
    fn memory(image: &Image, pages: usize) -> MmapMut {
        let mut memory = MmapMut::map_anon(pages * WASM_PAGE_SIZE).expect("memory");
        memory.fill(1);
        let base = NonNull::new(memory.as_mut_ptr()).expect("an address");
        // SAFETY: the mapping is private, and nothing in it is borrowed.
        unsafe { image.map_over(base, memory.len()) }.expect("it fits");
        memory
    }

    #[test]
    fn whole_pages_from_the_first_segment_to_the_last_are_mapped() {
        let end = 14 * WASM_PAGE_SIZE - 1;
        let image = recorded(&[(2 * WASM_PAGE_SIZE + 5, &LARGE), (end, b"e"), (0, b"")]).unwrap();
        assert_eq!(image.segments, 3);
        let mut expected = vec![1; 15 * WASM_PAGE_SIZE];
        expected[2 * WASM_PAGE_SIZE..14 * WASM_PAGE_SIZE].fill(0);
        expected[2 * WASM_PAGE_SIZE + 5..][..LARGE.len()].fill(7);
        expected[end] = b'e';
        assert!(memory(&image, 15)[..] == expected[..]);
    }

    #[test]
    fn what_is_written_to_one_memory_is_in_no_other() {
        let image = recorded(&[(0, &LARGE)]).unwrap();
        let (mut first, second) = (memory(&image, 9), memory(&image, 9));
        first.fill(9);
        assert!(second[..LARGE.len()] == LARGE && memory(&image, 9)[..LARGE.len()] == LARGE);
    }

    #[test]
    fn nobody_can_write_to_a_finished_image_or_cut_it() {
        let image = recorded(&[(0, &LARGE)]).unwrap();
        let file = File::from(image.file);
        assert!(file.write_all_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err());
        // SAFETY: no mapping comes of it.
        assert!(unsafe { MmapMut::map_mut(&file) }.is_err());
        // SAFETY: nobody can change the file.
        assert!(unsafe { Mmap::map(&file) }.unwrap()[..LARGE.len()] == LARGE);
    }

    #[test]
    fn a_memory_that_is_too_small_stays_as_it_is() {
        let image = recorded(&[(0, &LARGE)]).unwrap();
        let mut memory = MmapMut::map_anon(WASM_PAGE_SIZE).expect("memory");
        let base = NonNull::new(memory.as_mut_ptr()).expect("an address");
        // SAFETY: the mapping is private, and nothing in it is borrowed.
        assert!(unsafe { image.map_over(base, memory.len()) }.is_err());
        assert!(memory.iter().all(|byte| *byte == 0));
    }

    fn recorded_to_be_written(pages: &[Range<u64>]) -> Image {
        let recording = Recording::begin().expect("a file in memory");
        recording.take(0, &LARGE);
        recording.finish(pages.to_vec()).expect("it is worth it")
    }

    fn faults() -> i64 {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the place is valid to write to, and all zeros are a valid value of it.
        unsafe {
            libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
            usage.assume_init()
        }
        .ru_minflt
    }

    #[test]
    fn pages_that_are_known_to_be_written_fault_no_more_and_hold_the_image() {
        let image = recorded_to_be_written(&[4096..5 * 4096, 40 * 4096..60 * 4096]);
        let mut memory = memory(&image, 9);
        let before = faults();
        for page in (1..5).chain(40..60) {
            memory[page * 4096 + 5] = 8;
        }
        assert_eq!(faults() - before, 0);
        assert_eq!((memory[4096 + 4], memory[4096 + 5]), (7, 8));
        for page in 20..30 {
            memory[page * 4096] = 8;
        }
        assert!(faults() - before >= 10, "what was not named is not copied");
    }

    #[test]
    fn pages_outside_the_memory_are_passed_over() {
        let image = recorded_to_be_written(&[0..4096, 9 << 16..10 << 16, 1 << 62..u64::MAX]);
        let memory = memory(&image, 9);
        assert!(memory[..LARGE.len()] == LARGE);
    }

    #[test]
    fn segments_that_are_few_or_far_apart_leave_no_image() {
        assert!(recorded(&[]).is_none());
        assert!(recorded(&[(0, &LARGE[1..])]).is_none());
        let last = MAX_IMAGE_BYTES - LARGE.len();
        assert!(recorded(&[(0, b"x"), (last, &LARGE)]).is_some());
        assert!(recorded(&[(0, b"x"), (last + 1, &LARGE)]).is_none());
        assert!(recorded(&[(last + 1, &LARGE), (0, b"x"), (last, b"y")]).is_none());
    }
}
