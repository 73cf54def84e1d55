//! The numbers and layouts of WASI snapshot preview 1. Owns no state and makes no system call.
//!
//! Source: the witx description of `wasi_snapshot_preview1`; the order of the variants is the wire format.

use rustix::io::Errno as HostErrno;

/// Error numbers as the guest sees them (`errno` of preview 1). Zero, success, is not one of them: it is `Ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Errno {
    TooBig = 1,
    Acces = 2,
    AddrInUse = 3,
    AddrNotAvail = 4,
    AfNoSupport = 5,
    Again = 6,
    Already = 7,
    Badf = 8,
    BadMsg = 9,
    Busy = 10,
    Canceled = 11,
    Child = 12,
    ConnAborted = 13,
    ConnRefused = 14,
    ConnReset = 15,
    Deadlk = 16,
    DestAddrReq = 17,
    Dom = 18,
    Dquot = 19,
    Exist = 20,
    Fault = 21,
    Fbig = 22,
    HostUnreach = 23,
    Idrm = 24,
    Ilseq = 25,
    InProgress = 26,
    Intr = 27,
    Inval = 28,
    Io = 29,
    IsConn = 30,
    Isdir = 31,
    Loop = 32,
    Mfile = 33,
    Mlink = 34,
    MsgSize = 35,
    Multihop = 36,
    NameTooLong = 37,
    NetDown = 38,
    NetReset = 39,
    NetUnreach = 40,
    Nfile = 41,
    NoBufs = 42,
    NoDev = 43,
    Noent = 44,
    NoExec = 45,
    NoLck = 46,
    NoLink = 47,
    NoMem = 48,
    NoMsg = 49,
    NoProtoOpt = 50,
    NoSpc = 51,
    Nosys = 52,
    NotConn = 53,
    NotDir = 54,
    NotEmpty = 55,
    NotRecoverable = 56,
    NotSock = 57,
    NotSup = 58,
    NotTty = 59,
    Nxio = 60,
    Overflow = 61,
    OwnerDead = 62,
    Perm = 63,
    Pipe = 64,
    Proto = 65,
    ProtoNoSupport = 66,
    Prototype = 67,
    Range = 68,
    Rofs = 69,
    Spipe = 70,
    Srch = 71,
    Stale = 72,
    TimedOut = 73,
    TxtBsy = 74,
    Xdev = 75,
    NotCapable = 76,
}

