//! Calls on one descriptor that move no data: flags, rights, attributes, size, times, space, syncing, closing.

use std::num::NonZeroU64;

use rustix::fs::{
    Advice, FallocateFlags, OFlags, fadvise, fallocate, fcntl_setfl, fdatasync, fstat, fsync,
    ftruncate, futimens,
};

use crate::abi::{Errno, FdStat, FileStat, fdflags, rights};
use crate::config::{Fault, Stdio};
use crate::table::Resource;
use crate::{Wasi, memory, scratch, times};

/// Flags that Linux lets nobody change once a file is open.
const FIXED_FLAGS: u32 = fdflags::DSYNC | fdflags::RSYNC | fdflags::SYNC;

/// Attributes of a standard stream: none that would mean something.
const STDIO_STAT: FileStat = FileStat {
    dev: 0,
    ino: 0,
    file_type: crate::abi::FileType::Unknown,
    nlink: 0,
    size_bytes: 0,
    atim_ns: 0,
    mtim_ns: 0,
    ctim_ns: 0,
};

/// The host's form of an access pattern.
fn advice(number: u32) -> Result<Advice, Errno> {
    match number {
        0 => Ok(Advice::Normal),
        1 => Ok(Advice::Sequential),
        2 => Ok(Advice::Random),
        3 => Ok(Advice::WillNeed),
        4 => Ok(Advice::DontNeed),
        5 => Ok(Advice::NoReuse),
        _ => Err(Errno::Inval),
    }
}

impl<S: Stdio> Wasi<S> {
    /// Tells the host how a file will be read. `Inval` for an unknown pattern, `Spipe` for a standard stream, `Isdir`.
    pub fn fd_advise(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        offset: u64,
        len: u64,
        advice: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file = entry.file(Errno::Spipe)?;
        entry.require(rights::FD_ADVISE)?;
        Ok(fadvise(
            file,
            offset,
            NonZeroU64::new(len),
            self::advice(advice)?,
        )?)
    }

    /// Makes sure that a range of a file has space, growing it if needed; `Inval` for length 0. `Rofs`, `Spipe`, `Isdir`.
    pub fn fd_allocate(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        offset: u64,
        len: u64,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file = entry.file(Errno::Spipe)?;
        entry.require_mutable(rights::FD_ALLOCATE)?;
        let end = offset.saturating_add(len);
        scratch::grow_to(&mut self.usage, &self.limits, file, end)?;
        Ok(fallocate(file, FallocateFlags::empty(), offset, len)?)
    }

    /// Closes a descriptor, a standard stream or preopen included.
    pub fn fd_close(&mut self, _mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        Ok(self.table.close(fd)?)
    }

    /// Brings a file's contents to disk. `Inval` for a standard stream.
    pub fn fd_datasync(&mut self, _mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let host = entry.host(Errno::Inval)?;
        entry.require(rights::FD_DATASYNC)?;
        Ok(fdatasync(host)?)
    }

    /// Brings a file's contents and attributes to disk. `Inval` for a standard stream.
    pub fn fd_sync(&mut self, _mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let host = entry.host(Errno::Inval)?;
        entry.require(rights::FD_SYNC)?;
        Ok(fsync(host)?)
    }

    /// Writes type, flags and rights of a descriptor. Needs no right.
    pub fn fd_fdstat_get(&mut self, mem: &mut [u8], fd: u32, stat: u32) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let answer = FdStat {
            file_type: entry.file_type(),
            // Fits: only the five flags of preview 1 are ever stored.
            flags: entry.flags as u16,
            rights_base: entry.rights_base,
            rights_inheriting: entry.rights_inheriting,
        };
        Ok(memory::write_bytes(mem, stat, &answer.encode())?)
    }

    /// Sets `APPEND` and `NONBLOCK`. `NotSup` for a change of the syncing flags and for any flag on a standard stream,
    /// which always blocks; `Inval` for an unknown flag.
    pub fn fd_fdstat_set_flags(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        flags: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get_mut(fd)?;
        if flags & !fdflags::ALL != 0 {
            return Err(Errno::Inval.into());
        }
        if matches!(
            entry.resource,
            Resource::Stdin | Resource::Stdout | Resource::Stderr
        ) {
            return if flags == 0 {
                Ok(())
            } else {
                Err(Errno::NotSup.into())
            };
        }
        entry.require(rights::FD_FDSTAT_SET_FLAGS)?;
        if (flags ^ entry.flags) & FIXED_FLAGS != 0 {
            return Err(Errno::NotSup.into());
        }
        if let Resource::File(file) = &entry.resource {
            let append = flags & fdflags::APPEND != 0;
            // Non-blocking stays on for the host whatever the guest sees: nothing here may ever wait on a file.
            let append = if append {
                OFlags::APPEND
            } else {
                OFlags::empty()
            };
            fcntl_setfl(file, OFlags::NONBLOCK | append)?;
        }
        entry.flags = flags;
        Ok(())
    }

    /// Takes rights away; `NotCapable` for one that is not there, and then nothing is changed.
    pub fn fd_fdstat_set_rights(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        base: u64,
        inheriting: u64,
    ) -> Result<(), Fault> {
        let entry = self.table.get_mut(fd)?;
        if base & !entry.rights_base != 0 || inheriting & !entry.rights_inheriting != 0 {
            return Err(Errno::NotCapable.into());
        }
        entry.rights_base = base;
        entry.rights_inheriting = inheriting;
        Ok(())
    }

    /// Writes the attributes of an open file; all zero for a standard stream.
    pub fn fd_filestat_get(&mut self, mem: &mut [u8], fd: u32, stat: u32) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        entry.require(rights::FD_FILESTAT_GET)?;
        let answer = match &entry.resource {
            Resource::File(host) | Resource::Directory(host) => times::file_stat(&fstat(host)?),
            Resource::Stdin | Resource::Stdout | Resource::Stderr => STDIO_STAT,
        };
        Ok(memory::write_bytes(mem, stat, &answer.encode())?)
    }

    /// Sets the size of an open file, cutting or adding zeros. `Rofs`, `Isdir`, `Inval` for a standard stream.
    pub fn fd_filestat_set_size(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        size: u64,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let file = entry.file(Errno::Inval)?;
        entry.require_mutable(rights::FD_FILESTAT_SET_SIZE)?;
        scratch::grow_to(&mut self.usage, &self.limits, file, size)?;
        Ok(ftruncate(file, size)?)
    }

    /// Sets the times of an open file. `Inval` for flags that contradict each other and for a standard stream; `Rofs`.
    pub fn fd_filestat_set_times(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        atim: u64,
        mtim: u64,
        fst_flags: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let host = entry.host(Errno::Inval)?;
        entry.require_mutable(rights::FD_FILESTAT_SET_TIMES)?;
        Ok(futimens(host, &times::timestamps(atim, mtim, fst_flags)?)?)
    }

    /// Moves a descriptor over another open one, which is closed; `Badf` unless both are open.
    pub fn fd_renumber(&mut self, _mem: &mut [u8], from: u32, to: u32) -> Result<(), Fault> {
        Ok(self.table.renumber(from, to)?)
    }
}
