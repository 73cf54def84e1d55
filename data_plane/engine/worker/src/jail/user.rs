//! Who the process is outside its namespace: a worker that a root node starts becomes nobody.

use std::ffi::c_int;

use super::namespaces::check;

/// Nobody, by the number that every Linux gives them, outside and inside.
pub(super) const NOBODY: u32 = 65534;
const ROOT: u32 = 0;
const KEEP: u32 = u32::MAX;

/// Whose rights a worker has outside its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Nobody's, if whoever starts it is root.
    Nobody,
    /// Those of whoever starts it: for guests that are given directories of that user.
    Own,
}

/// Become nobody where the process is root, with a way back until [`settle`]: where nobody may make no user namespace,
/// the other walls are worth more than this one.
///
/// # Errors
/// The kernel refuses; nothing has changed but the groups.
pub(super) fn become_nobody() -> Result<(), std::io::Error> {
    // SAFETY: no groups, so no list; then numbers only. One thread.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        check(libc::setresuid(NOBODY, NOBODY, ROOT))?;
    }
    may_describe_itself()
}

/// Go back to root.
pub(super) fn return_to_root() -> Result<(), std::io::Error> {
    // SAFETY: numbers only; root is still the saved user.
    check(unsafe { libc::setresuid(ROOT, ROOT, ROOT) })?;
    may_describe_itself()
}

/// Give up the way back. Inside a user namespace that has mapped nobody.
pub(super) fn settle() -> Result<(), std::io::Error> {
    // SAFETY: numbers only.
    check(unsafe { libc::setresuid(KEEP, KEEP, NOBODY) })
}

/// A change of user makes a process not dumpable, and what is not dumpable may not write its own user map. The jail takes
/// this back when it has been entered.
fn may_describe_itself() -> Result<(), std::io::Error> {
    const DUMPABLE: c_int = 1;
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, DUMPABLE, 0, 0, 0) })
}