impl Errno {
    /// The number the guest gets.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}

impl From<HostErrno> for Errno {
    /// Linux numbers to preview 1 numbers. `EXDEV` is what `RESOLVE_BENEATH` answers for an escape, hence `NotCapable`;
    /// calls in which it means "another file system" (link, rename) map it themselves. What has no name here is `Io`.
    fn from(host: HostErrno) -> Self {
        match host {
            HostErrno::TOOBIG => Self::TooBig,
            HostErrno::ACCESS => Self::Acces,
            HostErrno::AGAIN => Self::Again,
            HostErrno::BADF => Self::Badf,
            HostErrno::BUSY => Self::Busy,
            HostErrno::DQUOT => Self::Dquot,
            HostErrno::EXIST => Self::Exist,
            HostErrno::FAULT => Self::Fault,
            HostErrno::FBIG => Self::Fbig,
            HostErrno::ILSEQ => Self::Ilseq,
            HostErrno::INTR => Self::Intr,
            HostErrno::INVAL => Self::Inval,
            HostErrno::ISDIR => Self::Isdir,
            HostErrno::LOOP => Self::Loop,
            HostErrno::MFILE => Self::Mfile,
            HostErrno::MLINK => Self::Mlink,
            HostErrno::NAMETOOLONG => Self::NameTooLong,
            HostErrno::NFILE => Self::Nfile,
            HostErrno::NODEV => Self::NoDev,
            HostErrno::NOENT => Self::Noent,
            HostErrno::NOMEM => Self::NoMem,
            HostErrno::NOSPC => Self::NoSpc,
            HostErrno::NOSYS => Self::Nosys,
            HostErrno::NOTDIR => Self::NotDir,
            HostErrno::NOTEMPTY => Self::NotEmpty,
            HostErrno::OPNOTSUPP => Self::NotSup,
            HostErrno::NXIO => Self::Nxio,
            HostErrno::OVERFLOW => Self::Overflow,
            HostErrno::PERM => Self::Perm,
            HostErrno::PIPE => Self::Pipe,
            HostErrno::ROFS => Self::Rofs,
            HostErrno::SPIPE => Self::Spipe,
            HostErrno::STALE => Self::Stale,
            HostErrno::TXTBSY => Self::TxtBsy,
            HostErrno::XDEV => Self::NotCapable,
            _ => Self::Io,
        }
    }
}

/// `rights` of preview 1: what may be done with a descriptor, and what descriptors opened through it may ask for.
pub mod rights {
    pub const FD_DATASYNC: u64 = 1 << 0;
    pub const FD_READ: u64 = 1 << 1;
    pub const FD_SEEK: u64 = 1 << 2;
    pub const FD_FDSTAT_SET_FLAGS: u64 = 1 << 3;
    pub const FD_SYNC: u64 = 1 << 4;
    pub const FD_TELL: u64 = 1 << 5;
    pub const FD_WRITE: u64 = 1 << 6;
    pub const FD_ADVISE: u64 = 1 << 7;
    pub const FD_ALLOCATE: u64 = 1 << 8;
    pub const PATH_CREATE_DIRECTORY: u64 = 1 << 9;
    pub const PATH_CREATE_FILE: u64 = 1 << 10;
    pub const PATH_LINK_SOURCE: u64 = 1 << 11;
    pub const PATH_LINK_TARGET: u64 = 1 << 12;
    pub const PATH_OPEN: u64 = 1 << 13;
    pub const FD_READDIR: u64 = 1 << 14;
    pub const PATH_READLINK: u64 = 1 << 15;
    pub const PATH_RENAME_SOURCE: u64 = 1 << 16;
    pub const PATH_RENAME_TARGET: u64 = 1 << 17;
    pub const PATH_FILESTAT_GET: u64 = 1 << 18;
    pub const PATH_FILESTAT_SET_SIZE: u64 = 1 << 19;
    pub const PATH_FILESTAT_SET_TIMES: u64 = 1 << 20;
    pub const FD_FILESTAT_GET: u64 = 1 << 21;
    pub const FD_FILESTAT_SET_SIZE: u64 = 1 << 22;
    pub const FD_FILESTAT_SET_TIMES: u64 = 1 << 23;
    pub const PATH_SYMLINK: u64 = 1 << 24;
    pub const PATH_REMOVE_DIRECTORY: u64 = 1 << 25;
    pub const PATH_UNLINK_FILE: u64 = 1 << 26;
    pub const POLL_FD_READWRITE: u64 = 1 << 27;
    pub const SOCK_SHUTDOWN: u64 = 1 << 28;
    pub const SOCK_ACCEPT: u64 = 1 << 29;

    /// Rights that mean something on a regular file.
    pub const FILE: u64 = FD_DATASYNC
        | FD_READ
        | FD_SEEK
        | FD_FDSTAT_SET_FLAGS
        | FD_SYNC
        | FD_TELL
        | FD_WRITE
        | FD_ADVISE
        | FD_ALLOCATE
        | FD_FILESTAT_GET
        | FD_FILESTAT_SET_SIZE
        | FD_FILESTAT_SET_TIMES
        | POLL_FD_READWRITE;

    /// Rights that mean something on a directory.
    pub const DIRECTORY: u64 = FD_DATASYNC
        | FD_FDSTAT_SET_FLAGS
        | FD_SYNC
        | PATH_CREATE_DIRECTORY
        | PATH_CREATE_FILE
        | PATH_LINK_SOURCE
        | PATH_LINK_TARGET
        | PATH_OPEN
        | FD_READDIR
        | PATH_READLINK
        | PATH_RENAME_SOURCE
        | PATH_RENAME_TARGET
        | PATH_FILESTAT_GET
        | PATH_FILESTAT_SET_SIZE
        | PATH_FILESTAT_SET_TIMES
        | FD_FILESTAT_GET
        | FD_FILESTAT_SET_TIMES
        | PATH_SYMLINK
        | PATH_REMOVE_DIRECTORY
        | PATH_UNLINK_FILE;

    /// Everything a directory can hand on: no socket rights, there are no sockets.
    pub const INHERITABLE: u64 = FILE | DIRECTORY;

    /// Rights of standard input, and of standard output and standard error. No seek: programs take that for a terminal or pipe.
    pub const STDIN: u64 = FD_READ | FD_FILESTAT_GET | POLL_FD_READWRITE;
    pub const STDOUT: u64 = FD_WRITE | FD_FILESTAT_GET | POLL_FD_READWRITE;

