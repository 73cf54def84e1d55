//! Not root: no capability is left, in the worker's own namespace or outside.

use super::Layer;

// linux/capability.h; libc does not have them.
const VERSION_3: u32 = 0x2008_0522;
const LAST_POSSIBLE: libc::c_ulong = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Effective, permitted and inheritable, twice 32 bits each.
type Sets = [[u32; 3]; 2];

/// Drop every capability, the bounding set included; `outside` is the user that the kernel outside takes this process for.
pub fn drop_all(outside: u32) -> Layer {
    for capability in 0..=LAST_POSSIBLE {
        // SAFETY: takes numbers only; it fails for those that this kernel does not know or that are gone.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let none: Sets = [[0; 3]; 2];
    // SAFETY: both places are valid for the call, and of the layout of version 3.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) };
    if result != 0 {
        return Layer::missing("not_root", std::io::Error::last_os_error().to_string());
    }
    if outside == 0 {
        Layer::missing("not_root", "no capability, but user 0 outside")
    } else {
        Layer::active("not_root", format!("user {outside} outside, no capability"))
    }
}
