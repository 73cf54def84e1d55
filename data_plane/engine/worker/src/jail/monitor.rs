//! The process in front of a worker: a pid namespace begins with a fork, so somebody outside has to wait for the
//! worker and end as it ended. It reads nothing, holds no descriptor and no byte of any guest, and may do no more than that.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::seccomp;
use crate::watchdog::end;

/// Fork; return in the child, which is the worker. The parent stays behind as the monitor and ends as the child does:
/// with its code, or by its signal. SIGTERM to the monitor kills the worker; death of the monitor kills it too, and the
/// monitor dies with the node.
///
/// # Errors
/// The kernel gives no pipe or no process.
pub fn fork() -> Result<(), String> {
    die_with_parent()?;
    let (reading, writing) = rustix::pipe::pipe().map_err(|error| format!("pipe: {error}"))?;
    let waited = signals();
    // SAFETY: a valid set; blocked before the fork, so that no signal is lost between fork and wait.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const waited, std::ptr::null_mut()) };
    // SAFETY: there is one thread, so the child may go on as any process does.
    match unsafe { libc::fork() } {
        -1 => Err(format!("fork: {}", std::io::Error::last_os_error())),
        0 => {
            drop(writing);
            // SAFETY: the same valid set.
            unsafe {
                libc::sigprocmask(libc::SIG_UNBLOCK, &raw const waited, std::ptr::null_mut())
            };
            tie_to_parent(&reading)
        }
        child => {
            // The pipe's other end stays open for as long as the monitor lives: its end is how the child learns of it.
            std::mem::forget(writing);
            drop(reading);
            for descriptor in 0..3 {
                // SAFETY: the monitor uses none of them; the node has to see the socket close with the worker.
                unsafe { libc::close(descriptor) };
            }
            // Where it is not possible the worker's own filters are not either, and the worker says so.
            let _ = rustix::thread::set_no_new_privs(true);
            let _ = seccomp::enter_monitor(child);
            wait(child, &waited)
        }
    }
}

/// Die with the monitor. It may have died before the kernel was told, and in a pid namespace its pid shows as 0 either
/// way: so the pipe tells.
fn tie_to_parent(reading: &OwnedFd) -> Result<(), String> {
    die_with_parent()?;
    let mut parent = [PollFd::new(reading, PollFlags::IN)];
    match poll(&mut parent, Some(&Timespec::default())) {
        Ok(0) => Ok(()),
        Ok(_) => end(0),
        Err(error) => Err(format!("poll: {error}")),
    }
}

fn die_with_parent() -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| format!("parent death signal: {error}"))
}

fn signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialized by the first call.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        set.assume_init()
    }
}

fn wait(child: libc::pid_t, waited: &libc::sigset_t) -> ! {
    loop {
        let mut status = 0;
        // SAFETY: the child is ours and `status` is a valid place to write to.
        if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
            mirror(status);
        }
        // SAFETY: a valid set; both signals are blocked.
        if unsafe { libc::sigwaitinfo(waited, std::ptr::null_mut()) } == libc::SIGTERM {
            // SAFETY: the child has not been reaped, so the pid is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
    }
}

fn mirror(status: libc::c_int) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        // SAFETY: this process is not the first of its pid namespace, so the default action ends it; cores are off.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let mut set = std::mem::MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
        // A signal that ends nobody cannot have ended the child; the code only keeps the type honest.
        end(128 + signal);
    }
    end(libc::WEXITSTATUS(status))
}
