//! WASI snapshot preview 1 over `openat2`, free of any WebAssembly engine.
//!
//! Owns what a guest may reach: its standard streams, clock, randomness and the directories handed to it. Never opens an
//! absolute host path, a socket or a process, and never holds guest memory beyond one call.
//!
//! An engine makes its imports from [`for_each_call!`]: each row is a method of [`Wasi`]. The README says what each call
//! answers, and what is refused on purpose.

#![forbid(unsafe_code)]
// A size of guest memory is 32 bits wide; the casts between it and the host's usize lose nothing on these.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("the WASI core needs a 64-bit Linux host");

pub mod abi;
mod calls;
mod clock;
mod config;
mod descriptors;
mod directories;
mod identity;
mod memory;
mod open;
mod paths;
mod poll;
mod process;
mod random;
mod refused;
mod resolve;
mod scratch;
mod streams;
mod table;
mod times;

pub use abi::Errno;
pub use calls::{CALLS, Call, MODULE, Status, ValType};
pub use clock::MONOTONIC_START_NS;
pub use config::{
    ClockMode, Config, ConfigError, Fault, LimitName, Limits, MAX_STRINGS_BYTES, Preopen,
    RandomMode, Stdio, Usage,
};
pub use memory::{MAX_IOVECS, MAX_PATH_BYTES};
pub use poll::MAX_SUBSCRIPTIONS;

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

use abi::rights;
use clock::Clock;
use identity::Files;
use random::Random;
use table::{Entry, Resource, Table};

/// What it is worth of [`Usage::work`] to ask the kernel for one thing more within a call.
pub(crate) const ASKING: u64 = 500;
/// What a random byte is worth, and one of a name in a directory that is read.
pub(crate) const DEAR_BYTE: u64 = 8;

/// One guest's view of the world, for one run. Its methods are the calls of preview 1; see [`for_each_call!`].
///
/// Every method takes the guest's memory as it is at the time of the call, and never panics whatever is in it.
/// Errors: [`Fault::Errno`] is the guest's to handle; after [`Fault::Exit`] or [`Fault::Limit`] it must not run on.
#[derive(Debug)]
pub struct Wasi<S: Stdio> {
    stdio: S,
    args: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    limits: Limits,
    table: Table,
    clock: Clock,
    random: Random,
    usage: Usage,
    /// There under a deterministic clock only, where the host's own numbers are not to be seen.
    files: Option<Files>,
}

impl<S: Stdio> Wasi<S> {
    /// Takes a configuration; the guest begins with descriptors 0 to 2 and one for each preopen from 3 on.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(config: Config, stdio: S) -> Result<Self, ConfigError> {
        process::check_strings(&config.args)?;
        process::check_strings(&config.env)?;
        let mut table = Table::new(config.limits.max_open_files);
        for (index, preopen) in config.preopens.into_iter().enumerate() {
            let entry =
                preopened(preopen).map_err(|errno| ConfigError::Preopen { index, errno })?;
            table
                .insert(entry)
                .map_err(|errno| ConfigError::Preopen { index, errno })?;
        }
        let clock = Clock::new(config.clock);
        Ok(Self {
            stdio,
            args: config.args,
            env: config.env,
            limits: config.limits,
            table,
            files: clock.start_ns().map(Files::new),
            clock,
            random: Random::new(config.random),
            usage: Usage::default(),
        })
    }

    /// What was used until now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            peak_open_files: self.table.peak(),
            ..self.usage
        }
    }

    /// What calls did until now beyond being called; see [`Usage::work`]. The same for the same run of a deterministic clock.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.usage.work
    }

    /// The limit for which the guest got an errno, if any: it names an unsuccessful end.
    #[must_use]
    pub fn refused_limit(&self) -> Option<LimitName> {
        self.table.refused().then_some(LimitName::OpenFiles)
    }

    /// The standard streams, for instance to flush them.
    pub fn stdio_mut(&mut self) -> &mut S {
        &mut self.stdio
    }

    /// Closes everything and gives the standard streams back.
    #[must_use]
    pub fn into_stdio(self) -> S {
        self.stdio
    }
}

/// Opens the directory once more: for reading if it came as `O_PATH`, and with a position nobody else moves.
fn preopened(preopen: Preopen) -> Result<Entry, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let fd = resolve::open_beneath(preopen.fd.as_fd(), ".", flags, Mode::empty())?;
    let denied = if preopen.writable {
        0
    } else {
        rights::MUTATING
    };
    Ok(Entry {
        resource: Resource::Directory(fd),
        rights_base: rights::DIRECTORY & !denied,
        // Writing stays inheritable on purpose: a C library asks only for what it finds here, and would open for reading
        // what its program wants to write. Asking is what gets the honest answer, EROFS.
        rights_inheriting: rights::INHERITABLE,
        flags: 0,
        writable: preopen.writable,
        preopen: Some(preopen.guest_path),
        listing: None,
    })
}
