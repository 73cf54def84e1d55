//! What the process gives up. This is the minimal jail: no new privileges, no dump, no life without its parent, closed
//! descriptors, an empty environment and resource limits. Namespaces, landlock and seccomp will live here too.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};

use crate::messages::ProcessLimits;

/// Descriptors of the process itself (socket twice, timer, standard streams) and of the largest guest.
const MAX_DESCRIPTORS: u64 = 1024 + 64;

/// Give up what no mode needs, first thing in `main`, while there is one thread.
///
/// # Errors
/// Says which step the kernel refused; nothing may run then.
pub fn enter() -> Result<(), String> {
    // SAFETY: there is one thread, so nobody reads the environment meanwhile.
    unsafe { libc::clearenv() };
    let step = |name: &'static str| move |error| format!("{name}: {error}");
    rustix::thread::set_no_new_privs(true).map_err(step("no_new_privs"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("not dumpable"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("parent death signal"))?;
    close_from(3).map_err(step("close descriptors"))?;
    // A guest that writes past the file size limit is told so (EFBIG); the signal would end the worker instead.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    limit(Resource::Core, 0).map_err(step("rlimit core"))?;
    limit(Resource::Nofile, MAX_DESCRIPTORS).map_err(step("rlimit nofile"))?;
    Ok(())
}

/// Set the bounds of the process' life; they stand behind the limits of each run.
pub fn limit_process(limits: &ProcessLimits) {
    // A bound that the kernel refuses to lower was lower already; the limits of each run are enforced either way.
    let _ = limit(Resource::Data, limits.data_bytes);
    let _ = limit(Resource::Fsize, limits.file_bytes);
    let _ = limit(Resource::Cpu, limits.cpu_seconds);
}

/// Bounds of a compilation: address space, CPU seconds, wall time, size of what it writes. Passing one ends the process.
///
/// # Errors
/// Says which the kernel refused.
pub fn limit_compilation(
    memory_bytes: u64,
    cpu_seconds: u64,
    wall_ms: u64,
    file_bytes: u64,
) -> Result<(), String> {
    let step = |name: &'static str| move |error| format!("{name}: {error}");
    limit(Resource::As, memory_bytes).map_err(step("rlimit address space"))?;
    limit(Resource::Cpu, cpu_seconds.max(1)).map_err(step("rlimit cpu"))?;
    limit(Resource::Fsize, file_bytes).map_err(step("rlimit file size"))?;
    let time = libc::timeval {
        tv_sec: libc::time_t::try_from(wall_ms / 1000)
            .map_err(|_| "wall_ms is too large".to_owned())?,
        tv_usec: libc::suseconds_t::try_from(wall_ms % 1000 * 1000).expect("under a second"),
    };
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: time,
    };
    // SAFETY: both pointers are valid for the call; SIGALRM keeps its default action, which ends the process.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(format!("timer: {}", std::io::Error::last_os_error())),
    }
}

/// No further thread or process. Without effect for root, whose processes the kernel does not count.
pub fn no_more_processes() {
    let _ = limit(Resource::Nproc, 0);
}

/// Take descriptor 0, the socket to the parent.
///
/// # Errors
/// Descriptor 0 is not a connected stream socket.
pub fn take_socket() -> Result<OwnedFd, String> {
    // SAFETY: descriptor 0 is open (checked next) and nothing else in this process uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    match rustix::net::sockopt::socket_type(&socket) {
        Ok(rustix::net::SocketType::STREAM) => Ok(socket),
        _ => {
            std::mem::forget(socket);
            Err("descriptor 0 is not a stream socket: this program is started by a node, not by hand".to_owned())
        }
    }
}

fn limit(resource: Resource, value: u64) -> rustix::io::Result<()> {
    let hard = getrlimit(resource)
        .maximum
        .map_or(value, |hard| hard.min(value));
    setrlimit(
        resource,
        Rlimit {
            current: Some(hard),
            maximum: Some(hard),
        },
    )
}

fn close_from(first: u32) -> rustix::io::Result<()> {
    // SAFETY: one thread, and nothing above the standard streams has been opened by this program yet.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(
            rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::IO),
        ),
    }
}
