//! What a guest may add to the disk: bytes by which files grow, and names in directories.
//!
//! Growth is counted by a file's size, so a hole costs what bytes would, and nothing is given back: a file that was removed
//! while it is open still holds its blocks. So the disk never holds more than was counted, but for the rounding of each
//! file to a block, which the number of names bounds.

use std::os::fd::BorrowedFd;

use rustix::fs::fstat;

use crate::abi::{Errno, fdflags};
use crate::config::{Fault, LimitName, Limits, Usage};
use crate::table::Entry;

/// Counts what `entry`'s file grows by when `len` bytes are put at `offset`, or at its end where it was opened to append.
pub fn write_at(
    usage: &mut Usage,
    limits: &Limits,
    entry: &Entry,
    offset: u64,
    len: u64,
) -> Result<(), Fault> {
    let file = entry.file(Errno::Spipe)?;
    let size = size(file)?;
    let start = if entry.flags & fdflags::APPEND != 0 {
        size
    } else {
        offset
    };
    grow(usage, limits, size, start.saturating_add(len))
}

/// Counts what `file` grows by when its size becomes at least `end`.
pub fn grow_to(
    usage: &mut Usage,
    limits: &Limits,
    file: BorrowedFd<'_>,
    end: u64,
) -> Result<(), Fault> {
    grow(usage, limits, size(file)?, end)
}

/// Refuses the next name in a directory when no more are allowed. Count it with [`named`] once it is there.
pub fn require_name(usage: &Usage, limits: &Limits) -> Result<(), Fault> {
    if usage.scratch_inodes >= limits.max_scratch_inodes {
        return Err(Fault::Limit(LimitName::ScratchInodes));
    }
    Ok(())
}

/// A name was made.
pub fn named(usage: &mut Usage) {
    usage.scratch_inodes += 1;
}

fn grow(usage: &mut Usage, limits: &Limits, size: u64, end: u64) -> Result<(), Fault> {
    let total = usage.scratch_bytes.saturating_add(end.saturating_sub(size));
    if total > limits.max_scratch_bytes {
        return Err(Fault::Limit(LimitName::ScratchBytes));
    }
    usage.scratch_bytes = total;
    Ok(())
}

fn size(file: BorrowedFd<'_>) -> Result<u64, Fault> {
    Ok(u64::try_from(fstat(file)?.st_size).unwrap_or(0))
}
