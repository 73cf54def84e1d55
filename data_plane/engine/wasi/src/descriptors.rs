//! Calls on one descriptor that move no data: flags, rights, attributes, size, times, space, syncing, closing.

use std::num::NonZeroU64;

use rustix::fs::{
    Advice, FallocateFlags, OFlags, Stat, fadvise, fallocate, fcntl_setfl, fdatasync, fstat, fsync,
    ftruncate, futimens,
};

use crate::abi::{Errno, FdStat, FileStat, clockid, fdflags, fstflags, rights};
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
    /// Before a descriptor is closed: the last one of a file that has no name any more lets its number go.
    fn forget_unlinked(&mut self, fd: u32) {
        let Some(files) = &mut self.files else { return };
        let host = self.table.get(fd).and_then(|entry| entry.host(Errno::Badf));
        if let Some(stat) = host.ok().and_then(|host| fstat(host).ok())
            && stat.st_nlink == 0
        {
            files.forget(&stat);
        }
    }

    /// After the guest has set times: what it will find there, where the host's own are not shown.
    pub(crate) fn note_times(&mut self, stat: &Stat, atim_ns: u64, mtim_ns: u64, flags: u32) {
        let Some(files) = &mut self.files else { return };
        let now_ns = self.clock.peek(clockid::REALTIME).unwrap_or(0);
        let chosen = |given: bool, now: bool, ns: u64| match (given, now) {
            (true, _) => Some(ns),
            (false, true) => Some(now_ns),
            (false, false) => None,
        };
        files.set_times(
            stat,
            chosen(
                flags & fstflags::ATIM != 0,
                flags & fstflags::ATIM_NOW != 0,
                atim_ns,
            ),
            chosen(
                flags & fstflags::MTIM != 0,
                flags & fstflags::MTIM_NOW != 0,
                mtim_ns,
            ),
        );
    }

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
        if self.files.is_some() {
            // Not every file system can reserve space, and none that can shows it.
            if len == 0 {
                return Err(Errno::Inval.into());
            }
            let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
            return Ok(ftruncate(file, size.max(end))?);
        }
        Ok(fallocate(file, FallocateFlags::empty(), offset, len)?)
    }

    /// Closes a descriptor, a standard stream or preopen included.
    pub fn fd_close(&mut self, _mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        self.forget_unlinked(fd);
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
            Resource::File(host) | Resource::Directory(host) => {
                let stat = fstat(host)?;
                match &mut self.files {
                    None => times::file_stat(&stat),
                    Some(files) => files.stat(&stat),
                }
            }
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
        let times = times::timestamps(atim, mtim, fst_flags)?;
        let stat = fstat(host)?;
        futimens(host, &times)?;
        self.note_times(&stat, atim, mtim, fst_flags);
        Ok(())
    }

    /// Moves a descriptor over another open one, which is closed; `Badf` unless both are open.
    pub fn fd_renumber(&mut self, _mem: &mut [u8], from: u32, to: u32) -> Result<(), Fault> {
        if from != to && self.table.get(from).is_ok() {
            self.forget_unlinked(to);
        }
        Ok(self.table.renumber(from, to)?)
    }
}
