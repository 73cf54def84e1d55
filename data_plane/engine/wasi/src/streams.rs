//! Reading, writing and positions: `fd_read`, `fd_write`, `fd_pread`, `fd_pwrite`, `fd_seek`, `fd_tell`.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno as HostErrno, pread, pwritev, read, writev};

use crate::abi::{Errno, rights, whence};
use crate::config::{Fault, LimitName, Stdio};
use crate::table::Resource;
use crate::{ASKING, Wasi, memory, scratch};

const RESULT_BYTES: u64 = 4;
const POSITION_BYTES: u64 = 8;

/// Where standard output goes.
#[derive(Clone, Copy)]
enum Out {
    Stdout,
    Stderr,
}

/// Reads part by part until one comes short. Parts may overlap, so they cannot be handed to the kernel all at once.
fn read_file(
    mem: &mut [u8],
    parts: &[Range<usize>],
    mut read_part: impl FnMut(&mut [u8], u64) -> Result<usize, HostErrno>,
) -> Result<u32, Errno> {
    let mut total = 0_u64;
    for part in parts {
        let buf = mem.get_mut(part.clone()).ok_or(Errno::Fault)?;
        match read_part(buf, total) {
            Ok(got) => {
                total += got as u64;
                if got < part.len() {
                    break;
                }
            }
            // What was read must not be lost.
            Err(_) if total > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    // Fits: the parts add up to at most u32::MAX.
    Ok(total as u32)
}

/// Reads what there is, or with `whole` until the buffer is full or the input at its end.
fn read_stdin(stdio: &mut impl Stdio, buf: &mut [u8], whole: bool) -> Result<usize, Errno> {
    let mut total = 0;
    while let Some(rest) = buf.get_mut(total..).filter(|rest| !rest.is_empty()) {
        // More than was asked for would be a fault of the host's; it must not become the guest's.
        let got = stdio.read_stdin(rest)?.min(rest.len());
        total += got;
        if got == 0 || !whole {
            break;
        }
    }
    Ok(total)
}

/// What moving `bytes` in `parts` is worth.
fn work(bytes: u32, parts: &[Range<usize>]) -> u64 {
    u64::from(bytes) + ASKING * parts.len() as u64
}

fn slices<'a>(mem: &'a [u8], parts: &[Range<usize>]) -> Result<Vec<IoSlice<'a>>, Errno> {
    parts
        .iter()
        .map(|part| mem.get(part.clone()).map(IoSlice::new).ok_or(Errno::Fault))
        .collect()
}

