//! The guest's descriptors: what each stands for, its rights and flags, and how many may be open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::abi::{Errno, FileType, rights};

/// What a descriptor stands for.
#[derive(Debug)]
pub enum Resource {
    Stdin,
    Stdout,
    Stderr,
    /// A regular file; the host descriptor is open for what the rights allow and never blocks.
    File(OwnedFd),
    /// A directory, open for reading. Its description is the guest's alone, so seeking it disturbs nobody.
    Directory(OwnedFd),
}

#[derive(Debug)]
pub struct Entry {
    pub resource: Resource,
    pub rights_base: u64,
    pub rights_inheriting: u64,
    /// `fdflags` as the guest sees them.
    pub flags: u32,
    /// False beneath a read-only preopen; inherited by everything opened through it.
    pub writable: bool,
    /// The guest path, if this is a preopen.
    pub preopen: Option<String>,
    /// Of a directory that is listed in order: its entries when listing it began.
    pub listing: Option<Vec<Listed>>,
}

/// One entry of a directory.
#[derive(Debug)]
pub struct Listed {
    pub name: Vec<u8>,
    pub ino: u64,
    pub file_type: FileType,
}

impl Entry {
    fn stdio(resource: Resource, rights_base: u64) -> Self {
        Self {
            resource,
            rights_base,
            rights_inheriting: 0,
            flags: 0,
            writable: true,
            preopen: None,
            listing: None,
        }
    }

    /// Refuses with `NotCapable` unless all of `needed` are there.
    pub fn require(&self, needed: u64) -> Result<(), Errno> {
        if self.rights_base & needed == needed {
            Ok(())
        } else {
            Err(Errno::NotCapable)
        }
    }

    /// As `require`, for what changes something: beneath a read-only preopen the answer is `Rofs`, whatever the rights.
    pub fn require_mutable(&self, needed: u64) -> Result<(), Errno> {
        if self.writable {
            self.require(needed)
        } else {
            Err(Errno::Rofs)
        }
    }

    pub fn file_type(&self) -> FileType {
        match self.resource {
            // Not a character device: a program that believes in a terminal flushes each line, at a host call each.
            Resource::Stdin | Resource::Stdout | Resource::Stderr => FileType::Unknown,
            Resource::File(_) => FileType::RegularFile,
            Resource::Directory(_) => FileType::Directory,
        }
    }

    /// The host's file, for calls that only files have.
    ///
    /// # Errors
    /// `Isdir` for a directory, `on_stdio` for a standard stream.
    pub fn file(&self, on_stdio: Errno) -> Result<BorrowedFd<'_>, Errno> {
        match &self.resource {
            Resource::File(fd) => Ok(fd.as_fd()),
            Resource::Directory(_) => Err(Errno::Isdir),
            Resource::Stdin | Resource::Stdout | Resource::Stderr => Err(on_stdio),
        }
    }

    /// The host's file or directory.
    ///
    /// # Errors
    /// `on_stdio` for a standard stream.
    pub fn host(&self, on_stdio: Errno) -> Result<BorrowedFd<'_>, Errno> {
        match &self.resource {
            Resource::File(fd) | Resource::Directory(fd) => Ok(fd.as_fd()),
            Resource::Stdin | Resource::Stdout | Resource::Stderr => Err(on_stdio),
        }
    }

    /// The host's directory.
    ///
    /// # Errors
    /// `NotDir` for anything else.
    pub fn directory(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.resource {
            Resource::Directory(fd) => Ok(fd.as_fd()),
            _ => Err(Errno::NotDir),
        }
    }
}

/// All descriptors of one guest; a number is the lowest that is free, as POSIX programs expect.
#[derive(Debug)]
pub struct Table {
    entries: Vec<Option<Entry>>,
    open: u32,
    peak: u32,
    max_open: u32,
    refused: bool,
}

impl Table {
    /// The three standard streams are open. They and the preopens count, and are never refused.
    pub fn new(max_open: u32) -> Self {
        let entries = vec![
            Some(Entry::stdio(Resource::Stdin, rights::STDIN)),
            Some(Entry::stdio(Resource::Stdout, rights::STDOUT)),
            Some(Entry::stdio(Resource::Stderr, rights::STDOUT)),
        ];
        Self {
            entries,
            open: 3,
            peak: 3,
            max_open,
            refused: false,
        }
    }

    pub fn get(&self, fd: u32) -> Result<&Entry, Errno> {
        self.entries
            .get(fd as usize)
            .and_then(Option::as_ref)
            .ok_or(Errno::Badf)
    }

    pub fn get_mut(&mut self, fd: u32) -> Result<&mut Entry, Errno> {
        self.entries
            .get_mut(fd as usize)
            .and_then(Option::as_mut)
            .ok_or(Errno::Badf)
    }

    /// Refuses with `Mfile`, and remembers it, when one more would pass the limit. To be asked before the host opens anything.
    pub fn check_room(&mut self) -> Result<(), Errno> {
        if self.open >= self.max_open {
            self.refused = true;
            return Err(Errno::Mfile);
        }
        Ok(())
    }

    /// Remembers that a descriptor was refused.
    pub fn note_refused(&mut self) {
        self.refused = true;
    }

    /// Puts an entry at the lowest free number.
    pub fn insert(&mut self, entry: Entry) -> Result<u32, Errno> {
        let free = self.entries.iter().position(Option::is_none);
        let index = free.unwrap_or(self.entries.len());
        let fd = u32::try_from(index).map_err(|_| Errno::Mfile)?;
        match self.entries.get_mut(index) {
            Some(slot) => *slot = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        self.open += 1;
        self.peak = self.peak.max(self.open);
        Ok(fd)
    }

    pub fn close(&mut self, fd: u32) -> Result<(), Errno> {
        let slot = self.entries.get_mut(fd as usize).ok_or(Errno::Badf)?;
        if slot.take().is_none() {
            return Err(Errno::Badf);
        }
        self.open -= 1;
        Ok(())
    }

    /// Moves `from` over `to`, closing what was there; both must be open.
    pub fn renumber(&mut self, from: u32, to: u32) -> Result<(), Errno> {
        self.get(from)?;
        self.get(to)?;
        if from == to {
            return Ok(());
        }
        let entry = self.entries.get_mut(from as usize).and_then(Option::take);
        if let Some(slot) = self.entries.get_mut(to as usize) {
            *slot = entry;
        }
        self.open -= 1;
        Ok(())
    }

    pub fn peak(&self) -> u32 {
        self.peak
    }

    pub fn refused(&self) -> bool {
        self.refused
    }
}
