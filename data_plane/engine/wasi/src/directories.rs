//! Preopens as the guest finds them, and the entries of a directory.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, FileType as HostFileType, RawDir, RawDirEntry, SeekFrom, fstat, seek, statat,
};

use crate::abi::{Errno, FileType, rights};
use crate::config::{Fault, Stdio};
use crate::identity::Files;
use crate::table::{Entry, Listed};
use crate::{DEAR_BYTE, Wasi, memory};

const DIRENT_BYTES: usize = 24;

/// The host's entries are fetched in pieces between these: about as much as the guest has room for.
const MIN_FETCH_BYTES: usize = 1 << 10;
const MAX_FETCH_BYTES: usize = 1 << 15;

/// Where entries go until the buffer is full; the last one may be cut, which tells the guest that there is more.
struct Sink<'a> {
    buf: &'a mut [u8],
    used: usize,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let room = self.buf.get_mut(self.used..).unwrap_or_default();
        let count = bytes.len().min(room.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.used += count;
    }

    fn is_full(&self) -> bool {
        self.used == self.buf.len()
    }
}

fn dirent(next: u64, ino: u64, name: &[u8], file_type: FileType) -> [u8; DIRENT_BYTES] {
    let mut out = [0; DIRENT_BYTES];
    out[0..8].copy_from_slice(&next.to_le_bytes());
    out[8..16].copy_from_slice(&ino.to_le_bytes());
    // Fits: a name has at most 255 bytes.
    out[16..20].copy_from_slice(&(name.len() as u32).to_le_bytes());
    out[20] = file_type as u8;
    out
}

/// What an entry is, which not every file system says in the directory.
fn type_of(directory: BorrowedFd<'_>, entry: &RawDirEntry<'_>) -> HostFileType {
    match entry.file_type() {
        HostFileType::Unknown => statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_or(HostFileType::Unknown, |stat| {
                HostFileType::from_raw_mode(stat.st_mode)
            }),
        known => known,
    }
}

/// All entries by name, `.` and `..` first, with the numbers under which the guest knows them.
fn sorted(directory: BorrowedFd<'_>, files: &mut Files) -> Result<Vec<Listed>, Errno> {
    let own_ino = files.ino(&fstat(directory)?);
    seek(directory, SeekFrom::Start(0))?;
    let mut space = [MaybeUninit::uninit(); MAX_FETCH_BYTES];
    let mut entries = RawDir::new(directory, &mut space);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        names.push((
            entry.file_name().to_owned(),
            type_of(directory, &entry).into(),
        ));
    }
    names.sort_by(|(one, _), (other, _)| {
        let rank = |name: &CStr| {
            (
                !matches!(name.to_bytes(), b"." | b".."),
                name.to_bytes().to_vec(),
            )
        };
        rank(one).cmp(&rank(other))
    });
    names
        .into_iter()
        .map(|(name, file_type)| {
            let ino = if matches!(name.to_bytes(), b"." | b"..") {
                own_ino
            } else {
                files.ino(&statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?)
            };
            Ok(Listed {
                name: name.into_bytes(),
                ino,
                file_type,
            })
        })
        .collect()
}

/// The work of reading a whole directory.
fn work(listing: &[Listed]) -> u64 {
    listing
        .iter()
        .map(|listed| DEAR_BYTE * (DIRENT_BYTES + listed.name.len()) as u64)
        .sum()
}

fn put_sorted(listing: &[Listed], cookie: u64, sink: &mut Sink<'_>) -> Result<(), Errno> {
    let start = usize::try_from(cookie).map_err(|_| Errno::Inval)?;
    let rest = listing.get(start..).ok_or(Errno::Inval)?;
    for (next, listed) in (cookie + 1..).zip(rest) {
        if sink.is_full() {
            break;
        }
        sink.put(&dirent(next, listed.ino, &listed.name, listed.file_type));
        sink.put(&listed.name);
    }
    Ok(())
}

fn list(directory: BorrowedFd<'_>, cookie: u64, sink: &mut Sink<'_>) -> Result<(), Errno> {
    let own_ino = fstat(directory)?.st_ino as u64;
    seek(directory, SeekFrom::Start(cookie))?;
    let mut space = [MaybeUninit::uninit(); MAX_FETCH_BYTES];
    let fetch = sink.buf.len().clamp(MIN_FETCH_BYTES, MAX_FETCH_BYTES);
    let mut entries = RawDir::new(directory, &mut space[..fetch]);
    while !sink.is_full() {
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // The parent may lie outside of what the guest may know of, so it gets the directory's own number.
        let ino = if name == b".." { own_ino } else { entry.ino() };
        let host_type = type_of(directory, &entry);
        sink.put(&dirent(
            entry.next_entry_cookie(),
            ino,
            name,
            host_type.into(),
        ));
        sink.put(name);
    }
    Ok(())
}

fn preopen(entry: &Entry) -> Result<&str, Errno> {
    entry.preopen.as_deref().ok_or(Errno::Badf)
}

impl<S: Stdio> Wasi<S> {
    /// Writes the length of a preopen's path. `Badf` for a descriptor that is none, which ends a C library's search.
    pub fn fd_prestat_get(&mut self, mem: &mut [u8], fd: u32, prestat: u32) -> Result<(), Fault> {
        let path = preopen(self.table.get(fd)?)?;
        let mut answer = [0; 8];
        // Tag 0 is a directory, and there is no other.
        answer[4..8].copy_from_slice(&(path.len() as u32).to_le_bytes());
        Ok(memory::write_bytes(mem, prestat, &answer)?)
    }

    /// Writes a preopen's path, without a zero byte. `NameTooLong` when the buffer is too short.
    pub fn fd_prestat_dir_name(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let name = preopen(self.table.get(fd)?)?;
        memory::range(mem, path, u64::from(path_len))?;
        if name.len() as u64 > u64::from(path_len) {
            return Err(Errno::NameTooLong.into());
        }
        Ok(memory::write_bytes(mem, path, name.as_bytes())?)
    }

    /// Writes entries from `cookie` on (0 is the beginning), `.` and `..` included, and how many bytes they fill. A full
    /// buffer, with the last entry perhaps cut, means that there may be more. `NotDir`; names are bytes as the host has them.
    /// Under a deterministic clock they come sorted, as they were when cookie 0 was asked for.
    pub fn fd_readdir(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        buf: u32,
        buf_len: u32,
        cookie: u64,
        used: u32,
    ) -> Result<(), Fault> {
        let entry = self.table.get(fd)?;
        let directory = entry.directory()?;
        entry.require(rights::FD_READDIR)?;
        memory::range(mem, used, 4)?;
        let mut sink = Sink {
            buf: memory::slice_mut(mem, buf, buf_len)?,
            used: 0,
        };
        match &mut self.files {
            None => list(directory, cookie, &mut sink)?,
            Some(files) => {
                if cookie == 0 || entry.listing.is_none() {
                    let listing = sorted(directory, files)?;
                    self.usage.work += work(&listing);
                    self.table.get_mut(fd)?.listing = Some(listing);
                }
                let listing = self.table.get(fd)?.listing.as_deref();
                put_sorted(listing.unwrap_or_default(), cookie, &mut sink)?;
            }
        }
        // Fits: at most buf_len.
        let filled = sink.used as u32;
        self.usage.work += u64::from(filled);
        Ok(memory::write_u32(mem, used, filled)?)
    }
}
