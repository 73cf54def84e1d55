//! The specification: for each call of preview 1, what it answers to what. The README's table is made from it.
//!
//! `UPDATE_README=1 cargo test --release -p agentfactory-wasi --test table` writes that table anew.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;

use agentfactory_wasi::abi::{clockid, fdflags, fstflags, oflags, rights, whence};
use agentfactory_wasi::{CALLS, Errno, Fault, MAX_IOVECS, MAX_SUBSCRIPTIONS, Status};
use support::{ALL_RIGHTS, BEYOND, Guest, OUT, READ, READ_WRITE, RO, RW};

struct Case {
    call: &'static str,
    given: &'static str,
    expected: Result<(), Fault>,
    run: fn(&mut Guest) -> Result<(), Fault>,
}

const fn ok(call: &'static str, given: &'static str, run: Run) -> Case {
    Case {
        call,
        given,
        expected: Ok(()),
        run,
    }
}

const fn no(call: &'static str, given: &'static str, errno: Errno, run: Run) -> Case {
    Case {
        call,
        given,
        expected: Err(Fault::Errno(errno)),
        run,
    }
}

type Run = fn(&mut Guest) -> Result<(), Fault>;

const CLOSED: u32 = 99;
const STDIN: u32 = 0;
const STDOUT: u32 = 1;

fn io(guest: &mut Guest) -> (u32, u32) {
    let part = guest.put(b"data");
    guest.iovs(&[part])
}

fn fd_read(guest: &mut Guest, fd: u32) -> Result<(), Fault> {
    let (iovs, count) = io(guest);
    guest.wasi.fd_read(&mut guest.mem, fd, iovs, count, OUT)
}

fn fd_write(guest: &mut Guest, fd: u32) -> Result<(), Fault> {
    let (iovs, count) = io(guest);
    guest.wasi.fd_write(&mut guest.mem, fd, iovs, count, OUT)
}

fn fd_pread(guest: &mut Guest, fd: u32, offset: u64) -> Result<(), Fault> {
    let (iovs, count) = io(guest);
    guest
        .wasi
        .fd_pread(&mut guest.mem, fd, iovs, count, offset, OUT)
}

fn fd_pwrite(guest: &mut Guest, fd: u32, offset: u64) -> Result<(), Fault> {
    let (iovs, count) = io(guest);
    guest
        .wasi
        .fd_pwrite(&mut guest.mem, fd, iovs, count, offset, OUT)
}

fn seek(guest: &mut Guest, fd: u32, offset: i64, whence: u32) -> Result<(), Fault> {
    guest.wasi.fd_seek(&mut guest.mem, fd, offset, whence, OUT)
}

/// A file of which the guest has given up all rights.
fn powerless(guest: &mut Guest) -> u32 {
    let fd = guest.file();
    guest
        .wasi
        .fd_fdstat_set_rights(&mut guest.mem, fd, 0, 0)
        .unwrap();
    fd
}

/// A directory of which the guest has given up all rights.
fn powerless_dir(guest: &mut Guest) -> u32 {
    let fd = guest.dir();
    guest
        .wasi
        .fd_fdstat_set_rights(&mut guest.mem, fd, 0, 0)
        .unwrap();
    fd
}

fn read_only(guest: &mut Guest) -> u32 {
    guest.open(RO, "file", 0, READ).unwrap()
}

fn opens(result: Result<u32, Fault>) -> Result<(), Fault> {
    result.map(|_| ())
}

