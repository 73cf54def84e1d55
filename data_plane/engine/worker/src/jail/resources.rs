//! Resource limits of a process: behind the limits of each run, and bounds of a compilation.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Layer;
use crate::messages::ProcessLimits;

/// Descriptors of the process itself (socket twice, timer, standard streams) and of the largest guest.
const MAX_DESCRIPTORS: u64 = 1024 + 64;

/// Limits that hold from the start.
pub fn enter() -> Layer {
    let limited = limit(Resource::Core, 0).and_then(|()| limit(Resource::Nofile, MAX_DESCRIPTORS));
    // A guest that writes past the file size limit is told so (EFBIG); the signal would end the worker instead.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    match limited {
        Ok(()) => Layer::active("rlimits", "core, nofile, nproc, data, fsize, cpu"),
        Err(error) => Layer::missing("rlimits", error.to_string()),
    }
}

/// Set the bounds of the process' life; they stand behind the limits of each run.
pub fn limit_process(limits: &ProcessLimits) {
    // A bound that the kernel refuses to lower was lower already; the limits of each run are enforced either way.
    let _ = limit(Resource::Data, limits.data_bytes);
    let _ = limit(Resource::Fsize, limits.file_bytes);
    let _ = limit_cpu(limits.cpu_seconds);
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
    limit_cpu(cpu_seconds.max(1)).map_err(step("rlimit cpu"))?;
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

/// The soft bound ends the process by SIGXCPU, which tells the parent why. At the hard one the kernel sends SIGKILL, which
/// tells nothing, and it looks there first: so it stands a second behind.
fn limit_cpu(seconds: u64) -> rustix::io::Result<()> {
    let hard = getrlimit(Resource::Cpu)
        .maximum
        .map_or(seconds.saturating_add(1), |hard| {
            hard.min(seconds.saturating_add(1))
        });
    setrlimit(
        Resource::Cpu,
        Rlimit {
            current: Some(hard.min(seconds)),
            maximum: Some(hard),
        },
    )
}