fn length(parts: &[Range<usize>]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

fn line_ends(data: &[u8]) -> u64 {
    data.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The beginning of `data` that ends at most `room` lines.
fn cut_lines(data: &[u8], room: u64) -> &[u8] {
    let mut ends = (0_u64..).zip(data.iter().enumerate().filter(|(_, byte)| **byte == b'\n'));
    match ends.find(|(number, _)| *number == room) {
        Some((_, (index, _))) => data.get(..index).unwrap_or_default(),
        None => data,
    }
}

impl<S: Stdio> Wasi<S> {
    /// Reads at the position, or from standard input, and writes how much; 0 is the end.
    ///
    /// `Isdir` for a directory. Standard input fills at most one part, so that it never waits with bytes in hand; under a
    /// deterministic clock it fills that part, up to its end.
    pub fn fd_read(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        nread: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        if matches!(entry.resource, Resource::Directory(_)) {
            return Err(Errno::Isdir.into());
        }
        entry.require(rights::FD_READ)?;
        memory::range(mem, nread, RESULT_BYTES)?;
        let parts = memory::iovecs(mem, iovs, iovs_len)?;
        let total = match &entry.resource {
            Resource::File(file) => read_file(mem, &parts, |buf, _| read(file, buf))?,
            _ => match parts.first() {
                None => 0,
                Some(part) => {
                    let buf = mem.get_mut(part.clone()).ok_or(Errno::Fault)?;
                    // In what pieces it came is nothing that another run would see again.
                    let whole = self.files.is_some();
                    let got = read_stdin(&mut self.stdio, buf, whole)? as u32;
                    self.usage.stdin_bytes += u64::from(got);
                    got
                }
            },
        };
        self.usage.work += work(total, &parts);
        Ok(memory::write_u32(mem, nread, total)?)
    }

    /// Reads at an offset, the position unmoved, and writes how much. `Spipe` for a standard stream, `Isdir` for a directory.
    pub fn fd_pread(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        offset: u64,
        nread: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file = entry.file(Errno::Spipe)?;
        entry.require(rights::FD_READ | rights::FD_SEEK)?;
        memory::range(mem, nread, RESULT_BYTES)?;
        let parts = memory::iovecs(mem, iovs, iovs_len)?;
        let total = read_file(mem, &parts, |buf, done| {
            let at = offset.checked_add(done).ok_or(HostErrno::INVAL)?;
            pread(file, buf, at)
        })?;
        self.usage.work += work(total, &parts);
        Ok(memory::write_u32(mem, nread, total)?)
    }

    /// Writes at the position, or to a standard stream, and writes how much.
    ///
    /// `Isdir` for a directory, `Rofs` beneath a read-only preopen. Passing the limit of a standard stream stops the guest
    /// after the bytes that still fit.
    pub fn fd_write(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        nwritten: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        if matches!(entry.resource, Resource::Directory(_)) {
            return Err(Errno::Isdir.into());
        }
        entry.require_mutable(rights::FD_WRITE)?;
        memory::range(mem, nwritten, RESULT_BYTES)?;
        let parts = memory::iovecs(mem, iovs, iovs_len)?;
        let total = match &entry.resource {
            Resource::File(file) => {
                let position = seek(file, SeekFrom::Current(0))?;
                let len = length(&parts);
                scratch::write_at(&mut self.usage, &self.limits, entry, position, len)?;
                // Fits: the parts add up to at most u32::MAX.
                writev(file, &slices(mem, &parts)?)? as u32
            }
            Resource::Stderr => self.write_stream(mem, &parts, Out::Stderr)?,
            _ => self.write_stream(mem, &parts, Out::Stdout)?,
        };
        self.usage.work += work(total, &parts);
        Ok(memory::write_u32(mem, nwritten, total)?)
    }

    /// Writes at an offset, the position unmoved, and writes how much; a file opened for appending grows at its end (Linux).
    /// `Spipe` for a standard stream, `Isdir` for a directory, `Rofs` beneath a read-only preopen.
    pub fn fd_pwrite(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        offset: u64,
        nwritten: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file = entry.file(Errno::Spipe)?;
        entry.require_mutable(rights::FD_WRITE | rights::FD_SEEK)?;
        memory::range(mem, nwritten, RESULT_BYTES)?;
        let parts = memory::iovecs(mem, iovs, iovs_len)?;
        let len = length(&parts);
        scratch::write_at(&mut self.usage, &self.limits, entry, offset, len)?;
        // Fits: the parts add up to at most u32::MAX.
        let total = pwritev(file, &slices(mem, &parts)?, offset)? as u32;
        self.usage.work += work(total, &parts);
        Ok(memory::write_u32(mem, nwritten, total)?)
    }

    /// Moves the position and writes it. `Spipe` for a standard stream, `Isdir` for a directory, `Inval` below 0.
    /// Asking where it is (0 from the current) needs only the right to tell.
    pub fn fd_seek(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        offset: i64,
        whence: u32,
        position: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file = entry.file(Errno::Spipe)?;
        let only_tells = offset == 0 && whence == whence::CUR;
        if !(only_tells && entry.require(rights::FD_TELL).is_ok()) {
            entry.require(rights::FD_SEEK)?;
        }
        memory::range(mem, position, POSITION_BYTES)?;
        let target = match whence {
            whence::SET => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::Inval)?),
            whence::CUR => SeekFrom::Current(offset),
            whence::END => SeekFrom::End(offset),
            _ => return Err(Errno::Inval.into()),
        };
        Ok(memory::write_u64(mem, position, seek(file, target)?)?)
    }

    /// Writes the position. `Spipe` for a standard stream, `Isdir` for a directory. The right to seek is enough.
    pub fn fd_tell(&mut self, mem: &mut [u8], fd: u32, position: u32) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file: BorrowedFd<'_> = entry.file(Errno::Spipe)?;
        if entry.require(rights::FD_SEEK).is_err() {
            entry.require(rights::FD_TELL)?;
        }
        memory::range(mem, position, POSITION_BYTES)?;
        Ok(memory::write_u64(
            mem,
            position,
            seek(file, SeekFrom::Current(0))?,
        )?)
    }

    /// Writes a line of the host's to standard error, as if the guest had: it counts against the guest's limits.
    ///
    /// # Errors
    /// `Limit` when it does not fit, after the bytes that do; `Errno` when the stream refuses.
    pub fn write_log(&mut self, mut line: &[u8]) -> Result<(), Fault> {
        while !line.is_empty() {
            match self.write_some(line, Out::Stderr)? {
                0 => return Err(Errno::Io.into()),
                taken => line = line.get(taken..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Hands parts to a standard stream until all are taken, it refuses, or the limit is reached.
    fn write_stream(&mut self, mem: &[u8], parts: &[Range<usize>], out: Out) -> Result<u32, Fault> {
        let mut total = 0_u32;
        for part in parts {
            let mut rest = mem.get(part.clone()).ok_or(Errno::Fault)?;
            while !rest.is_empty() {
                match self.write_some(rest, out) {
                    Ok(0) => return Err(Errno::Io.into()),
                    Ok(taken) => {
                        total += taken as u32;
                        rest = rest.get(taken..).unwrap_or_default();
                    }
                    Err(Fault::Errno(_)) if total > 0 => return Ok(total),
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(total)
    }

    fn write_some(&mut self, data: &[u8], out: Out) -> Result<usize, Fault> {
        let (used, max, limit) = match out {
            Out::Stdout => (
                &mut self.usage.stdout_bytes,
                self.limits.max_stdout_bytes,
                LimitName::OutputBytes,
            ),
            Out::Stderr => (
                &mut self.usage.stderr_bytes,
                self.limits.max_stderr_bytes,
                LimitName::LogBytes,
            ),
        };
        let room = usize::try_from(max.saturating_sub(*used)).unwrap_or(usize::MAX);
        let fitting = data.get(..room.min(data.len())).unwrap_or_default();
        if fitting.is_empty() {
            return Err(Fault::Limit(limit));
        }
        let taken = match out {
            Out::Stdout => self.stdio.write_stdout(fitting)?.min(fitting.len()),
            Out::Stderr => {
                let room = self.limits.max_log_lines - self.usage.log_lines;
                let lines = cut_lines(fitting, room);
                if lines.is_empty() {
                    return Err(Fault::Limit(LimitName::LogLines));
                }
                let taken = self.stdio.write_stderr(lines)?.min(lines.len());
                self.usage.log_lines += line_ends(lines.get(..taken).unwrap_or_default());
                taken
            }
        };
        *used += taken as u64;
        Ok(taken)
    }
}
