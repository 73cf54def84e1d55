//! The table of preview 1: every function, its WebAssembly signature, and whether it is there or refused.
//!
//! [`for_each_call!`] is the only list; [`CALLS`], the engine's binding and the tests are made from it.

use crate::abi::Errno;

/// Calls the named macro with one row for each function of `wasi_snapshot_preview1`:
///
/// `name(parameter: type, …) -> errno | never, implemented | refused(Errno, "why"), "what it does";`
///
/// Each row has a method of the same name on [`crate::Wasi`] taking `&mut self, mem: &mut [u8]` and the parameters, and
/// returning `Result<(), Fault>`. `u32` is the WebAssembly type i32, `u64` and `i64` are i64. A function that is `errno`
/// returns one i32 (0 or the errno), one that is `never` returns nothing.
#[macro_export]
macro_rules! for_each_call {
    ($callback:ident) => {
        $callback! {
            args_get(argv: u32, argv_buf: u32) -> errno, implemented, "arguments, each ended by a zero byte";
            args_sizes_get(count: u32, size: u32) -> errno, implemented, "number and bytes of the arguments";
            environ_get(environ: u32, environ_buf: u32) -> errno, implemented, "environment, each entry ended by a zero byte";
            environ_sizes_get(count: u32, size: u32) -> errno, implemented, "number and bytes of the environment";
            clock_res_get(id: u32, resolution: u32) -> errno, implemented, "resolution of a clock";
            clock_time_get(id: u32, precision: u64, time: u32) -> errno, implemented, "time of a clock";
            fd_advise(fd: u32, offset: u64, len: u64, advice: u32) -> errno, implemented, "access pattern of a file";
            fd_allocate(fd: u32, offset: u64, len: u64) -> errno, implemented, "space for a range of a file";
            fd_close(fd: u32) -> errno, implemented, "close a descriptor";
            fd_datasync(fd: u32) -> errno, implemented, "contents of a file to disk";
            fd_fdstat_get(fd: u32, stat: u32) -> errno, implemented, "type, flags and rights of a descriptor";
            fd_fdstat_set_flags(fd: u32, flags: u32) -> errno, implemented, "flags of a descriptor";
            fd_fdstat_set_rights(fd: u32, base: u64, inheriting: u64) -> errno, implemented, "rights of a descriptor, shrinking only";
            fd_filestat_get(fd: u32, stat: u32) -> errno, implemented, "attributes of an open file";
            fd_filestat_set_size(fd: u32, size: u64) -> errno, implemented, "size of an open file";
            fd_filestat_set_times(fd: u32, atim: u64, mtim: u64, fst_flags: u32) -> errno, implemented, "times of an open file";
            fd_pread(fd: u32, iovs: u32, iovs_len: u32, offset: u64, nread: u32) -> errno, implemented, "read at an offset";
            fd_prestat_get(fd: u32, prestat: u32) -> errno, implemented, "length of a preopen's path";
            fd_prestat_dir_name(fd: u32, path: u32, path_len: u32) -> errno, implemented, "path of a preopen";
            fd_pwrite(fd: u32, iovs: u32, iovs_len: u32, offset: u64, nwritten: u32) -> errno, implemented, "write at an offset";
            fd_read(fd: u32, iovs: u32, iovs_len: u32, nread: u32) -> errno, implemented, "read at the position";
            fd_readdir(fd: u32, buf: u32, buf_len: u32, cookie: u64, used: u32) -> errno, implemented, "entries of a directory";
            fd_renumber(from: u32, to: u32) -> errno, implemented, "move a descriptor over another";
            fd_seek(fd: u32, offset: i64, whence: u32, position: u32) -> errno, implemented, "move the position";
            fd_sync(fd: u32) -> errno, implemented, "contents and attributes of a file to disk";
            fd_tell(fd: u32, position: u32) -> errno, implemented, "the position";
            fd_write(fd: u32, iovs: u32, iovs_len: u32, nwritten: u32) -> errno, implemented, "write at the position";
            path_create_directory(fd: u32, path: u32, path_len: u32) -> errno, implemented, "make a directory";
            path_filestat_get(fd: u32, flags: u32, path: u32, path_len: u32, stat: u32) -> errno, implemented, "attributes of a path";
            path_filestat_set_times(fd: u32, flags: u32, path: u32, path_len: u32, atim: u64, mtim: u64, fst_flags: u32) -> errno, implemented, "times of a path";
            path_link(old_fd: u32, old_flags: u32, old_path: u32, old_path_len: u32, new_fd: u32, new_path: u32, new_path_len: u32) -> errno, implemented, "make a hard link";
            path_open(fd: u32, dirflags: u32, path: u32, path_len: u32, oflags: u32, rights_base: u64, rights_inheriting: u64, fdflags: u32, opened: u32) -> errno, implemented, "open a file or directory";
            path_readlink(fd: u32, path: u32, path_len: u32, buf: u32, buf_len: u32, used: u32) -> errno, implemented, "target of a symbolic link";
            path_remove_directory(fd: u32, path: u32, path_len: u32) -> errno, implemented, "remove an empty directory";
            path_rename(fd: u32, old_path: u32, old_path_len: u32, new_fd: u32, new_path: u32, new_path_len: u32) -> errno, implemented, "rename a file or directory";
            path_symlink(old_path: u32, old_path_len: u32, fd: u32, new_path: u32, new_path_len: u32) -> errno, implemented, "make a symbolic link with a relative target";
            path_unlink_file(fd: u32, path: u32, path_len: u32) -> errno, implemented, "remove a file";
            poll_oneoff(subscriptions: u32, events: u32, count: u32, stored: u32) -> errno, implemented, "wait for clocks and descriptors";
            proc_exit(code: u32) -> never, implemented, "end the guest";
            proc_raise(signal: u32) -> errno, refused(Nosys, "a guest has no signals; it ends by proc_exit or by a trap"), "send a signal to itself";
            random_get(buf: u32, buf_len: u32) -> errno, implemented, "random bytes";
            sched_yield() -> errno, implemented, "let others run";
            sock_accept(fd: u32, flags: u32, opened: u32) -> errno, refused(NotSock, "no sockets: a guest reaches the network only through granted host calls"), "take a connection";
            sock_recv(fd: u32, iovs: u32, iovs_len: u32, flags: u32, nread: u32, out_flags: u32) -> errno, refused(NotSock, "no sockets: a guest reaches the network only through granted host calls"), "receive from a socket";
            sock_send(fd: u32, iovs: u32, iovs_len: u32, flags: u32, nwritten: u32) -> errno, refused(NotSock, "no sockets: a guest reaches the network only through granted host calls"), "send to a socket";
            sock_shutdown(fd: u32, how: u32) -> errno, refused(NotSock, "no sockets: a guest reaches the network only through granted host calls"), "close half of a connection";
        }
    };
}

