//! What one guest is given: its arguments, directories, limits, clock and randomness. Plain values; makes no system call.

use std::os::fd::OwnedFd;

use crate::abi::Errno;

/// Bytes of all arguments together, and of all environment entries together, zero bytes included.
pub const MAX_STRINGS_BYTES: u32 = 1 << 20;

/// Everything that influences a run besides the module and its input.
#[derive(Debug)]
pub struct Config {
    /// `argv`, without terminating zero bytes; an entry must not contain one.
    pub args: Vec<Vec<u8>>,
    /// `KEY=VALUE` entries, without terminating zero bytes; an entry must not contain one.
    pub env: Vec<Vec<u8>>,
    /// Directories the guest may use; the first becomes descriptor 3.
    pub preopens: Vec<Preopen>,
    pub limits: Limits,
    pub clock: ClockMode,
    pub random: RandomMode,
}

/// A directory handed to the guest, already open: the core never opens an absolute host path.
#[derive(Debug)]
pub struct Preopen {
    /// A directory, opened for reading or as `O_PATH`.
    pub fd: OwnedFd,
    /// The path under which the guest sees it, UTF-8 by type.
    pub guest_path: String,
    /// Whether anything beneath may be changed. If not, every write-like call beneath answers `EROFS`.
    pub writable: bool,
}

/// Bounds on what a guest may use. `u64::MAX` and `u32::MAX` mean none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors open at one time, standard streams and preopens included. Passing it is `EMFILE`, and remembered.
    pub max_open_files: u32,
    /// Bytes written to standard output in total. Passing it stops the guest.
    pub max_stdout_bytes: u64,
    /// Bytes written to standard error in total. Passing it stops the guest.
    pub max_stderr_bytes: u64,
    /// Random bytes handed out in total. Passing it stops the guest.
    pub max_random_bytes: u64,
    /// Lines ended on standard error. Passing it stops the guest before the end of the line that is too many.
    pub max_log_lines: u64,
    /// Bytes by which files may grow in total, holes included; nothing is ever given back. Passing it stops the guest.
    pub max_scratch_bytes: u64,
    /// Names made in directories in total, nothing given back. Passing it stops the guest.
    pub max_scratch_inodes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_open_files: 64,
            max_stdout_bytes: u64::MAX,
            max_stderr_bytes: u64::MAX,
            max_random_bytes: u64::MAX,
            max_log_lines: u64::MAX,
            max_scratch_bytes: u64::MAX,
            max_scratch_inodes: u64::MAX,
        }
    }
}

/// The time the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockMode {
    /// The clocks of the machine.
    Real,
    /// Not the machine's, and then nothing else of the machine is shown either: directories are sorted, files have inodes
    /// and times of this run alone, standard input fills what it is read into. Realtime starts at `start_ns` since 1970, monotonic at [`crate::MONOTONIC_START_NS`], CPU time at 0; each reading
    /// moves all of them on by `tick_ns` first,
    /// and a sleep moves them on by its length at once instead of waiting.
    Deterministic { start_ns: u64, tick_ns: u64 },
}

/// The randomness the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomMode {
    /// The kernel's generator.
    Os,
    /// A ChaCha20 key stream under this key: the same seed gives the same bytes, whatever the sizes of the reads.
    Seeded([u8; 32]),
}

/// Why a configuration was refused before the guest began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// An argument or environment entry contains a zero byte.
    NulByte,
    /// Arguments or environment are larger than [`MAX_STRINGS_BYTES`].
    TooLarge,
    /// A preopen is not a directory, or could not be opened for reading.
    Preopen { index: usize, errno: Errno },
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NulByte => out.write_str("an argument or environment entry contains a zero byte"),
            Self::TooLarge => out.write_str("arguments or environment are larger than 1 MiB"),
            Self::Preopen { index, errno } => write!(
                out,
                "preopen {index} is not a directory that can be read: {errno:?}"
            ),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Where the guest's standard streams go. Supplied by whoever runs the guest.
pub trait Stdio {
    /// Read at most `buf.len()` bytes; may block; 0 is the end.
    ///
    /// # Errors
    /// What the guest is told when its input cannot be read.
    fn read_stdin(&mut self, buf: &mut [u8]) -> Result<usize, Errno>;

    /// Take at least one of these bytes and say how many; called with an empty slice never.
    ///
    /// # Errors
    /// What the guest is told when its output has nowhere to go.
    fn write_stdout(&mut self, data: &[u8]) -> Result<usize, Errno>;

    /// As `write_stdout`, for standard error.
    ///
    /// # Errors
    /// As `write_stdout`.
    fn write_stderr(&mut self, data: &[u8]) -> Result<usize, Errno>;
}

/// A limit of [`Limits`], by the name that outcomes and receipts use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitName {
    OutputBytes,
    LogBytes,
    OpenFiles,
    RandomBytes,
    LogLines,
    ScratchBytes,
    ScratchInodes,
}

impl LimitName {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutputBytes => "output_bytes",
            Self::LogBytes => "log_bytes",
            Self::OpenFiles => "open_files",
            Self::RandomBytes => "random_bytes",
            Self::LogLines => "log_lines",
            Self::ScratchBytes => "scratch_bytes",
            Self::ScratchInodes => "scratch_inodes",
        }
    }
}

/// Why a call did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The guest gets this number and goes on.
    Errno(Errno),
    /// The guest asked to end with this code: unwind it.
    Exit(u32),
    /// The guest passed this limit: stop it now.
    Limit(LimitName),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(host: rustix::io::Errno) -> Self {
        Self::Errno(host.into())
    }
}

/// What the guest has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub stdin_bytes: u64,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    pub random_bytes: u64,
    pub log_lines: u64,
    pub scratch_bytes: u64,
    pub scratch_inodes: u64,
    pub peak_open_files: u32,
    /// What calls did beyond being called, in bytes moved or work like it: what a guest that is metered pays for.
    /// The same for the same run under a deterministic clock.
    pub work: u64,
}