    /// Rights that change what is stored; a descriptor beneath a read-only preopen has none of them.
    pub const MUTATING: u64 = FD_WRITE
        | FD_ALLOCATE
        | PATH_CREATE_DIRECTORY
        | PATH_CREATE_FILE
        | PATH_LINK_SOURCE
        | PATH_LINK_TARGET
        | PATH_RENAME_SOURCE
        | PATH_RENAME_TARGET
        | PATH_FILESTAT_SET_SIZE
        | PATH_FILESTAT_SET_TIMES
        | FD_FILESTAT_SET_SIZE
        | FD_FILESTAT_SET_TIMES
        | PATH_SYMLINK
        | PATH_REMOVE_DIRECTORY
        | PATH_UNLINK_FILE;
}

/// `fdflags`.
pub mod fdflags {
    pub const APPEND: u32 = 1;
    pub const DSYNC: u32 = 2;
    pub const NONBLOCK: u32 = 4;
    pub const RSYNC: u32 = 8;
    pub const SYNC: u32 = 16;
    pub const ALL: u32 = 31;
}

/// `oflags` of `path_open`.
pub mod oflags {
    pub const CREAT: u32 = 1;
    pub const DIRECTORY: u32 = 2;
    pub const EXCL: u32 = 4;
    pub const TRUNC: u32 = 8;
    pub const ALL: u32 = 15;
}

/// `lookupflags` of the `path_*` calls.
pub mod lookupflags {
    pub const SYMLINK_FOLLOW: u32 = 1;
    pub const ALL: u32 = 1;
}

/// `fstflags` of the `*_filestat_set_times` calls.
pub mod fstflags {
    pub const ATIM: u32 = 1;
    pub const ATIM_NOW: u32 = 2;
    pub const MTIM: u32 = 4;
    pub const MTIM_NOW: u32 = 8;
    pub const ALL: u32 = 15;
}

/// `whence` of `fd_seek`.
pub mod whence {
    pub const SET: u32 = 0;
    pub const CUR: u32 = 1;
    pub const END: u32 = 2;
}

/// `clockid`.
pub mod clockid {
    pub const REALTIME: u32 = 0;
    pub const MONOTONIC: u32 = 1;
    pub const PROCESS_CPUTIME: u32 = 2;
    pub const THREAD_CPUTIME: u32 = 3;
}

/// `filetype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    Unknown = 0,
    BlockDevice = 1,
    CharacterDevice = 2,
    Directory = 3,
    RegularFile = 4,
    SocketDgram = 5,
    SocketStream = 6,
    SymbolicLink = 7,
}

impl From<rustix::fs::FileType> for FileType {
    fn from(host: rustix::fs::FileType) -> Self {
        match host {
            rustix::fs::FileType::RegularFile => Self::RegularFile,
            rustix::fs::FileType::Directory => Self::Directory,
            rustix::fs::FileType::Symlink => Self::SymbolicLink,
            rustix::fs::FileType::CharacterDevice => Self::CharacterDevice,
            rustix::fs::FileType::BlockDevice => Self::BlockDevice,
            rustix::fs::FileType::Socket => Self::SocketStream,
            _ => Self::Unknown,
        }
    }
}

/// `filestat`, 64 bytes in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    pub dev: u64,
    pub ino: u64,
    pub file_type: FileType,
    pub nlink: u64,
    pub size_bytes: u64,
    pub atim_ns: u64,
    pub mtim_ns: u64,
    pub ctim_ns: u64,
}

impl FileStat {
    pub const SIZE: usize = 64;

    /// The 64 bytes of the guest's `filestat`, padding zeroed.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..8].copy_from_slice(&self.dev.to_le_bytes());
        out[8..16].copy_from_slice(&self.ino.to_le_bytes());
        out[16] = self.file_type as u8;
        out[24..32].copy_from_slice(&self.nlink.to_le_bytes());
        out[32..40].copy_from_slice(&self.size_bytes.to_le_bytes());
        out[40..48].copy_from_slice(&self.atim_ns.to_le_bytes());
        out[48..56].copy_from_slice(&self.mtim_ns.to_le_bytes());
        out[56..64].copy_from_slice(&self.ctim_ns.to_le_bytes());
        out
    }
}

/// `fdstat`, 24 bytes in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdStat {
    pub file_type: FileType,
    pub flags: u16,
    pub rights_base: u64,
    pub rights_inheriting: u64,
}

impl FdStat {
    pub const SIZE: usize = 24;

    /// The 24 bytes of the guest's `fdstat`, padding zeroed.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0] = self.file_type as u8;
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[8..16].copy_from_slice(&self.rights_base.to_le_bytes());
        out[16..24].copy_from_slice(&self.rights_inheriting.to_le_bytes());
        out
    }
}
