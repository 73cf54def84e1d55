//! Bounds-checked access to guest memory. Every pointer a guest passes goes through here; nothing here panics.
//!
//! Structures are read before anything is written, so guest structures that overlap change only the guest's own result.

use std::ops::Range;

use crate::abi::Errno;

/// Parts of one scattered read or write; Linux takes no more either.
pub const MAX_IOVECS: u32 = 1024;

/// Bytes of a path; `PATH_MAX` of Linux.
pub const MAX_PATH_BYTES: u32 = 4096;

const IOVEC_BYTES: u64 = 8;

/// The bytes `[ptr, ptr + len)` as a range of the memory.
pub fn range(mem: &[u8], ptr: u32, len: u64) -> Result<Range<usize>, Errno> {
    let start = u64::from(ptr);
    let end = start.checked_add(len).ok_or(Errno::Fault)?;
    if end > mem.len() as u64 {
        return Err(Errno::Fault);
    }
    // Both fit: they are at most the length of a slice.
    Ok(start as usize..end as usize)
}

pub fn slice(mem: &[u8], ptr: u32, len: u32) -> Result<&[u8], Errno> {
    let range = range(mem, ptr, u64::from(len))?;
    mem.get(range).ok_or(Errno::Fault)
}

pub fn slice_mut(mem: &mut [u8], ptr: u32, len: u32) -> Result<&mut [u8], Errno> {
    let range = range(mem, ptr, u64::from(len))?;
    mem.get_mut(range).ok_or(Errno::Fault)
}

pub fn write_bytes(mem: &mut [u8], ptr: u32, bytes: &[u8]) -> Result<(), Errno> {
    let range = range(mem, ptr, bytes.len() as u64)?;
    mem.get_mut(range)
        .ok_or(Errno::Fault)?
        .copy_from_slice(bytes);
    Ok(())
}

pub fn write_u32(mem: &mut [u8], ptr: u32, value: u32) -> Result<(), Errno> {
    write_bytes(mem, ptr, &value.to_le_bytes())
}

pub fn write_u64(mem: &mut [u8], ptr: u32, value: u64) -> Result<(), Errno> {
    write_bytes(mem, ptr, &value.to_le_bytes())
}

/// The `N` bytes at `offset` of a structure that was read whole.
pub fn field<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Errno> {
    bytes
        .get(offset..offset + N)
        .and_then(|part| part.try_into().ok())
        .ok_or(Errno::Fault)
}

/// A path: at most [`MAX_PATH_BYTES`] bytes of UTF-8 without a zero byte.
///
/// # Errors
/// `Fault` outside the memory, `NameTooLong`, `Ilseq` when not UTF-8, `Inval` with a zero byte, `Noent` when empty.
pub fn path(mem: &[u8], ptr: u32, len: u32) -> Result<&str, Errno> {
    let bytes = slice(mem, ptr, len)?;
    if len > MAX_PATH_BYTES {
        return Err(Errno::NameTooLong);
    }
    let path = std::str::from_utf8(bytes).map_err(|_| Errno::Ilseq)?;
    if path.is_empty() {
        return Err(Errno::Noent);
    }
    if path.contains('\0') {
        return Err(Errno::Inval);
    }
    Ok(path)
}

/// The parts of a scattered read or write, empty ones left out, each within the memory.
///
/// # Errors
/// `Inval` above [`MAX_IOVECS`] or when the lengths add up to more than a guest's `size` can say; `Fault`.
pub fn iovecs(mem: &[u8], iovs: u32, count: u32) -> Result<Vec<Range<usize>>, Errno> {
    if count > MAX_IOVECS {
        return Err(Errno::Inval);
    }
    let list = mem
        .get(range(mem, iovs, u64::from(count) * IOVEC_BYTES)?)
        .ok_or(Errno::Fault)?;
    let mut parts = Vec::with_capacity(count as usize);
    let mut total = 0_u32;
    for entry in list.chunks_exact(IOVEC_BYTES as usize) {
        let len = u32::from_le_bytes(field(entry, 4)?);
        let part = range(mem, u32::from_le_bytes(field(entry, 0)?), u64::from(len))?;
        total = total.checked_add(len).ok_or(Errno::Inval)?;
        if len > 0 {
            parts.push(part);
        }
    }
    Ok(parts)
}