/// The import module's name.
pub const MODULE: &str = "wasi_snapshot_preview1";

/// A WebAssembly value type, as far as preview 1 needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValType {
    I32,
    I64,
}

/// Whether a function does its work here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Implemented,
    /// It exists, so that a module importing it links, and always answers this.
    Refused {
        errno: Errno,
        why: &'static str,
    },
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    pub params: &'static [ValType],
    pub results: &'static [ValType],
    pub status: Status,
    pub summary: &'static str,
}

macro_rules! val_type {
    (u32) => {
        ValType::I32
    };
    (u64) => {
        ValType::I64
    };
    (i64) => {
        ValType::I64
    };
}

macro_rules! results {
    (errno) => {
        &[ValType::I32]
    };
    (never) => {
        &[]
    };
}

macro_rules! status {
    (implemented) => {
        Status::Implemented
    };
    (refused $errno:ident $why:literal) => {
        Status::Refused {
            errno: Errno::$errno,
            why: $why,
        }
    };
}

macro_rules! table {
    ($($name:ident($($param:ident: $kind:ident),*) -> $ret:ident, $status:ident$(($errno:ident, $why:literal))?, $summary:literal;)*) => {
        /// Every function of `wasi_snapshot_preview1`.
        pub const CALLS: &[Call] = &[$(Call {
            name: stringify!($name),
            params: &[$(val_type!($kind)),*],
            results: results!($ret),
            status: status!($status $($errno $why)?),
            summary: $summary,
        }),*];
    };
}

for_each_call!(table);
