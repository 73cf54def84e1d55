//! The `path_*` calls that give no descriptor: attributes, directories, links, renames, removals.

use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, linkat, mkdirat, readlinkat_raw, renameat,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno as HostErrno;

use crate::abi::{Errno, lookupflags, rights};
use crate::config::{Fault, Stdio};
use crate::resolve::{Parent, check_lookup, handle, open_beneath};
use crate::{Wasi, memory, scratch, times};

/// Between two resolved directories `EXDEV` means what it says, and not that a path leads out.
fn two_directories(error: HostErrno) -> Errno {
    if error == HostErrno::XDEV {
        Errno::Xdev
    } else {
        error.into()
    }
}

impl<S: Stdio> Wasi<S> {
    /// The directory behind `fd`, if it has these rights.
    fn directory(&self, fd: u32, needed: u64) -> Result<BorrowedFd<'_>, Errno> {
        let entry = self.table.get(fd)?;
        let directory = entry.directory()?;
        entry.require(needed)?;
        Ok(directory)
    }

    /// The directory behind `fd`, if it has these rights and is not beneath a read-only preopen (`Rofs`).
    fn mutable_directory(&self, fd: u32, needed: u64) -> Result<BorrowedFd<'_>, Errno> {
        let entry = self.table.get(fd)?;
        let directory = entry.directory()?;
        entry.require_mutable(needed)?;
        Ok(directory)
    }

    /// What a name stands for, if the host's number of it may go to another file once the name has gone.
    fn last_of(&self, parent: &Parent<'_>) -> Option<Stat> {
        self.files.as_ref()?;
        let stat = statat(parent.fd(), parent.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        (is_directory || stat.st_nlink <= 1).then_some(stat)
    }

    /// What a rename from `old` takes the last name of, unless both are the same file, which no rename touches.
    fn replaced(&self, old: &Parent<'_>, new: &Parent<'_>) -> Option<Stat> {
        let stat = self.last_of(new)?;
        let moved = statat(old.fd(), old.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        ((stat.st_dev, stat.st_ino) != (moved.st_dev, moved.st_ino)).then_some(stat)
    }

    fn forget(&mut self, gone: Option<Stat>) {
        if let (Some(files), Some(stat)) = (&mut self.files, gone) {
            files.forget(&stat);
        }
    }

    /// Makes a directory. `Exist`, `Rofs`.
    pub fn path_create_directory(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let path = memory::path(mem, path, path_len)?;
        let directory = self.mutable_directory(fd, rights::PATH_CREATE_DIRECTORY)?;
        let parent = Parent::resolve(directory, path, Errno::Exist)?;
        scratch::require_name(&self.usage, &self.limits)?;
        // The umask still applies.
        mkdirat(parent.fd(), parent.name, Mode::from_raw_mode(0o777))?;
        scratch::named(&mut self.usage);
        Ok(())
    }

    /// Writes the attributes of what a path names, of the link itself unless it is to be followed.
    pub fn path_filestat_get(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        flags: u32,
        path: u32,
        path_len: u32,
        stat: u32,
    ) -> Result<(), Fault> {
        memory::range(mem, stat, crate::abi::FileStat::SIZE as u64)?;
        let path = memory::path(mem, path, path_len)?;
        check_lookup(flags)?;
        let directory = self.directory(fd, rights::PATH_FILESTAT_GET)?;
        let host = fstat(handle(directory, path, flags)?)?;
        let answer = match &mut self.files {
            None => times::file_stat(&host),
            Some(files) => files.stat(&host),
        };
        Ok(memory::write_bytes(mem, stat, &answer.encode())?)
    }

    /// Sets the times of what a path names, of the link itself unless it is to be followed. `Inval`, `Rofs`.
    // The signature is preview 1's.
    #[allow(clippy::too_many_arguments)]
    pub fn path_filestat_set_times(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        flags: u32,
        path: u32,
        path_len: u32,
        atim: u64,
        mtim: u64,
        fst_flags: u32,
    ) -> Result<(), Fault> {
        let path = memory::path(mem, path, path_len)?;
        check_lookup(flags)?;
        let directory = self.mutable_directory(fd, rights::PATH_FILESTAT_SET_TIMES)?;
        let times = times::timestamps(atim, mtim, fst_flags)?;
        let target = handle(directory, path, flags)?;
        utimensat(&target, "", &times, AtFlags::EMPTY_PATH)?;
        let stat = fstat(&target)?;
        self.note_times(&stat, atim, mtim, fst_flags);
        Ok(())
    }

    /// Makes a hard link. `Inval` when the old path is to be followed, `Perm` for a directory, `Rofs` when either side is
    /// read-only: a second, writable name would undo the first one's protection.
    // The signature is preview 1's.
    #[allow(clippy::too_many_arguments)]
    pub fn path_link(
        &mut self,
        mem: &mut [u8],
        old_fd: u32,
        old_flags: u32,
        old_path: u32,
        old_path_len: u32,
        new_fd: u32,
        new_path: u32,
        new_path_len: u32,
    ) -> Result<(), Fault> {
        let old_path = memory::path(mem, old_path, old_path_len)?;
        let new_path = memory::path(mem, new_path, new_path_len)?;
        check_lookup(old_flags)?;
        let old_directory = self.mutable_directory(old_fd, rights::PATH_LINK_SOURCE)?;
        let new_directory = self.mutable_directory(new_fd, rights::PATH_LINK_TARGET)?;
        if old_flags & lookupflags::SYMLINK_FOLLOW != 0 {
            return Err(Errno::Inval.into());
        }
        let old = Parent::resolve(old_directory, old_path, Errno::Perm)?;
        if old.has_trailing_slash() {
            // Only a directory answers to such a name, through a link perhaps, and none is ever linked. The kernel's
            // link call would follow here, so it does not get to see this.
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            open_beneath(old_directory, old_path, flags, Mode::empty())?;
            return Err(Errno::Perm.into());
        }
        let new = Parent::resolve(new_directory, new_path, Errno::Exist)?;
        scratch::require_name(&self.usage, &self.limits)?;
        linkat(old.fd(), old.name, new.fd(), new.name, AtFlags::empty())
            .map_err(two_directories)?;
        scratch::named(&mut self.usage);
        Ok(())
    }

    /// Writes the target of a symbolic link, cut to the buffer, and how many bytes. `Inval` for anything else.
    // The signature is preview 1's.
    #[allow(clippy::too_many_arguments)]
    pub fn path_readlink(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
        buf: u32,
        buf_len: u32,
        used: u32,
    ) -> Result<(), Fault> {
        memory::range(mem, used, 4)?;
        let path = memory::path(mem, path, path_len)?;
        let directory = self.directory(fd, rights::PATH_READLINK)?;
        let link = handle(directory, path, 0)?;
        // NoEnt is the kernel's answer here to something that is no link.
        let is_link = |error: HostErrno| {
            if error == HostErrno::NOENT {
                Errno::Inval
            } else {
                error.into()
            }
        };
        let out = memory::slice_mut(mem, buf, buf_len)?;
        let count = readlinkat_raw(link, "", out).map_err(is_link)?;
        Ok(memory::write_u32(mem, used, count as u32)?)
    }

    /// Removes an empty directory. `NotDir`, `NotEmpty`, `Rofs`, `Inval` for `.` and `..`.
    pub fn path_remove_directory(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let path = memory::path(mem, path, path_len)?;
        let directory = self.mutable_directory(fd, rights::PATH_REMOVE_DIRECTORY)?;
        let parent = Parent::resolve(directory, path, Errno::Inval)?;
        let gone = self.last_of(&parent);
        unlinkat(parent.fd(), parent.name, AtFlags::REMOVEDIR)?;
        self.forget(gone);
        Ok(())
    }

    /// Renames, replacing a file or an empty directory. `Xdev` between file systems, `Rofs` when either side is read-only,
    /// `Busy` for `.` and `..`.
    // The signature is preview 1's.
    #[allow(clippy::too_many_arguments)]
    pub fn path_rename(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        old_path: u32,
        old_path_len: u32,
        new_fd: u32,
        new_path: u32,
        new_path_len: u32,
    ) -> Result<(), Fault> {
        let old_path = memory::path(mem, old_path, old_path_len)?;
        let new_path = memory::path(mem, new_path, new_path_len)?;
        let old_directory = self.mutable_directory(fd, rights::PATH_RENAME_SOURCE)?;
        let new_directory = self.mutable_directory(new_fd, rights::PATH_RENAME_TARGET)?;
        let old = Parent::resolve(old_directory, old_path, Errno::Busy)?;
        let new = Parent::resolve(new_directory, new_path, Errno::Busy)?;
        let gone = self.replaced(&old, &new);
        renameat(old.fd(), old.name, new.fd(), new.name).map_err(two_directories)?;
        self.forget(gone);
        Ok(())
    }

    /// Makes a symbolic link. An absolute target is `NotCapable`; a relative one may say anything, and is followed only
    /// where it leads to something beneath the directory that a later path starts from. `Exist`, `Rofs`.
    pub fn path_symlink(
        &mut self,
        mem: &mut [u8],
        old_path: u32,
        old_path_len: u32,
        fd: u32,
        new_path: u32,
        new_path_len: u32,
    ) -> Result<(), Fault> {
        let target = memory::path(mem, old_path, old_path_len)?;
        let path = memory::path(mem, new_path, new_path_len)?;
        let directory = self.mutable_directory(fd, rights::PATH_SYMLINK)?;
        if target.starts_with('/') {
            return Err(Errno::NotCapable.into());
        }
        let parent = Parent::resolve(directory, path, Errno::Exist)?;
        scratch::require_name(&self.usage, &self.limits)?;
        symlinkat(target, parent.fd(), parent.name)?;
        scratch::named(&mut self.usage);
        Ok(())
    }

    /// Removes a file or link. `Isdir` for a directory, `Rofs`.
    pub fn path_unlink_file(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let path = memory::path(mem, path, path_len)?;
        let directory = self.mutable_directory(fd, rights::PATH_UNLINK_FILE)?;
        let parent = Parent::resolve(directory, path, Errno::Isdir)?;
        let gone = self.last_of(&parent);
        unlinkat(parent.fd(), parent.name, AtFlags::empty())?;
        self.forget(gone);
        Ok(())
    }
}
