//! `path_open`: from a path beneath a directory to a descriptor with rights.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType as HostFileType, Mode, OFlags, fstat};
use rustix::io::Errno as HostErrno;

use crate::abi::{Errno, fdflags, oflags, rights};
use crate::config::{Fault, Stdio};
use crate::resolve::{check_lookup, follow, handle, open_beneath};
use crate::table::{Entry, Resource};
use crate::{Wasi, memory, scratch};

/// What a guest asks for, checked for sense but not yet for rights.
struct Request<'a> {
    path: &'a str,
    lookup: u32,
    oflags: u32,
    fdflags: u32,
    rights_base: u64,
    rights_inheriting: u64,
}

impl Request<'_> {
    fn creates(&self) -> bool {
        self.oflags & oflags::CREAT != 0
    }

    fn exclusive(&self) -> bool {
        self.oflags & oflags::EXCL != 0
    }

    fn truncates(&self) -> bool {
        self.oflags & oflags::TRUNC != 0
    }

    fn writes(&self) -> bool {
        self.rights_base & rights::FD_WRITE != 0
    }

    /// Whether the descriptor asked for could cut the file itself, and cutting it at the opening gives nothing more. Go's
    /// library counts on that: it opens directories without the right to cut beneath them.
    fn may_resize(&self) -> bool {
        const RESIZE: u64 = rights::FD_WRITE | rights::FD_FILESTAT_SET_SIZE;
        self.rights_base & RESIZE == RESIZE
    }

    /// Refuses flags that do not exist or contradict each other.
    fn check(&self) -> Result<(), Errno> {
        check_lookup(self.lookup)?;
        let unknown = self.oflags & !oflags::ALL != 0 || self.fdflags & !fdflags::ALL != 0;
        let directory = self.oflags & oflags::DIRECTORY != 0;
        if unknown || (directory && (self.creates() || self.truncates())) {
            return Err(Errno::Inval);
        }
        Ok(())
    }

    /// Rights: the directory must allow opening, creating and cutting as asked, and every right that is asked for must be
    /// one it hands on. Rights that do not exist and those of sockets are no business of a file's and ignored.
    fn authorize(&self, directory: &Entry) -> Result<(), Errno> {
        directory.require(rights::PATH_OPEN)?;
        if directory.writable {
            if self.creates() {
                directory.require(rights::PATH_CREATE_FILE)?;
            }
            if self.truncates() && !self.may_resize() {
                directory.require(rights::PATH_FILESTAT_SET_SIZE)?;
            }
        } else if self.writes() || self.truncates() {
            return Err(Errno::Rofs);
        }
        let asked = (self.rights_base | self.rights_inheriting) & rights::INHERITABLE;
        if asked & !directory.rights_inheriting != 0 {
            return Err(Errno::NotCapable);
        }
        Ok(())
    }

    fn host_flags(&self, writable: bool) -> OFlags {
        let mut flags = match (self.rights_base & rights::FD_READ != 0, self.writes()) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (_, false) => OFlags::RDONLY,
        };
        // Neither a fifo nor a terminal swapped in under the check below may hold or take over the worker.
        flags |= OFlags::NONBLOCK | OFlags::NOCTTY | follow(self.lookup);
        for (asked, bit, host) in [
            (self.oflags, oflags::DIRECTORY, OFlags::DIRECTORY),
            (self.oflags, oflags::TRUNC, OFlags::TRUNC),
            (self.fdflags, fdflags::APPEND, OFlags::APPEND),
            (self.fdflags, fdflags::DSYNC, OFlags::DSYNC),
            (self.fdflags, fdflags::RSYNC, OFlags::RSYNC),
            (self.fdflags, fdflags::SYNC, OFlags::SYNC),
        ] {
            if asked & bit != 0 {
                flags |= host;
            }
        }
        if self.creates() && writable {
            flags |= OFlags::CREATE;
            if self.exclusive() {
                flags |= OFlags::EXCL;
            }
        }
        flags
    }

    /// Refuses what exists and must not be opened, before an open could have an effect on it. Returns whether the open
    /// will make a file.
    fn check_target(&self, directory: &Entry, start: BorrowedFd<'_>) -> Result<bool, Errno> {
        if self.creates() && self.exclusive() && directory.writable {
            return Ok(true);
        }
        match handle(start, self.path, self.lookup) {
            Ok(target) => {
                if self.creates() && self.exclusive() {
                    return Err(Errno::Exist);
                }
                match HostFileType::from_raw_mode(fstat(target)?.st_mode) {
                    HostFileType::RegularFile | HostFileType::Directory => Ok(false),
                    // Only there when it was not to be followed.
                    HostFileType::Symlink => Err(Errno::Loop),
                    _ => Err(Errno::NotSup),
                }
            }
            Err(HostErrno::NOENT) if self.creates() => {
                if directory.writable {
                    Ok(true)
                } else {
                    Err(Errno::Rofs)
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The descriptor's entry; a special file that came in between the check and the open is refused here.
fn entry(request: &Request<'_>, host: OwnedFd, writable: bool) -> Result<Entry, Errno> {
    let mut denied = if writable { 0 } else { rights::MUTATING };
    if !request.writes() {
        denied |= rights::FD_ALLOCATE | rights::FD_FILESTAT_SET_SIZE;
    }
    let (resource, applying, inheriting) = match HostFileType::from_raw_mode(fstat(&host)?.st_mode)
    {
        HostFileType::RegularFile => (Resource::File(host), rights::FILE, 0),
        HostFileType::Directory => (
            Resource::Directory(host),
            rights::DIRECTORY,
            rights::INHERITABLE,
        ),
        _ => return Err(Errno::NotSup),
    };
    Ok(Entry {
        resource,
        rights_base: request.rights_base & applying & !denied,
        rights_inheriting: request.rights_inheriting & inheriting,
        flags: request.fdflags,
        writable,
        preopen: None,
        listing: None,
    })
}

impl<S: Stdio> Wasi<S> {
    /// Opens what `path` names beneath a directory and writes the new descriptor's number.
    ///
    /// Checks, in this order: the number's place is memory (`Fault`); the path is one; flags exist and agree (`Inval`);
    /// `fd` is a directory (`Badf`, `NotDir`); nothing is written beneath a read-only preopen (`Rofs`); rights
    /// (`NotCapable`); one more descriptor may be open (`Mfile`); the target is a file or directory (`NotSup` for anything
    /// special, `Loop` for a link that is not to be followed). Then whatever the open itself answers; `NotCapable` for a
    /// path that leads out. A descriptor may have fewer rights than asked for where they mean nothing on its kind.
    // The signature is preview 1's.
    #[allow(clippy::too_many_arguments)]
    pub fn path_open(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        dirflags: u32,
        path: u32,
        path_len: u32,
        oflags: u32,
        rights_base: u64,
        rights_inheriting: u64,
        fdflags: u32,
        opened: u32,
    ) -> Result<(), Fault> {
        memory::range(mem, opened, 4)?;
        let request = Request {
            path: memory::path(mem, path, path_len)?,
            lookup: dirflags,
            oflags,
            fdflags,
            rights_base,
            rights_inheriting,
        };
        request.check()?;
        let directory = self.table.get(fd)?;
        directory.directory()?;
        request.authorize(directory)?;
        let writable = directory.writable;
        self.table.check_room()?;
        let host = self.open_host(fd, &request);
        if matches!(host, Err(Fault::Errno(Errno::Mfile | Errno::Nfile))) {
            // The host ran out before the guest's own limit: for the guest that is the same.
            self.table.note_refused();
        }
        let (host, is_new) = host?;
        if is_new {
            scratch::named(&mut self.usage);
        }
        let number = self.table.insert(entry(&request, host, writable)?)?;
        Ok(memory::write_u32(mem, opened, number)?)
    }

    /// The opened descriptor, and whether its file is new.
    fn open_host(&self, fd: u32, request: &Request<'_>) -> Result<(OwnedFd, bool), Fault> {
        let directory = self.table.get(fd)?;
        let start = directory.directory()?;
        let is_new = request.check_target(directory, start)?;
        if is_new {
            scratch::require_name(&self.usage, &self.limits)?;
        }
        let flags = request.host_flags(directory.writable);
        // A mode without O_CREAT is refused by openat2. The umask still applies.
        let mode = if flags.contains(OFlags::CREATE) {
            Mode::from_raw_mode(0o666)
        } else {
            Mode::empty()
        };
        Ok((open_beneath(start, request.path, flags, mode)?, is_new))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, OFlags};

    use super::{Errno, Mode, Request, entry, open_beneath, rights};

    fn request(rights_base: u64) -> Request<'static> {
        let (path, rights_inheriting) = ("name", 0);
        Request {
            path,
            lookup: 0,
            oflags: 0,
            fdflags: 0,
            rights_base,
            rights_inheriting,
        }
    }

    /// The check before the open sees none of this: the file was swapped behind it.
    #[test]
    fn a_fifo_swapped_in_behind_the_check_neither_blocks_nor_gets_a_number() {
        let dir =
            std::env::temp_dir().join(format!("agentfactory-wasi-open-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        rustix::fs::mkfifoat(CWD, dir.join("name"), Mode::from_raw_mode(0o600)).unwrap();
        let start = std::fs::File::open(&dir).unwrap();
        let asked = request(rights::FD_READ);
        let flags = asked.host_flags(true);
        assert!(flags.contains(OFlags::NONBLOCK | OFlags::NOCTTY));
        // Without NONBLOCK this open would wait for a writer.
        let start = std::os::fd::AsFd::as_fd(&start);
        let opened = open_beneath(start, asked.path, flags, Mode::empty()).unwrap();
        assert_eq!(Errno::NotSup, entry(&asked, opened, true).unwrap_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
