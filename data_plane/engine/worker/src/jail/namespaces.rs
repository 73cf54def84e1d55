//! Namespaces of its own: nobody's user, no process but itself, no network but a loopback that is down, no file system
//! but an empty read-only one, no shared memory of others.

use std::ffi::CStr;

use super::Layer;
use super::user::{self, NOBODY, User};

const REST: libc::c_int = libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// Enter the namespaces that the kernel allows; the pid namespace begins with the next fork. One thread only.
/// Also says which user the process is outside from now on.
pub fn enter(wanted: User) -> (Layer, u32) {
    if wanted == User::Nobody && rustix::process::geteuid().is_root() {
        match as_nobody() {
            Ok(layer) => return (layer, NOBODY),
            // Not possible here; `not_root` will say that the worker is root outside.
            Err(_) => drop(user::return_to_root()),
        }
    }
    let outer = rustix::process::geteuid().as_raw();
    (as_oneself(outer), outer)
}

/// The namespaces of a root node's worker.
fn as_nobody() -> Result<Layer, std::io::Error> {
    user::become_nobody()?;
    unshare(libc::CLONE_NEWUSER | REST)?;
    map_user(NOBODY, NOBODY)?;
    user::settle()?;
    Ok(isolated(Vec::new()))
}

fn as_oneself(outer: u32) -> Layer {
    let group = rustix::process::getegid().as_raw();
    let mut missing = Vec::new();
    if let Err(error) = unshare(libc::CLONE_NEWUSER | REST) {
        // Without a user namespace only root can have the others.
        missing.push(format!("user ({error})"));
        if let Err(error) = unshare(REST) {
            return Layer::missing("namespaces", format!("user, pid, net, mount, ipc: {error}"));
        }
    } else if let Err(error) = map_user(outer, group) {
        missing.push(format!("user ({error})"));
    }
    isolated(missing)
}

fn isolated(mut missing: Vec<String>) -> Layer {
    if let Err(error) = empty_root() {
        missing.push(format!("mount ({error})"));
    }
    if missing.is_empty() {
        Layer::active("namespaces", "user, pid, net, mount, ipc, uts")
    } else {
        Layer::missing("namespaces", missing.join(", "))
    }
}

fn unshare(flags: libc::c_int) -> Result<(), std::io::Error> {
    // SAFETY: takes flags only; there is one thread.
    check(unsafe { libc::unshare(flags) })
}

fn map_user(user: u32, group: u32) -> Result<(), std::io::Error> {
    // Without CAP_SETGID outside, a group is mapped only by who has given up changing groups.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{NOBODY} {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{NOBODY} {group} 1"))
}

/// Put an empty read-only file system where the root was and let go of all others.
fn empty_root() -> Result<(), String> {
    const PRIVATE: libc::c_ulong = libc::MS_REC | libc::MS_PRIVATE;
    const LOCKED: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let step = |name: &'static str| move |error: std::io::Error| format!("{name}: {error}");
    mount(c"none", c"/", None, PRIVATE).map_err(step("private"))?;
    // The uid map has been written, so this folder has served; every system has it.
    mount(c"none", c"/proc", Some(c"tmpfs"), LOCKED).map_err(step("tmpfs"))?;
    rustix::process::chdir("/proc").map_err(|error| format!("chdir: {error}"))?;
    // SAFETY: both are valid strings; the old root lands on top of the new one and is let go of next (pivot_root(2)).
    check(unsafe {
        libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as libc::c_int
    })
    .map_err(step("pivot_root"))?;
    // SAFETY: a valid string.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).map_err(step("umount"))?;
    rustix::process::chdir("/").map_err(|error| format!("chdir: {error}"))?;
    mount(
        c"none",
        c"/",
        None,
        libc::MS_REMOUNT | libc::MS_RDONLY | LOCKED,
    )
    .map_err(step("read-only"))
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
) -> Result<(), std::io::Error> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: valid strings, or null where the kernel takes null.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind,
            flags,
            std::ptr::null(),
        )
    })
}

pub(super) fn check(result: libc::c_int) -> Result<(), std::io::Error> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
