//! What a worker that was taken over tries, and what the kernel has to say.

use agentfactory_worker::watchdog::end;

use crate::{OTHER, OUTSIDE, SCRATCH};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel ended the process.
    Killed,
    Errno(i32),
    Done,
}

use Answer::{Done, Errno, Killed};

/// Name, what it does, what the kernel says to a worker that runs guests.
pub type Attempt = (&'static str, fn() -> i64, Answer);

macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the kernel refuses; where it would not, the arguments are valid or null.
        || unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

const NONE: *const libc::c_void = std::ptr::null();
const EXECUTABLE: libc::c_int = libc::PROT_READ | libc::PROT_EXEC;
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const THREAD: libc::c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

pub const ATTEMPTS: &[Attempt] = &[
    (
        "socket tcp",
        call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
        Killed,
    ),
    (
        "socket unix",
        call!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0),
        Killed,
    ),
    (
        "socket netlink",
        call!(SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0),
        Killed,
    ),
    (
        "socketpair",
        call!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, NONE),
        Killed,
    ),
    ("connect", call!(SYS_connect, 0, NONE, 0), Killed),
    ("bind", call!(SYS_bind, 0, NONE, 0), Killed),
    ("accept4", call!(SYS_accept4, 0, NONE, NONE, 0), Killed),
    ("fork", call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0), Killed),
    (
        "clone in new namespaces",
        call!(SYS_clone, THREAD | libc::CLONE_NEWUSER, 0, 0, 0, 0),
        Killed,
    ),
    ("clone3", call!(SYS_clone3, NONE, 0), Errno(libc::ENOSYS)),
    ("thread", call!(SYS_clone, THREAD, 0, 0, 0, 0), Killed),
    (
        "execve",
        call!(SYS_execve, c"/bin/sh".as_ptr(), NONE, NONE),
        Killed,
    ),
    (
        "execveat",
        call!(SYS_execveat, SCRATCH, c"sh".as_ptr(), NONE, NONE, 0),
        Killed,
    ),
    (
        "mmap executable",
        call!(SYS_mmap, NONE, 4096, EXECUTABLE, ANONYMOUS, -1, 0),
        Killed,
    ),
    ("mprotect executable", mprotect_executable, Killed),
    (
        "pkey_mprotect",
        call!(SYS_pkey_mprotect, NONE, 4096, EXECUTABLE, -1),
        Killed,
    ),
    (
        "memfd_create",
        call!(SYS_memfd_create, c"x".as_ptr(), 0),
        Killed,
    ),
    ("memfd_secret", call!(SYS_memfd_secret, 0), Killed),
    ("io_uring_setup", call!(SYS_io_uring_setup, 1, NONE), Killed),
    ("userfaultfd", call!(SYS_userfaultfd, 0), Killed),
    (
        "ptrace the parent",
        call!(SYS_ptrace, libc::PTRACE_ATTACH, libc::getppid(), 0, 0),
        Killed,
    ),
    (
        "process_vm_readv",
        call!(SYS_process_vm_readv, 1, NONE, 0, NONE, 0, 0),
        Killed,
    ),
    ("pidfd_open", call!(SYS_pidfd_open, 1, 0), Killed),
    (
        "kill the parent",
        call!(SYS_kill, libc::getppid(), libc::SIGKILL),
        Killed,
    ),
    ("kill everybody", call!(SYS_kill, -1, libc::SIGKILL), Killed),
    (
        "tgkill another",
        call!(SYS_tgkill, 2, 2, libc::SIGKILL),
        Killed,
    ),
    ("tkill", call!(SYS_tkill, 1, libc::SIGKILL), Killed),
    ("unshare", call!(SYS_unshare, libc::CLONE_NEWUSER), Killed),
    ("setns", call!(SYS_setns, 0, 0), Killed),
    ("mount", call!(SYS_mount, NONE, NONE, NONE, 0, NONE), Killed),
    (
        "open_tree",
        call!(SYS_open_tree, SCRATCH, c"".as_ptr(), 0),
        Killed,
    ),
    ("umount", call!(SYS_umount2, c"/".as_ptr(), 0), Killed),
    ("chroot", call!(SYS_chroot, c"/".as_ptr()), Killed),
    ("chdir", call!(SYS_fchdir, OUTSIDE), Killed),
    (
        "chmod",
        call!(SYS_fchmodat, SCRATCH, c"x".as_ptr(), 0o4777),
        Killed,
    ),
    (
        "chown",
        call!(SYS_fchownat, SCRATCH, c"x".as_ptr(), 0, 0, 0),
        Killed,
    ),
    (
        "mknod",
        call!(SYS_mknodat, SCRATCH, c"x".as_ptr(), libc::S_IFCHR, 0),
        Killed,
    ),
    (
        "open_by_handle_at",
        call!(SYS_open_by_handle_at, OUTSIDE, NONE, 0),
        Killed,
    ),
    ("bpf", call!(SYS_bpf, 0, NONE, 0), Killed),
    (
        "perf_event_open",
        call!(SYS_perf_event_open, NONE, 0, -1, -1, 0),
        Killed,
    ),
    (
        "add_key",
        call!(SYS_add_key, NONE, NONE, NONE, 0, 0),
        Killed,
    ),
    ("keyctl", call!(SYS_keyctl, 0, 0, 0, 0, 0), Killed),
    ("personality", call!(SYS_personality, 0), Killed),
    (
        "prctl",
        call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
        Killed,
    ),
    ("another filter", call!(SYS_seccomp, 1, 0, NONE), Killed),
    ("prlimit", call!(SYS_prlimit64, 0, 0, NONE, NONE), Killed),
    ("setuid", call!(SYS_setuid, 0), Killed),
    ("capset", call!(SYS_capset, NONE, NONE), Killed),
    ("ioctl", call!(SYS_ioctl, 0, libc::TIOCSTI, NONE), Killed),
    (
        "fcntl owner",
        call!(SYS_fcntl, 0, libc::F_SETOWN, 1),
        Killed,
    ),
    (
        "fcntl seals",
        call!(SYS_fcntl, 0, libc::F_ADD_SEALS, libc::F_SEAL_WRITE),
        Killed,
    ),
    ("shared memory", call!(SYS_shmget, 1, 4096, 0o666), Killed),
    ("message queue", call!(SYS_msgget, 1, 0o666), Killed),
    ("inotify", call!(SYS_inotify_init1, 0), Killed),
    ("splice", call!(SYS_splice, 0, NONE, 1, NONE, 1, 0), Killed),
    (
        "sethostname",
        call!(SYS_sethostname, c"x".as_ptr(), 1),
        Killed,
    ),
    ("setitimer", call!(SYS_setitimer, 0, NONE, NONE), Killed),
    ("reboot", call!(SYS_reboot, 0, 0, 0, 0), Killed),
    (
        "a number beyond all",
        || unsafe { libc::syscall(100_000) },
        Killed,
    ),
    #[cfg(target_arch = "x86_64")]
    (
        "a number of x32",
        || unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) },
        Killed,
    ),
    #[cfg(target_arch = "x86_64")]
    ("a call of 32 bits", call_of_32_bits, Killed),
    (
        "openat",
        call!(SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), 0),
        Errno(libc::ENOSYS),
    ),
    (
        "a path of the host",
        || open(libc::AT_FDCWD, "/etc/passwd", libc::O_RDONLY),
        Errno(libc::ENOENT),
    ),
    (
        "/proc",
        || open(libc::AT_FDCWD, "/proc/self/mem", libc::O_RDWR),
        Errno(libc::ENOENT),
    ),
    (
        "write to its root",
        || open(libc::AT_FDCWD, "/x", libc::O_CREAT | libc::O_RDWR),
        Errno(libc::EROFS),
    ),
    (
        "the first of its pid namespace",
        first_of_its_namespace,
        Done,
    ),
    (
        "write in its directory",
        || open(SCRATCH, "new", libc::O_CREAT | libc::O_RDWR),
        Done,
    ),
];

