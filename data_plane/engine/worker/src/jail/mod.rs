//! What a process gives up before it holds a byte of anybody, in two stages: `enter` and `restrict` before the module
//! is loaded, `lock` after it. Each layer says whether it holds here; the node decides whether it must.

mod capabilities;
mod landlock;
mod monitor;
mod namespaces;
mod resources;
mod seccomp;
mod user;

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::Serialize;

use crate::watchdog::{end, exit};

pub use resources::{limit_compilation, limit_process, no_more_processes};
pub use user::User;

/// What the process is for; each has its own list of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Run,
    Compile,
}

/// One wall of the jail, and why it is missing where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    pub name: &'static str,
    pub active: bool,
    pub detail: String,
}

impl Layer {
    fn active(name: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            name,
            active: true,
            detail,
        }
    }

    fn missing(name: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            name,
            active: false,
            detail,
        }
    }
}

/// A directory that runs may see.
#[derive(Debug)]
pub struct Root {
    pub directory: OwnedFd,
    pub writable: bool,
}

/// The jail of this process, as far as it has been entered.
#[derive(Debug)]
pub struct Jail {
    mode: Mode,
    demanded: Vec<String>,
    layers: Vec<Layer>,
}

/// Give up what no mode needs, first thing in `main`, while there is one thread. What comes back is another process:
/// the first of its pid namespace.
///
/// # Errors
/// Says which step the kernel refused of those that hold everywhere; nothing may run then.
pub fn enter(mode: Mode, user: User, demanded: Vec<String>) -> Result<Jail, String> {
    // SAFETY: there is one thread, so nobody reads the environment meanwhile.
    unsafe { libc::clearenv() };
    // Finds the kernel's clock page, and remembers it; later there is no /proc and no call to ask for it.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    close_from(3).map_err(|error| format!("close descriptors: {error}"))?;
    let limits = resources::enter();
    let (namespaces, outside) = namespaces::enter(user);
    monitor::fork()?;
    name_signals();
    let capabilities = capabilities::drop_all(outside);
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("not dumpable: {error}"))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| format!("no_new_privs: {error}"))?;
    let privileges = Layer::active("no_new_privs", "no program gives more rights than these");
    let calls = seccomp::enter(mode, seccomp::Stage::Loading);
    Ok(Jail {
        mode,
        demanded,
        layers: vec![calls, namespaces, limits, privileges, capabilities],
    })
}

impl Jail {
    /// Let no file be opened but beneath `roots`. Call it before the process has a second thread.
    pub fn restrict(&mut self, roots: &[Root]) {
        self.layers.push(landlock::restrict(roots));
        // Memory and processes are bounded by rlimits and by the engine's budget alone.
        let detail = "this version puts no worker into a cgroup";
        self.layers.push(Layer::missing("cgroup", detail));
    }

    /// Close what loading needed: no executable memory, no thread, no further limit or filter from now on; compiling
    /// keeps the first two. Then look whether every demanded layer holds.
    ///
    /// # Errors
    /// Names the demanded layers that do not, and why; nothing may run then.
    pub fn lock(&mut self) -> Result<(), String> {
        if self.layers[0].active {
            self.layers[0] = seccomp::enter(self.mode, seccomp::Stage::Locked);
        }
        let missing: Vec<String> = self
            .demanded
            .iter()
            .filter_map(|name| self.why_missing(name))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "demanded and not possible here: {}",
                missing.join("; ")
            ))
        }
    }

    /// The layers so far.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn why_missing(&self, name: &str) -> Option<String> {
        match self.layers.iter().find(|layer| layer.name == name) {
            None => Some(format!("{name} (no layer of this worker)")),
            Some(layer) if !layer.active => Some(format!("{name} ({})", layer.detail)),
            Some(_) => None,
        }
    }
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

/// The first process of a pid namespace survives every signal that it has no handler for, the kernel's own included
/// (except SIGKILL, and faults): so these end it by handlers, with codes that name them.
fn name_signals() {
    for signal in [libc::SIGABRT, libc::SIGALRM, libc::SIGXCPU] {
        // SAFETY: the handler only ends the process.
        unsafe { libc::signal(signal, named as *const () as libc::sighandler_t) };
    }
}

extern "C" fn named(signal: libc::c_int) {
    end(match signal {
        libc::SIGALRM => exit::ALARM,
        libc::SIGXCPU => exit::CPU_LIMIT,
        _ => exit::ABORTED,
    })
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
