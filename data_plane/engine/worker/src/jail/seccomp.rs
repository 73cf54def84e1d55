//! Which system calls a worker may make. Everything else ends the process: a worker that asks for what it never needs
//! is no longer ours. Filters only add up, so the second stage takes away and never gives.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::{Layer, Mode};

/// Memory, threads that are there, clocks, randomness, signals to itself, and open descriptors.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// What guests' files need; paths are resolved by `openat2` beneath a directory that came with the run.
const FILES: &[c_long] = &[
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat2,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_timerfd_settime,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
];

/// Until the module is loaded: the rest of the jail, limits, the timer, the socket's type, the file of its image.
const LOADING: &[c_long] = &[
    libc::SYS_getsockopt,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_memfd_create,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_seccomp,
    libc::SYS_setitimer,
    libc::SYS_timerfd_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_setrlimit,
];

/// What the runtime asks for and lives without: it is told that this kernel does not have it. `clone3` hides its flags
/// from a filter, so libc has to fall back to `clone`; `openat` looks for the number of processors in cgroup files.
const ABSENT: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

const THREAD: libc::c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;
const FCNTL_COMMANDS: [libc::c_int; 4] = [
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETFD,
    libc::F_DUPFD_CLOEXEC,
];

/// How far a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before anything of the parent is read.
    Loading,
    /// The module is loaded, or about to be compiled.
    Locked,
}

/// All that the monitor does: wait, and end as its worker did.
const MONITOR: &[c_long] = &[
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Error = Box<dyn std::error::Error>;

/// Put the filters of `stage` on every thread of the process.
pub fn enter(mode: Mode, stage: Stage) -> Layer {
    match apply(mode, stage) {
        Ok(()) => Layer::active("seccomp", "allow-list, anything else ends the process"),
        Err(error) => Layer::missing("seccomp", error.to_string()),
    }
}

/// Put a filter on the monitor of `worker`, which has one thread and allocates nothing any more.
pub fn enter_monitor(worker: libc::pid_t) -> Result<(), Error> {
    let mut rules: Rules = MONITOR.iter().map(|call| (*call, Vec::new())).collect();
    let targets = [
        u64::from(worker.unsigned_abs()),
        u64::from(std::process::id()),
    ];
    let kills = targets
        .iter()
        .map(|target| rule(0, SeccompCmpOp::Eq, *target))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_kill, kills);
    install(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn apply(mode: Mode, stage: Stage) -> Result<(), Error> {
    let rules = rules(mode, stage)?;
    if stage == Stage::Loading {
        install(
            ABSENT.iter().map(|call| (*call, Vec::new())).collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?;
    }
    install(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn install(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<(), Error> {
    let filter = SeccompFilter::new(rules, otherwise, matching, architecture()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(apply_filter_all_threads(&program)?)
}

fn architecture() -> Result<TargetArch, Error> {
    Ok(TargetArch::try_from(std::env::consts::ARCH)?)
}

/// Every call that is allowed; no rule means with any argument.
fn rules(mode: Mode, stage: Stage) -> Result<Rules, Error> {
    let loading = stage == Stage::Loading;
    // Threads: the guest's, made before its module is loaded, and the compiler's.
    let threads = loading || mode == Mode::Compile;
    // Compiling ends with the engine making its code executable; nothing in that process ever jumps there.
    let executable = threads;
    let mut calls: Vec<c_long> = [COMMON, ABSENT].concat();
    if mode == Mode::Run {
        calls.extend(FILES);
    }
    if loading {
        calls.extend(LOADING);
    }
    let mut rules: Rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let bits = |mask: libc::c_int| SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let without = vec![rule(2, bits(libc::PROT_EXEC), 0)?];
        rules.insert(call, if executable { Vec::new() } else { without });
    }
    if threads {
        let wanted = u64::from(THREAD.unsigned_abs());
        rules.insert(
            libc::SYS_clone,
            vec![rule(0, bits(THREAD | NAMESPACES), wanted)?],
        );
        rules.insert(
            libc::SYS_prctl,
            vec![rule(
                0,
                SeccompCmpOp::Eq,
                u64::from(libc::PR_SET_NAME.unsigned_abs()),
            )?],
        );
    }
    if loading {
        rules.insert(libc::SYS_prctl, Vec::new());
    }
    // To itself only: that is how a panic and the engine's interrupt reach a thread.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, own)?]);
    let commands = FCNTL_COMMANDS
        .iter()
        .chain(loading.then_some(&libc::F_ADD_SEALS))
        .map(|command| rule(1, SeccompCmpOp::Eq, u64::from(command.unsigned_abs())))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_fcntl, commands);
    Ok(rules)
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    let width = SeccompCmpArgLen::Dword;
    Ok(SeccompRule::new(vec![SeccompCondition::new(
        argument, width, operator, value,
    )?])?)
}
