//! Landlock: no file is opened by this process, except beneath the directories that came with `load`. It holds for
//! what the process asks the kernel, whatever mount or descriptor it asks through.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Layer, Root};

// linux/landlock.h; libc does not have them.
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const EXECUTE: u64 = 1;
/// Rights by the version of the interface that brought the last of them.
const FILES: [(i64, u64); 4] = [
    (1, (1 << 13) - 1),
    (2, (1 << 14) - 1),
    (3, (1 << 15) - 1),
    (5, (1 << 16) - 1),
];
/// Binding and connecting TCP sockets.
const NETWORK: (i64, u64) = (4, 0b11);
/// Abstract Unix sockets and signals to processes outside.
const SCOPES: (i64, u64) = (6, 0b11);

#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Restrict the calling thread, and so every thread it starts from now on, to `roots`.
pub fn restrict(roots: &[Root]) -> Layer {
    let version = match ruleset(None, 0, CREATE_RULESET_VERSION) {
        Ok(version) => i64::from(version),
        Err(error) => {
            return Layer::missing(
                "landlock",
                format!("this kernel does not offer it: {error}"),
            );
        }
    };
    match apply(version, roots) {
        Ok(()) => Layer::active(
            "landlock",
            format!("version {version}, {} directories", roots.len()),
        ),
        Err(error) => Layer::missing("landlock", error.to_string()),
    }
}

fn apply(version: i64, roots: &[Root]) -> Result<(), std::io::Error> {
    let files = FILES
        .iter()
        .filter(|(since, _)| *since <= version)
        .fold(0, |_, (_, rights)| *rights);
    let since = |(since, rights): (i64, u64)| if since <= version { rights } else { 0 };
    let attributes = Ruleset {
        files,
        network: since(NETWORK),
        scopes: since(SCOPES),
    };
    // An older kernel takes the longer structure as long as what it does not know is zero.
    let descriptor = ruleset(Some(&attributes), size_of::<Ruleset>(), 0)?;
    // SAFETY: the kernel has just made it for us.
    let rules = unsafe { OwnedFd::from_raw_fd(descriptor) };
    for root in roots {
        let allowed = if root.writable {
            files & !EXECUTE
        } else {
            READ_FILE | READ_DIR
        };
        allow(&rules, &root.directory, allowed)?;
    }
    // SAFETY: the descriptor is valid; no_new_privs is set.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0_u32) })
        .map(|_| ())
}

fn allow(rules: &OwnedFd, directory: &OwnedFd, allowed: u64) -> Result<(), std::io::Error> {
    let rule = PathBeneath {
        allowed,
        parent: directory.as_raw_fd(),
    };
    // SAFETY: both descriptors and the structure are valid for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    })
    .map(|_| ())
}

fn ruleset(attributes: Option<&Ruleset>, size: usize, flags: u32) -> Result<i32, std::io::Error> {
    let place = attributes.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: null with size 0, or a valid structure of that size.
    check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, place, size, flags) })
        .map(|result| i32::try_from(result).expect("a version or a descriptor"))
}

fn check(result: libc::c_long) -> Result<libc::c_long, std::io::Error> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