use Errno::{
    Badf, Busy, Exist, Fault as Efault, Ilseq, Inval, Isdir, Loop, NameTooLong, Noent, Nosys,
    NotCapable, NotDir, NotEmpty, NotSock, NotSup, Perm, Rofs, Spipe,
};

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    vec![
        ok("args_get", "room", |g| g.wasi.args_get(&mut g.mem, OUT, 64)),
        no("args_get", "a list that ends outside", Efault, |g| g.wasi.args_get(&mut g.mem, BEYOND, 64)),
        no("args_get", "a buffer that ends outside", Efault, |g| g.wasi.args_get(&mut g.mem, OUT, BEYOND)),
        ok("args_sizes_get", "room", |g| g.wasi.args_sizes_get(&mut g.mem, OUT, 64)),
        no("args_sizes_get", "a result that ends outside", Efault, |g| g.wasi.args_sizes_get(&mut g.mem, OUT, BEYOND)),
        ok("environ_get", "room", |g| g.wasi.environ_get(&mut g.mem, OUT, 64)),
        no("environ_get", "a buffer that ends outside", Efault, |g| g.wasi.environ_get(&mut g.mem, OUT, BEYOND)),
        ok("environ_sizes_get", "room", |g| g.wasi.environ_sizes_get(&mut g.mem, OUT, 64)),
        no("environ_sizes_get", "a result that ends outside", Efault, |g| g.wasi.environ_sizes_get(&mut g.mem, BEYOND, 64)),

        ok("clock_res_get", "each of the four clocks", |g| (0..4).try_for_each(|id| g.wasi.clock_res_get(&mut g.mem, id, OUT))),
        no("clock_res_get", "an unknown clock", Inval, |g| g.wasi.clock_res_get(&mut g.mem, 4, OUT)),
        ok("clock_time_get", "each of the four clocks", |g| (0..4).try_for_each(|id| g.wasi.clock_time_get(&mut g.mem, id, 0, OUT))),
        no("clock_time_get", "an unknown clock", Inval, |g| g.wasi.clock_time_get(&mut g.mem, 4, 0, OUT)),
        no("clock_time_get", "a result that ends outside", Efault, |g| g.wasi.clock_time_get(&mut g.mem, clockid::REALTIME, 0, BEYOND)),

        ok("fd_advise", "each of the six patterns", |g| { let fd = g.file(); (0..6).try_for_each(|n| g.wasi.fd_advise(&mut g.mem, fd, 0, 0, n)) }),
        no("fd_advise", "an unknown pattern", Inval, |g| { let fd = g.file(); g.wasi.fd_advise(&mut g.mem, fd, 0, 0, 6) }),
        no("fd_advise", "a standard stream", Spipe, |g| g.wasi.fd_advise(&mut g.mem, STDIN, 0, 0, 0)),
        no("fd_advise", "a directory", Isdir, |g| g.wasi.fd_advise(&mut g.mem, RW, 0, 0, 0)),
        no("fd_advise", "a descriptor that is not open", Badf, |g| g.wasi.fd_advise(&mut g.mem, CLOSED, 0, 0, 0)),
        no("fd_advise", "no right", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_advise(&mut g.mem, fd, 0, 0, 0) }),

        ok("fd_allocate", "a range behind the end", |g| { let fd = g.file(); g.wasi.fd_allocate(&mut g.mem, fd, 5, 100) }),
        no("fd_allocate", "no length", Inval, |g| { let fd = g.file(); g.wasi.fd_allocate(&mut g.mem, fd, 0, 0) }),
        no("fd_allocate", "a range beyond what numbers hold", Inval, |g| { let fd = g.file(); g.wasi.fd_allocate(&mut g.mem, fd, u64::MAX, 2) }),
        no("fd_allocate", "beneath a read-only preopen", Rofs, |g| { let fd = read_only(g); g.wasi.fd_allocate(&mut g.mem, fd, 0, 1) }),
        no("fd_allocate", "a file open for reading", NotCapable, |g| { let fd = g.open(RW, "file", 0, READ).unwrap(); g.wasi.fd_allocate(&mut g.mem, fd, 0, 1) }),
        no("fd_allocate", "a directory", Isdir, |g| g.wasi.fd_allocate(&mut g.mem, RW, 0, 1)),
        no("fd_allocate", "a standard stream", Spipe, |g| g.wasi.fd_allocate(&mut g.mem, STDOUT, 0, 1)),

        ok("fd_close", "an open file", |g| { let fd = g.file(); g.wasi.fd_close(&mut g.mem, fd) }),
        ok("fd_close", "a standard stream", |g| g.wasi.fd_close(&mut g.mem, STDIN)),
        ok("fd_close", "a preopen", |g| g.wasi.fd_close(&mut g.mem, RW)),
        no("fd_close", "a descriptor closed before", Badf, |g| { let fd = g.file(); g.wasi.fd_close(&mut g.mem, fd).unwrap(); g.wasi.fd_close(&mut g.mem, fd) }),

        ok("fd_datasync", "a file", |g| { let fd = g.file(); g.wasi.fd_datasync(&mut g.mem, fd) }),
        no("fd_datasync", "a standard stream", Inval, |g| g.wasi.fd_datasync(&mut g.mem, STDOUT)),
        no("fd_datasync", "no right", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_datasync(&mut g.mem, fd) }),
        ok("fd_sync", "a directory", |g| g.wasi.fd_sync(&mut g.mem, RW)),
        no("fd_sync", "a standard stream", Inval, |g| g.wasi.fd_sync(&mut g.mem, STDOUT)),
        no("fd_sync", "no right", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_sync(&mut g.mem, fd) }),

        ok("fd_fdstat_get", "a descriptor without rights", |g| { let fd = powerless(g); g.wasi.fd_fdstat_get(&mut g.mem, fd, OUT) }),
        ok("fd_fdstat_get", "a standard stream", |g| g.wasi.fd_fdstat_get(&mut g.mem, STDOUT, OUT)),
        no("fd_fdstat_get", "a descriptor that is not open", Badf, |g| g.wasi.fd_fdstat_get(&mut g.mem, CLOSED, OUT)),
        no("fd_fdstat_get", "a result that ends outside", Efault, |g| g.wasi.fd_fdstat_get(&mut g.mem, STDOUT, BEYOND)),

        ok("fd_fdstat_set_flags", "append and nonblock", |g| { let fd = g.file(); g.wasi.fd_fdstat_set_flags(&mut g.mem, fd, fdflags::APPEND | fdflags::NONBLOCK) }),
        no("fd_fdstat_set_flags", "a syncing flag that was not there at the opening", NotSup, |g| { let fd = g.file(); g.wasi.fd_fdstat_set_flags(&mut g.mem, fd, fdflags::SYNC) }),
        no("fd_fdstat_set_flags", "an unknown flag", Inval, |g| { let fd = g.file(); g.wasi.fd_fdstat_set_flags(&mut g.mem, fd, 32) }),
        ok("fd_fdstat_set_flags", "none on a standard stream", |g| g.wasi.fd_fdstat_set_flags(&mut g.mem, STDIN, 0)),
        no("fd_fdstat_set_flags", "nonblock on a standard stream", NotSup, |g| g.wasi.fd_fdstat_set_flags(&mut g.mem, STDIN, fdflags::NONBLOCK)),
        no("fd_fdstat_set_flags", "no right", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_fdstat_set_flags(&mut g.mem, fd, 0) }),

        ok("fd_fdstat_set_rights", "fewer", |g| g.wasi.fd_fdstat_set_rights(&mut g.mem, RW, 0, 0)),
        no("fd_fdstat_set_rights", "more", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_fdstat_set_rights(&mut g.mem, fd, rights::FD_READ, 0) }),
        no("fd_fdstat_set_rights", "more to hand on", NotCapable, |g| { let fd = g.file(); g.wasi.fd_fdstat_set_rights(&mut g.mem, fd, 0, rights::FD_READ) }),

        ok("fd_filestat_get", "a file", |g| { let fd = g.file(); g.wasi.fd_filestat_get(&mut g.mem, fd, OUT) }),
        ok("fd_filestat_get", "a standard stream", |g| g.wasi.fd_filestat_get(&mut g.mem, STDIN, OUT)),
        no("fd_filestat_get", "a result that ends outside", Efault, |g| g.wasi.fd_filestat_get(&mut g.mem, RW, BEYOND)),
        no("fd_filestat_get", "no right", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_filestat_get(&mut g.mem, fd, OUT) }),

        ok("fd_filestat_set_size", "a file", |g| { let fd = g.file(); g.wasi.fd_filestat_set_size(&mut g.mem, fd, 2) }),
        no("fd_filestat_set_size", "a size no file has", Inval, |g| { let fd = g.file(); g.wasi.fd_filestat_set_size(&mut g.mem, fd, u64::MAX) }),
        no("fd_filestat_set_size", "a directory", Isdir, |g| g.wasi.fd_filestat_set_size(&mut g.mem, RW, 2)),
        no("fd_filestat_set_size", "a standard stream", Inval, |g| g.wasi.fd_filestat_set_size(&mut g.mem, STDOUT, 2)),
        no("fd_filestat_set_size", "beneath a read-only preopen", Rofs, |g| { let fd = read_only(g); g.wasi.fd_filestat_set_size(&mut g.mem, fd, 2) }),
        no("fd_filestat_set_size", "a file open for reading", NotCapable, |g| { let fd = g.open(RW, "file", 0, READ).unwrap(); g.wasi.fd_filestat_set_size(&mut g.mem, fd, 2) }),

        ok("fd_filestat_set_times", "a file", |g| { let fd = g.file(); g.wasi.fd_filestat_set_times(&mut g.mem, fd, 1, 2, fstflags::ATIM | fstflags::MTIM_NOW) }),
        no("fd_filestat_set_times", "a time both given and now", Inval, |g| { let fd = g.file(); g.wasi.fd_filestat_set_times(&mut g.mem, fd, 1, 2, fstflags::ATIM | fstflags::ATIM_NOW) }),
        no("fd_filestat_set_times", "an unknown flag", Inval, |g| { let fd = g.file(); g.wasi.fd_filestat_set_times(&mut g.mem, fd, 1, 2, 16) }),
        no("fd_filestat_set_times", "beneath a read-only preopen", Rofs, |g| g.wasi.fd_filestat_set_times(&mut g.mem, RO, 1, 2, fstflags::ATIM)),
        no("fd_filestat_set_times", "a standard stream", Inval, |g| g.wasi.fd_filestat_set_times(&mut g.mem, STDIN, 1, 2, 0)),

        ok("fd_pread", "a file", |g| { let fd = g.file(); fd_pread(g, fd, 1) }),
        ok("fd_pread", "an offset behind the end", |g| { let fd = g.file(); fd_pread(g, fd, 1_000) }),
        no("fd_pread", "an offset no file has", Inval, |g| { let fd = g.file(); fd_pread(g, fd, u64::MAX) }),
        no("fd_pread", "a standard stream", Spipe, |g| fd_pread(g, STDIN, 0)),
        no("fd_pread", "a directory", Isdir, |g| fd_pread(g, RW, 0)),
        no("fd_pread", "a file without the right to seek", NotCapable, |g| { let fd = g.open(RW, "file", 0, rights::FD_READ).unwrap(); fd_pread(g, fd, 0) }),

        ok("fd_prestat_get", "a preopen", |g| g.wasi.fd_prestat_get(&mut g.mem, RW, OUT)),
        no("fd_prestat_get", "a directory that is none", Badf, |g| { let fd = g.dir(); g.wasi.fd_prestat_get(&mut g.mem, fd, OUT) }),
        no("fd_prestat_get", "a standard stream", Badf, |g| g.wasi.fd_prestat_get(&mut g.mem, STDIN, OUT)),
        ok("fd_prestat_dir_name", "a buffer of its length", |g| g.wasi.fd_prestat_dir_name(&mut g.mem, RW, OUT, 3)),
        no("fd_prestat_dir_name", "a shorter buffer", NameTooLong, |g| g.wasi.fd_prestat_dir_name(&mut g.mem, RW, OUT, 2)),
        no("fd_prestat_dir_name", "a directory that is none", Badf, |g| { let fd = g.dir(); g.wasi.fd_prestat_dir_name(&mut g.mem, fd, OUT, 64) }),

        ok("fd_pwrite", "a file", |g| { let fd = g.file(); fd_pwrite(g, fd, 1) }),
        no("fd_pwrite", "an offset no file has", Inval, |g| { let fd = g.file(); fd_pwrite(g, fd, u64::MAX) }),
        no("fd_pwrite", "a standard stream", Spipe, |g| fd_pwrite(g, STDOUT, 0)),
        no("fd_pwrite", "a directory", Isdir, |g| fd_pwrite(g, RW, 0)),
        no("fd_pwrite", "beneath a read-only preopen", Rofs, |g| { let fd = read_only(g); fd_pwrite(g, fd, 0) }),
        no("fd_pwrite", "a file open for reading", NotCapable, |g| { let fd = g.open(RW, "file", 0, READ).unwrap(); fd_pwrite(g, fd, 0) }),

        ok("fd_read", "a file", |g| { let fd = g.file(); fd_read(g, fd) }),
        ok("fd_read", "standard input", |g| fd_read(g, STDIN)),
        ok("fd_read", "no parts", |g| g.wasi.fd_read(&mut g.mem, STDIN, 0, 0, OUT)),
        no("fd_read", "standard output", NotCapable, |g| fd_read(g, STDOUT)),
        no("fd_read", "a directory", Isdir, |g| fd_read(g, RW)),
        no("fd_read", "a descriptor that is not open", Badf, |g| fd_read(g, CLOSED)),
        no("fd_read", "a file open for writing", NotCapable, |g| { let fd = g.open(RW, "file", 0, rights::FD_WRITE).unwrap(); fd_read(g, fd) }),
        no("fd_read", "more parts than 1024", Inval, |g| g.wasi.fd_read(&mut g.mem, STDIN, 0, MAX_IOVECS + 1, OUT)),
        no("fd_read", "a list that ends outside", Efault, |g| g.wasi.fd_read(&mut g.mem, STDIN, BEYOND, 1, OUT)),
        no("fd_read", "a part that ends outside", Efault, |g| { let (iovs, n) = g.iovs(&[(BEYOND, 4)]); g.wasi.fd_read(&mut g.mem, STDIN, iovs, n, OUT) }),
        no("fd_read", "a result that ends outside", Efault, |g| { let (iovs, n) = io(g); g.wasi.fd_read(&mut g.mem, STDIN, iovs, n, BEYOND) }),

        ok("fd_readdir", "a directory", |g| { let fd = g.dir(); g.wasi.fd_readdir(&mut g.mem, fd, 64, 512, 0, OUT) }),
        ok("fd_readdir", "no room", |g| g.wasi.fd_readdir(&mut g.mem, RW, 64, 0, 0, OUT)),
        no("fd_readdir", "a file", NotDir, |g| { let fd = g.file(); g.wasi.fd_readdir(&mut g.mem, fd, 64, 512, 0, OUT) }),
        no("fd_readdir", "a standard stream", NotDir, |g| g.wasi.fd_readdir(&mut g.mem, STDIN, 64, 512, 0, OUT)),
        no("fd_readdir", "a cookie no directory has", Inval, |g| g.wasi.fd_readdir(&mut g.mem, RW, 64, 512, u64::MAX, OUT)),
        no("fd_readdir", "a buffer that ends outside", Efault, |g| g.wasi.fd_readdir(&mut g.mem, RW, BEYOND, 512, 0, OUT)),
        no("fd_readdir", "no right", NotCapable, |g| { let fd = powerless_dir(g); g.wasi.fd_readdir(&mut g.mem, fd, 64, 512, 0, OUT) }),

        ok("fd_renumber", "two open descriptors", |g| { let fd = g.file(); g.wasi.fd_renumber(&mut g.mem, fd, STDIN) }),
        ok("fd_renumber", "one onto itself", |g| g.wasi.fd_renumber(&mut g.mem, RW, RW)),
        no("fd_renumber", "one that is not open", Badf, |g| g.wasi.fd_renumber(&mut g.mem, CLOSED, RW)),
        no("fd_renumber", "onto one that is not open", Badf, |g| g.wasi.fd_renumber(&mut g.mem, RW, CLOSED)),

        ok("fd_seek", "a file, beyond its end", |g| { let fd = g.file(); seek(g, fd, 1_000, whence::END) }),
        no("fd_seek", "a position below 0", Inval, |g| { let fd = g.file(); seek(g, fd, -6, whence::END) }),
        no("fd_seek", "an unknown origin", Inval, |g| { let fd = g.file(); seek(g, fd, 0, 3) }),
        no("fd_seek", "a standard stream", Spipe, |g| seek(g, STDIN, 0, whence::CUR)),
        no("fd_seek", "a directory", Isdir, |g| seek(g, RW, 0, whence::CUR)),
        ok("fd_seek", "only asking, with only the right to tell", |g| { let fd = g.open(RW, "file", 0, rights::FD_TELL).unwrap(); seek(g, fd, 0, whence::CUR) }),
        no("fd_seek", "moving, with only the right to tell", NotCapable, |g| { let fd = g.open(RW, "file", 0, rights::FD_TELL).unwrap(); seek(g, fd, 1, whence::CUR) }),
        ok("fd_tell", "a file", |g| { let fd = g.file(); g.wasi.fd_tell(&mut g.mem, fd, OUT) }),
        no("fd_tell", "a standard stream", Spipe, |g| g.wasi.fd_tell(&mut g.mem, STDIN, OUT)),
        no("fd_tell", "a directory", Isdir, |g| g.wasi.fd_tell(&mut g.mem, RW, OUT)),
        no("fd_tell", "no right", NotCapable, |g| { let fd = powerless(g); g.wasi.fd_tell(&mut g.mem, fd, OUT) }),

        ok("fd_write", "a file", |g| { let fd = g.file(); fd_write(g, fd) }),
        ok("fd_write", "standard output", |g| fd_write(g, STDOUT)),
        no("fd_write", "standard input", NotCapable, |g| fd_write(g, STDIN)),
        no("fd_write", "a directory", Isdir, |g| fd_write(g, RW)),
        no("fd_write", "beneath a read-only preopen", Rofs, |g| { let fd = read_only(g); fd_write(g, fd) }),
        no("fd_write", "a file open for reading", NotCapable, |g| { let fd = g.open(RW, "file", 0, READ).unwrap(); fd_write(g, fd) }),
        no("fd_write", "a part that ends outside", Efault, |g| { let (iovs, n) = g.iovs(&[(BEYOND, 4)]); g.wasi.fd_write(&mut g.mem, STDOUT, iovs, n, OUT) }),
        no("fd_write", "more parts than 1024", Inval, |g| g.wasi.fd_write(&mut g.mem, STDOUT, 0, MAX_IOVECS + 1, OUT)),

        ok("path_create_directory", "a new name", |g| g.mkdir(RW, "dir/new")),
        ok("path_create_directory", "a new name with a slash behind it", |g| g.mkdir(RW, "new/")),
        no("path_create_directory", "a name that exists", Exist, |g| g.mkdir(RW, "file")),
        no("path_create_directory", "`.`", Exist, |g| g.mkdir(RW, ".")),
        no("path_create_directory", "a parent that does not exist", Noent, |g| g.mkdir(RW, "nowhere/new")),
        no("path_create_directory", "a parent that is a file", NotDir, |g| g.mkdir(RW, "file/new")),
        no("path_create_directory", "an absolute path", NotCapable, |g| g.mkdir(RW, "/new")),
        no("path_create_directory", "a path that leads out", NotCapable, |g| g.mkdir(RW, "dir/../../new")),
        no("path_create_directory", "beneath a read-only preopen", Rofs, |g| g.mkdir(RO, "new")),
        no("path_create_directory", "a file for a directory", NotDir, |g| { let fd = g.file(); g.mkdir(fd, "new") }),
        no("path_create_directory", "no right", NotCapable, |g| { let fd = powerless_dir(g); g.mkdir(fd, "new") }),
        no("path_create_directory", "an empty path", Noent, |g| g.mkdir(RW, "")),
        no("path_create_directory", "a path with a zero byte", Inval, |g| g.mkdir(RW, "new\0")),
        no("path_create_directory", "a path of more than 4096 bytes", NameTooLong, |g| g.mkdir(RW, &"a/".repeat(2_049))),
        no("path_create_directory", "a name of more than 255 bytes", NameTooLong, |g| g.mkdir(RW, &"a".repeat(256))),
        no("path_create_directory", "a path that is not UTF-8", Ilseq, |g| { let (p, n) = g.put(b"\xff"); g.wasi.path_create_directory(&mut g.mem, RW, p, n) }),
        no("path_create_directory", "a path that ends outside", Efault, |g| g.wasi.path_create_directory(&mut g.mem, RW, BEYOND, 4)),

        ok("path_filestat_get", "a file beneath a read-only preopen", |g| g.stat(RO, 0, "file")),
        ok("path_filestat_get", "a link, not followed", |g| g.stat(RW, 0, "dangling")),
        no("path_filestat_get", "a link to nothing, followed", Noent, |g| g.stat(RW, 1, "dangling")),
        no("path_filestat_get", "a link to itself, followed", Loop, |g| g.stat(RW, 1, "loop")),
        ok("path_filestat_get", "a link that leads out, not followed", |g| g.stat(RW, 0, "out")),
        no("path_filestat_get", "a link that leads out, followed", NotCapable, |g| g.stat(RW, 1, "out")),
        no("path_filestat_get", "a file with a slash behind it", NotDir, |g| g.stat(RW, 0, "file/")),
        ok("path_filestat_get", "a fifo", |g| g.stat(RW, 0, "fifo")),
        no("path_filestat_get", "an unknown lookup flag", Inval, |g| g.stat(RW, 2, "file")),
        no("path_filestat_get", "no right", NotCapable, |g| { let fd = powerless_dir(g); g.stat(fd, 0, "inner") }),

        ok("path_filestat_set_times", "a file", |g| g.set_times(RW, "file", fstflags::MTIM)),
        no("path_filestat_set_times", "a time both given and now", Inval, |g| g.set_times(RW, "file", fstflags::MTIM | fstflags::MTIM_NOW)),
        no("path_filestat_set_times", "a path that leads out", NotCapable, |g| g.set_times(RW, "out", fstflags::MTIM)),
        no("path_filestat_set_times", "beneath a read-only preopen", Rofs, |g| g.set_times(RO, "file", fstflags::MTIM)),

        ok("path_link", "a file and a new name", |g| g.link(RW, "file", RW, "dir/new")),
        ok("path_link", "a link to nothing, linked itself", |g| g.link(RW, "dangling", RW, "new")),
        no("path_link", "a name that exists", Exist, |g| g.link(RW, "file", RW, "dir")),
        no("path_link", "a directory", Perm, |g| g.link(RW, "dir", RW, "new")),
        no("path_link", "a directory with a slash behind it", Perm, |g| g.link(RW, "dirlink/", RW, "new")),
        no("path_link", "a file with a slash behind it", NotDir, |g| g.link(RW, "file/", RW, "new")),
        no("path_link", "a new name with a slash behind it", Noent, |g| g.link(RW, "file", RW, "new/")),
        no("path_link", "a path to be followed", Inval, |g| g.link_with(1, RW, "link", RW, "new")),
        no("path_link", "a file beneath a read-only preopen", Rofs, |g| g.link(RO, "file", RW, "new")),
        no("path_link", "a name beneath a read-only preopen", Rofs, |g| g.link(RW, "file", RO, "new")),
        no("path_link", "a file outside", NotCapable, |g| g.link(RW, "../outside/secret", RW, "new")),
        no("path_link", "a file outside, by a link to its directory", NotCapable, |g| g.link(RW, "outdir/secret", RW, "new")),
        no("path_link", "a name outside", NotCapable, |g| g.link(RW, "file", RW, "../outside/new")),

        ok("path_open", "a file", |g| opens(g.open(RW, "file", 0, READ_WRITE))),
        ok("path_open", "all rights there are, and some there are not", |g| opens(g.open(RW, "file", 0, ALL_RIGHTS))),
        ok("path_open", "a directory for reading", |g| opens(g.open(RW, "dir", 0, READ))),
        ok("path_open", "a directory with slashes behind it", |g| opens(g.open(RW, "dir///", oflags::DIRECTORY, READ))),
        ok("path_open", "`.`", |g| opens(g.open(RW, ".", oflags::DIRECTORY, READ))),
        ok("path_open", "a way with `..` that stays inside", |g| opens(g.open(RW, "dir/nested/../.././file", 0, READ))),
        no("path_open", "a directory for writing", Isdir, |g| opens(g.open(RW, "dir", 0, READ_WRITE))),
        no("path_open", "a file as a directory", NotDir, |g| opens(g.open(RW, "file", oflags::DIRECTORY, READ))),
        no("path_open", "a file with a slash behind it", NotDir, |g| opens(g.open(RW, "file/", 0, READ))),
        no("path_open", "a name that does not exist", Noent, |g| opens(g.open(RW, "nowhere", 0, READ))),
        ok("path_open", "a new name, created", |g| opens(g.open(RW, "new", oflags::CREAT, READ_WRITE))),
        ok("path_open", "a name that exists, created", |g| opens(g.open(RW, "file", oflags::CREAT, READ_WRITE))),
        no("path_open", "a name that exists, created exclusively", Exist, |g| opens(g.open(RW, "file", oflags::CREAT | oflags::EXCL, READ))),
        no("path_open", "a directory, created", Inval, |g| opens(g.open(RW, "new", oflags::CREAT | oflags::DIRECTORY, READ))),
        ok("path_open", "a file, cut", |g| opens(g.open(RW, "file", oflags::TRUNC, READ_WRITE))),
        no("path_open", "an unknown flag", Inval, |g| opens(g.open(RW, "file", 16, READ))),
        no("path_open", "an unknown descriptor flag", Inval, |g| opens(g.open_with(RW, 1, "file", 0, READ, 32))),
        no("path_open", "an unknown lookup flag", Inval, |g| opens(g.open_with(RW, 2, "file", 0, READ, 0))),
        no("path_open", "a link, not followed", Loop, |g| opens(g.open_with(RW, 0, "link", 0, READ, 0))),
        ok("path_open", "a link, followed", |g| opens(g.open(RW, "link", 0, READ))),
        no("path_open", "a link to itself", Loop, |g| opens(g.open(RW, "loop", 0, READ))),
        no("path_open", "an absolute path", NotCapable, |g| opens(g.open(RW, "/etc/passwd", 0, READ))),
        no("path_open", "too many `..`", NotCapable, |g| opens(g.open(RW, "../outside/secret", 0, READ))),
        no("path_open", "a link that leads out", NotCapable, |g| opens(g.open(RW, "out", 0, READ))),
        no("path_open", "a link with an absolute target", NotCapable, |g| opens(g.open(RW, "absolute/passwd", 0, READ))),
        no("path_open", "a fifo", NotSup, |g| opens(g.open(RW, "fifo", 0, READ))),
        no("path_open", "a socket", NotSup, |g| opens(g.open(RW, "socket", 0, READ))),
        ok("path_open", "for reading beneath a read-only preopen", |g| opens(g.open(RO, "dir/inner", 0, READ))),
        no("path_open", "for writing beneath a read-only preopen", Rofs, |g| opens(g.open(RO, "file", 0, READ_WRITE))),
        no("path_open", "a file to cut beneath a read-only preopen", Rofs, |g| opens(g.open(RO, "file", oflags::TRUNC, READ))),
        no("path_open", "a new name, created beneath a read-only preopen", Rofs, |g| opens(g.open(RO, "new", oflags::CREAT, READ))),
        ok("path_open", "a name that exists, created beneath a read-only preopen", |g| opens(g.open(RO, "file", oflags::CREAT, READ))),
        no("path_open", "from a file", NotDir, |g| { let fd = g.file(); opens(g.open(fd, "file", 0, READ)) }),
        no("path_open", "from a descriptor that is not open", Badf, |g| opens(g.open(CLOSED, "file", 0, READ))),
        no("path_open", "without the right to open", NotCapable, |g| { let fd = powerless_dir(g); opens(g.open(fd, "inner", 0, 0)) }),
        no("path_open", "a right the directory does not hand on", NotCapable, |g| { let fd = g.dir(); opens(g.open(fd, "inner", 0, rights::FD_READ)) }),
        no("path_open", "a file to cut, without the right to that", NotCapable, |g| { g.wasi.fd_fdstat_set_rights(&mut g.mem, RW, rights::PATH_OPEN, rights::INHERITABLE).unwrap(); opens(g.open(RW, "file", oflags::TRUNC, READ)) }),
        ok("path_open", "a file to cut, without that right, but with rights to write and resize it", |g| { g.wasi.fd_fdstat_set_rights(&mut g.mem, RW, rights::PATH_OPEN, rights::INHERITABLE).unwrap(); opens(g.open(RW, "file", oflags::TRUNC, READ_WRITE)) }),
        no("path_open", "a result that ends outside", Efault, |g| { let (p, n) = g.put(b"file"); g.wasi.path_open(&mut g.mem, RW, 0, p, n, 0, 0, 0, 0, BEYOND) }),

        ok("path_readlink", "a link", |g| g.readlink(RW, "link", 64).map(|_| ())),
        ok("path_readlink", "a buffer shorter than the target", |g| g.readlink(RW, "link", 2).map(|_| ())),
        no("path_readlink", "a file", Inval, |g| g.readlink(RW, "file", 64).map(|_| ())),
        no("path_readlink", "a link outside", NotCapable, |g| g.readlink(RW, "../outside/link", 64).map(|_| ())),
        no("path_readlink", "no right", NotCapable, |g| { let fd = powerless_dir(g); g.readlink(fd, "inner", 64).map(|_| ()) }),

        ok("path_remove_directory", "an empty directory", |g| g.rmdir(RW, "empty")),
        ok("path_remove_directory", "one with a slash behind it", |g| g.rmdir(RW, "empty/")),
        no("path_remove_directory", "one that is not empty", NotEmpty, |g| g.rmdir(RW, "dir")),
        no("path_remove_directory", "a file", NotDir, |g| g.rmdir(RW, "file")),
        no("path_remove_directory", "a link to a directory with a slash behind it", NotDir, |g| g.rmdir(RW, "dirlink/")),
        no("path_remove_directory", "`.`", Inval, |g| g.rmdir(RW, ".")),
        no("path_remove_directory", "`..`", Inval, |g| g.rmdir(RW, "dir/..")),
        no("path_remove_directory", "a path that leads out", NotCapable, |g| g.rmdir(RW, "../outside/empty")),
        no("path_remove_directory", "beneath a read-only preopen", Rofs, |g| g.rmdir(RO, "empty")),

        ok("path_rename", "a file and a new name", |g| g.rename(RW, "file", RW, "dir/new")),
        ok("path_rename", "a directory onto an empty one", |g| g.rename(RW, "dir", RW, "empty")),
        no("path_rename", "a directory onto one that is not empty", NotEmpty, |g| g.rename(RW, "empty", RW, "dir")),
        no("path_rename", "a file onto a directory", Isdir, |g| g.rename(RW, "file", RW, "empty")),
        no("path_rename", "a directory onto a file", NotDir, |g| g.rename(RW, "empty", RW, "file")),
        no("path_rename", "a directory into itself", Inval, |g| g.rename(RW, "dir", RW, "dir/nested/new")),
        no("path_rename", "a file with a slash behind it", NotDir, |g| g.rename(RW, "file/", RW, "new")),
        no("path_rename", "`.`", Busy, |g| g.rename(RW, ".", RW, "new")),
        no("path_rename", "a file outside", NotCapable, |g| g.rename(RW, "../outside/secret", RW, "new")),
        no("path_rename", "a name outside", NotCapable, |g| g.rename(RW, "file", RW, "outdir/new")),
        no("path_rename", "a file beneath a read-only preopen", Rofs, |g| g.rename(RO, "file", RW, "new")),
        no("path_rename", "a name beneath a read-only preopen", Rofs, |g| g.rename(RW, "file", RO, "new")),

        ok("path_symlink", "a relative target and a new name", |g| g.symlink("file", RW, "new")),
        ok("path_symlink", "a target that leads out, which following refuses", |g| g.symlink("../outside", RW, "new")),
        no("path_symlink", "an absolute target", NotCapable, |g| g.symlink("/etc", RW, "new")),
        no("path_symlink", "an empty target", Noent, |g| g.symlink("", RW, "new")),
        no("path_symlink", "a name that exists", Exist, |g| g.symlink("file", RW, "dir")),
        no("path_symlink", "a new name with a slash behind it", Noent, |g| g.symlink("file", RW, "new/")),
        no("path_symlink", "a name outside", NotCapable, |g| g.symlink("file", RW, "../outside/new")),
        no("path_symlink", "beneath a read-only preopen", Rofs, |g| g.symlink("file", RO, "new")),

        ok("path_unlink_file", "a file", |g| g.unlink(RW, "dir/inner")),
        ok("path_unlink_file", "a link that leads out, removed itself", |g| g.unlink(RW, "out")),
        no("path_unlink_file", "a directory", Isdir, |g| g.unlink(RW, "dir")),
        no("path_unlink_file", "a file with a slash behind it", NotDir, |g| g.unlink(RW, "file/")),
        no("path_unlink_file", "`..`", Isdir, |g| g.unlink(RW, "dir/..")),
        no("path_unlink_file", "a file outside", NotCapable, |g| g.unlink(RW, "../outside/secret")),
        no("path_unlink_file", "a file outside, by a link to its directory", NotCapable, |g| g.unlink(RW, "outdir/secret")),
        no("path_unlink_file", "beneath a read-only preopen", Rofs, |g| g.unlink(RO, "file")),

        ok("poll_oneoff", "a clock that is due", |g| g.poll(0, clockid::MONOTONIC, 0, 0)),
        ok("poll_oneoff", "a time that has passed", |g| g.poll(0, clockid::REALTIME, 1, 1)),
        ok("poll_oneoff", "a file to read", |g| { let fd = g.file(); g.poll(1, fd, 0, 0) }),
        ok("poll_oneoff", "standard input, which reading may then wait for", |g| g.poll(1, STDIN, 0, 0)),
        ok("poll_oneoff", "standard output to write", |g| g.poll(2, STDOUT, 0, 0)),
        no("poll_oneoff", "(event) a descriptor that is not open", Badf, |g| g.poll(1, CLOSED, 0, 0)),
        no("poll_oneoff", "(event) a directory", Isdir, |g| g.poll(1, RW, 0, 0)),
        no("poll_oneoff", "(event) no right", NotCapable, |g| { let fd = powerless(g); g.poll(1, fd, 0, 0) }),
        no("poll_oneoff", "(event) an unknown clock", Inval, |g| g.poll(0, 9, 0, 0)),
        no("poll_oneoff", "(event) a clock of CPU time", NotSup, |g| g.poll(0, clockid::THREAD_CPUTIME, 0, 0)),
        no("poll_oneoff", "(event) an unknown flag", Inval, |g| g.poll(0, clockid::REALTIME, 0, 2)),
        no("poll_oneoff", "an unknown kind", Inval, |g| g.poll(3, 0, 0, 0)),
        no("poll_oneoff", "nothing to wait for", Inval, |g| g.wasi.poll_oneoff(&mut g.mem, 64, 64, 0, OUT)),
        no("poll_oneoff", "more than 1024 subscriptions", Inval, |g| g.wasi.poll_oneoff(&mut g.mem, 64, 64, MAX_SUBSCRIPTIONS + 1, OUT)),
        no("poll_oneoff", "a list that ends outside", Efault, |g| g.wasi.poll_oneoff(&mut g.mem, BEYOND, 64, 1, OUT)),
        no("poll_oneoff", "events that end outside", Efault, |g| g.wasi.poll_oneoff(&mut g.mem, 64, BEYOND, 1, OUT)),

        Case { call: "proc_exit", given: "a code", expected: Err(Fault::Exit(3)), run: |g| g.wasi.proc_exit(&mut g.mem, 3) },
        no("proc_raise", "any signal", Nosys, |g| g.wasi.proc_raise(&mut g.mem, 9)),
        ok("random_get", "room", |g| g.wasi.random_get(&mut g.mem, OUT, 256)),
        no("random_get", "a buffer that ends outside", Efault, |g| g.wasi.random_get(&mut g.mem, BEYOND, 4)),
        ok("sched_yield", "nothing", |g| g.wasi.sched_yield(&mut g.mem)),

        no("sock_accept", "an open descriptor", NotSock, |g| g.wasi.sock_accept(&mut g.mem, STDIN, 0, OUT)),
        no("sock_accept", "one that is not open", Badf, |g| g.wasi.sock_accept(&mut g.mem, CLOSED, 0, OUT)),
        no("sock_recv", "an open descriptor", NotSock, |g| g.wasi.sock_recv(&mut g.mem, STDIN, 0, 0, 0, OUT, OUT)),
        no("sock_send", "an open descriptor", NotSock, |g| g.wasi.sock_send(&mut g.mem, STDOUT, 0, 0, 0, OUT)),
        no("sock_shutdown", "an open descriptor", NotSock, |g| g.wasi.sock_shutdown(&mut g.mem, STDOUT, 1)),
        no("sock_shutdown", "one that is not open", Badf, |g| g.wasi.sock_shutdown(&mut g.mem, CLOSED, 1)),
    ]
}

