//! Paths to host descriptors, never outside the directory they start from.
//!
//! The kernel does the resolving (`openat2` with `RESOLVE_BENEATH`): absolute paths, `..` above the start, symbolic links
//! that lead out and directories moved while they are walked are its to refuse. Calls without an `openat2` form run on a
//! parent resolved this way with one last component, which they never follow.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno as HostErrno;

use crate::abi::{Errno, lookupflags};

/// Beneath alone refuses magic links today, but its documentation does not promise that it always will.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// How often a walk is begun again when a rename somewhere on the machine made the kernel unsure about a `..` (`EAGAIN`).
const MAX_RESOLVE_TRIES: u32 = 64;

/// Opens `path` beneath `dir`, as `openat2` with these flags.
pub fn open_beneath(
    dir: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, HostErrno> {
    let mut tries = 1;
    loop {
        match openat2(dir, path, flags | OFlags::CLOEXEC, mode, RESOLVE) {
            Err(HostErrno::AGAIN) if tries < MAX_RESOLVE_TRIES => tries += 1,
            result => return result,
        }
    }
}

/// A handle (`O_PATH`) on what `path` names, for its attributes only.
pub fn handle(dir: BorrowedFd<'_>, path: &str, lookup: u32) -> Result<OwnedFd, HostErrno> {
    open_beneath(dir, path, OFlags::PATH | follow(lookup), Mode::empty())
}

/// `O_NOFOLLOW` unless the guest asked to follow.
pub fn follow(lookup: u32) -> OFlags {
    if lookup & lookupflags::SYMLINK_FOLLOW == 0 {
        OFlags::NOFOLLOW
    } else {
        OFlags::empty()
    }
}

/// Refuses lookup flags that do not exist.
pub fn check_lookup(lookup: u32) -> Result<(), Errno> {
    if lookup & !lookupflags::ALL == 0 {
        Ok(())
    } else {
        Err(Errno::Inval)
    }
}

enum Directory<'a> {
    Start(BorrowedFd<'a>),
    Opened(OwnedFd),
}

/// A resolved parent directory and the last component of a path.
pub struct Parent<'a> {
    directory: Directory<'a>,
    /// One component, perhaps with a `/` behind it, which the kernel takes as "must be a directory". Never `.` or `..`.
    pub name: &'a str,
}

impl<'a> Parent<'a> {
    /// Resolves all but the last component of `path`.
    ///
    /// # Errors
    /// `NotCapable` for an absolute path and for one that leads out; `on_dots` when the last component is `.` or `..`;
    /// whatever the walk answers.
    pub fn resolve(dir: BorrowedFd<'a>, path: &'a str, on_dots: Errno) -> Result<Self, Errno> {
        if path.starts_with('/') {
            return Err(Errno::NotCapable);
        }
        let trimmed = path.trim_end_matches('/');
        let (walk, last) = trimmed
            .rsplit_once('/')
            .map_or(("", trimmed), |(walk, last)| (walk, last));
        // Where `last` starts: behind `walk` and one slash, or at the beginning.
        let start = trimmed.len() - last.len();
        let end = if path.len() > trimmed.len() {
            trimmed.len() + 1
        } else {
            trimmed.len()
        };
        let directory = if walk.is_empty() {
            Directory::Start(dir)
        } else {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            Directory::Opened(open_beneath(dir, walk, flags, Mode::empty())?)
        };
        if last == "." || last == ".." {
            return Err(on_dots);
        }
        let name = path.get(start..end).ok_or(Errno::Inval)?;
        Ok(Self { directory, name })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.directory {
            Directory::Start(fd) => *fd,
            Directory::Opened(fd) => fd.as_fd(),
        }
    }

    pub fn has_trailing_slash(&self) -> bool {
        self.name.ends_with('/')
    }
}