/// Only landlock stands between a directory's descriptor and what is beneath it.
pub const LANDLOCK: &[Attempt] = &[
    (
        "read outside",
        || open(OUTSIDE, "secret", libc::O_RDONLY),
        Errno(libc::EACCES),
    ),
    (
        "write outside",
        || open(OUTSIDE, "new", libc::O_CREAT | libc::O_RDWR),
        Errno(libc::EACCES),
    ),
    (
        "leave its directory",
        || open(SCRATCH, "../outside/secret", libc::O_RDONLY),
        Errno(libc::EACCES),
    ),
    (
        "follow a link out",
        || open(SCRATCH, "link", libc::O_RDONLY),
        Errno(libc::EACCES),
    ),
    ("make a link out", link_out, Errno(libc::EXDEV)),
];

/// What a compile worker can do more, and what less.
pub const COMPILING: &[Attempt] = &[
    (
        "compile: mmap executable",
        call!(SYS_mmap, NONE, 4096, EXECUTABLE, ANONYMOUS, -1, 0),
        Done,
    ),
    (
        "compile: fork",
        call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0),
        Killed,
    ),
    (
        "compile: socket",
        call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
        Killed,
    ),
    (
        "compile: execve",
        call!(SYS_execve, c"/bin/sh".as_ptr(), NONE, NONE),
        Killed,
    ),
    (
        "compile: open",
        || open(SCRATCH, "new", libc::O_CREAT | libc::O_RDWR),
        Killed,
    ),
    (
        "compile: unlink",
        call!(SYS_unlinkat, SCRATCH, c"new".as_ptr(), 0),
        Killed,
    ),
    (
        "compile: ptrace",
        call!(SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0),
        Killed,
    ),
    (
        "compile: limits",
        call!(SYS_prlimit64, 0, 0, NONE, NONE),
        Killed,
    ),
    (
        "compile: timer off",
        call!(SYS_setitimer, 0, NONE, NONE),
        Killed,
    ),
];

