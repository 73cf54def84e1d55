//! What a guest under a deterministic clock sees of files instead of the host's numbers: inodes counted in the order in which
//! it met them, one device, and times that only it sets.

use std::collections::HashMap;

use rustix::fs::{FileType as HostFileType, Stat};

use crate::abi::FileStat;
use crate::times;

/// The one device there is.
const DEVICE: u64 = 1;

/// A file of the host.
type HostFile = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Seen {
    ino: u64,
    atim_ns: u64,
    mtim_ns: u64,
}

/// The files that one guest has met.
#[derive(Debug)]
pub struct Files {
    seen: HashMap<HostFile, Seen>,
    next_ino: u64,
    /// What the times of a file are until the guest sets them.
    born_ns: u64,
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the widths of the host's fields differ by architecture"
)]
fn host_file(stat: &Stat) -> HostFile {
    (stat.st_dev as u64, stat.st_ino as u64)
}

impl Files {
    pub fn new(born_ns: u64) -> Self {
        Self {
            seen: HashMap::new(),
            next_ino: 1,
            born_ns,
        }
    }

    fn meet(&mut self, file: HostFile) -> &mut Seen {
        self.seen.entry(file).or_insert_with(|| {
            let ino = self.next_ino;
            self.next_ino += 1;
            Seen {
                ino,
                atim_ns: self.born_ns,
                mtim_ns: self.born_ns,
            }
        })
    }

    /// The number under which the guest knows a file.
    pub fn ino(&mut self, stat: &Stat) -> u64 {
        self.meet(host_file(stat)).ino
    }

    /// The attributes as the guest sees them. Sizes and links of directories are the file system's own business.
    pub fn stat(&mut self, stat: &Stat) -> FileStat {
        let seen = *self.meet(host_file(stat));
        let host = times::file_stat(stat);
        let is_directory = HostFileType::from_raw_mode(stat.st_mode) == HostFileType::Directory;
        FileStat {
            dev: DEVICE,
            ino: seen.ino,
            nlink: if is_directory { 1 } else { host.nlink },
            size_bytes: if is_directory { 0 } else { host.size_bytes },
            atim_ns: seen.atim_ns,
            mtim_ns: seen.mtim_ns,
            ctim_ns: self.born_ns,
            ..host
        }
    }

    /// The guest set the times of a file; `None` leaves one as it was.
    pub fn set_times(&mut self, stat: &Stat, atim_ns: Option<u64>, mtim_ns: Option<u64>) {
        let seen = self.meet(host_file(stat));
        seen.atim_ns = atim_ns.unwrap_or(seen.atim_ns);
        seen.mtim_ns = mtim_ns.unwrap_or(seen.mtim_ns);
    }

    /// A file has gone, and some hosts give its number to the next one: that must not be taken for the same.
    pub fn forget(&mut self, stat: &Stat) {
        self.seen.remove(&host_file(stat));
    }
}
