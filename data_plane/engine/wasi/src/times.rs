//! File attributes and times between host and guest.

use rustix::fs::{FileType as HostFileType, Stat, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::time::Timespec;

use crate::abi::{Errno, FileStat, fstflags};
use crate::clock::{ns_timespec, timespec_ns};

/// The guest's view of host attributes.
#[allow(
    clippy::unnecessary_cast,
    reason = "the widths of the host's fields differ by architecture"
)]
pub fn file_stat(stat: &Stat) -> FileStat {
    let time = |seconds: i64, nanoseconds: u64| {
        timespec_ns(Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds as _,
        })
    };
    FileStat {
        dev: stat.st_dev as u64,
        ino: stat.st_ino as u64,
        file_type: HostFileType::from_raw_mode(stat.st_mode).into(),
        nlink: stat.st_nlink as u64,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        atim_ns: time(stat.st_atime as i64, stat.st_atime_nsec as u64),
        mtim_ns: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
        ctim_ns: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
    }
}

/// The host's form of the times a guest wants set.
///
/// # Errors
/// `Inval` for unknown flags, and when a time is to be both given and "now".
pub fn timestamps(atim_ns: u64, mtim_ns: u64, flags: u32) -> Result<Timestamps, Errno> {
    if flags & !fstflags::ALL != 0 {
        return Err(Errno::Inval);
    }
    Ok(Timestamps {
        last_access: choose(
            atim_ns,
            flags & fstflags::ATIM != 0,
            flags & fstflags::ATIM_NOW != 0,
        )?,
        last_modification: choose(
            mtim_ns,
            flags & fstflags::MTIM != 0,
            flags & fstflags::MTIM_NOW != 0,
        )?,
    })
}

fn choose(ns: u64, given: bool, now: bool) -> Result<Timespec, Errno> {
    match (given, now) {
        (true, true) => Err(Errno::Inval),
        (true, false) => Ok(ns_timespec(ns)),
        (false, true) => Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        }),
        (false, false) => Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        }),
    }
}