fn mprotect_executable() -> i64 {
    // SAFETY: a fresh mapping, and a change of its protection.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_WRITE,
            ANONYMOUS,
            -1,
            0,
        );
        i64::from(libc::mprotect(page, 4096, EXECUTABLE))
    }
}

fn first_of_its_namespace() -> i64 {
    match std::process::id() {
        1 => 0,
        _ => end(OTHER),
    }
}

#[cfg(target_arch = "x86_64")]
fn call_of_32_bits() -> i64 {
    let mut result: i64 = 20; // getpid, in the numbers of 32 bits
    // SAFETY: getpid takes nothing and writes nothing.
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") result) };
    result
}

fn open(directory: i32, path: &str, flags: libc::c_int) -> i64 {
    let path = std::ffi::CString::new(path).expect("no zero in it");
    let how = [
        u64::from(flags.unsigned_abs()),
        if flags & libc::O_CREAT != 0 { 0o600 } else { 0 },
        0,
    ];
    // SAFETY: a valid string and a valid `struct open_how`.
    unsafe {
        libc::syscall(
            libc::SYS_openat2,
            directory,
            path.as_ptr(),
            how.as_ptr(),
            size_of_val(&how),
        )
    }
}

fn link_out() -> i64 {
    // SAFETY: valid strings.
    unsafe {
        libc::syscall(
            libc::SYS_linkat,
            OUTSIDE,
            c"secret".as_ptr(),
            SCRATCH,
            c"mine".as_ptr(),
            0,
        )
    }
}

pub fn all() -> impl Iterator<Item = &'static Attempt> {
    ATTEMPTS.iter().chain(LANDLOCK).chain(COMPILING)
}