#[test]
fn every_call_answers_as_the_table_says() {
    let mut wrong = Vec::new();
    for case in cases() {
        let got = (case.run)(&mut Guest::new());
        if got != case.expected {
            wrong.push(format!(
                "{} given {}: {got:?}, not {:?}",
                case.call, case.given, case.expected
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn every_call_of_preview_1_is_in_the_table() {
    let known: BTreeSet<_> = CALLS.iter().map(|call| call.name).collect();
    let tested: BTreeSet<_> = cases().iter().map(|case| case.call).collect();
    assert_eq!(known, tested);
    assert_eq!(46, CALLS.len());
}

fn answer(expected: Result<(), Fault>) -> String {
    match expected {
        Ok(()) => "ok".to_owned(),
        Err(Fault::Errno(errno)) => format!("E{}", format!("{errno:?}").to_uppercase()),
        Err(fault) => format!("ends: {fault:?}"),
    }
}

fn markdown() -> String {
    let mut out = String::from("| call | what | given → answer |\n|---|---|---|\n");
    let cases = cases();
    for call in CALLS {
        let what = match call.status {
            Status::Implemented => call.summary.to_owned(),
            Status::Refused { why, .. } => format!("{} (**refused**: {why})", call.summary),
        };
        let answers: Vec<String> = cases
            .iter()
            .filter(|case| case.call == call.name)
            .map(|case| format!("{} → {}", case.given, answer(case.expected)))
            .collect();
        writeln!(out, "| `{}` | {what} | {} |", call.name, answers.join("; ")).unwrap();
    }
    out
}

#[test]
fn the_readme_shows_this_table() {
    const BEGIN: &str = "<!-- table: made by tests/table.rs -->\n";
    const END: &str = "<!-- end of table -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", markdown())).unwrap();
        return;
    }
    assert_eq!(markdown(), table, "write it anew with UPDATE_README=1");
}
