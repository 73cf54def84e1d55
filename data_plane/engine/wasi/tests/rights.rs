//! Each right is needed for its call, and giving it up refuses that call.

mod support;

use agentfactory_wasi::abi::{oflags, rights};
use agentfactory_wasi::{Errno, Fault};
use support::{Guest, OUT, READ, RW};

fn errno<T>(errno: Errno) -> Result<T, Fault> {
    Err(Fault::Errno(errno))
}

type Attempt = fn(&mut Guest, u32) -> Result<(), Fault>;

fn each_right_is_needed(cases: &[(u64, Attempt)], full: u64, open: fn(&mut Guest) -> u32) {
    for (right, attempt) in cases {
        let (mut guest, mut lesser) = (Guest::new(), Guest::new());
        let (fd, lesser_fd) = (open(&mut guest), open(&mut lesser));
        let inheriting = if fd == RW { rights::INHERITABLE } else { 0 };
        let mem = &mut lesser.mem;
        lesser
            .wasi
            .fd_fdstat_set_rights(mem, lesser_fd, full & !right, inheriting)
            .unwrap();
        assert_eq!(Ok(()), attempt(&mut guest, fd), "{right:#x}");
        assert_eq!(
            errno(Errno::NotCapable),
            attempt(&mut lesser, lesser_fd),
            "{right:#x}"
        );
    }
}

#[test]
fn each_right_to_a_directory_is_needed_for_its_call() {
    let cases: [(u64, Attempt); 16] = [
        (rights::PATH_CREATE_DIRECTORY, |g, fd| g.mkdir(fd, "new")),
        (rights::PATH_CREATE_FILE, |g, fd| {
            g.open(fd, "new", oflags::CREAT, READ).map(|_| ())
        }),
        (rights::PATH_LINK_SOURCE, |g, fd| {
            g.link(fd, "file", fd, "new")
        }),
        (rights::PATH_LINK_TARGET, |g, fd| {
            g.link(fd, "file", fd, "new")
        }),
        (rights::PATH_OPEN, |g, fd| {
            g.open(fd, "file", 0, READ).map(|_| ())
        }),
        (rights::FD_READDIR, |g, fd| {
            g.wasi.fd_readdir(&mut g.mem, fd, 64, 64, 0, OUT)
        }),
        (rights::PATH_READLINK, |g, fd| {
            g.readlink(fd, "link", 64).map(|_| ())
        }),
        (rights::PATH_RENAME_SOURCE, |g, fd| {
            g.rename(fd, "file", fd, "new")
        }),
        (rights::PATH_RENAME_TARGET, |g, fd| {
            g.rename(fd, "file", fd, "new")
        }),
        (rights::PATH_FILESTAT_GET, |g, fd| g.stat(fd, 1, "file")),
        (rights::PATH_FILESTAT_SET_SIZE, |g, fd| {
            g.open(fd, "file", oflags::TRUNC, READ).map(|_| ())
        }),
        (rights::PATH_FILESTAT_SET_TIMES, |g, fd| {
            g.set_times(fd, "file", 4)
        }),
        (rights::PATH_SYMLINK, |g, fd| g.symlink("file", fd, "new")),
        (rights::PATH_REMOVE_DIRECTORY, |g, fd| g.rmdir(fd, "empty")),
        (rights::PATH_UNLINK_FILE, |g, fd| g.unlink(fd, "file")),
        (rights::FD_FILESTAT_GET, |g, fd| {
            g.wasi.fd_filestat_get(&mut g.mem, fd, OUT)
        }),
    ];
    each_right_is_needed(&cases, rights::DIRECTORY, |_| RW);
}

#[test]
fn each_right_to_a_file_is_needed_for_its_call() {
    let cases: [(u64, Attempt); 14] = [
        (rights::FD_DATASYNC, |g, fd| {
            g.wasi.fd_datasync(&mut g.mem, fd)
        }),
        (rights::FD_SYNC, |g, fd| g.wasi.fd_sync(&mut g.mem, fd)),
        (rights::FD_READ, |g, fd| g.read(fd, 1).map(|_| ())),
        (rights::FD_WRITE, |g, fd| g.write(fd, b"x").map(|_| ())),
        (rights::FD_READ, |g, fd| {
            g.wasi.fd_pread(&mut g.mem, fd, 0, 0, 0, OUT)
        }),
        (rights::FD_WRITE, |g, fd| {
            g.wasi.fd_pwrite(&mut g.mem, fd, 0, 0, 0, OUT)
        }),
        (rights::FD_SEEK, |g, fd| {
            g.wasi.fd_seek(&mut g.mem, fd, 1, 0, OUT)
        }),
        (rights::FD_SEEK | rights::FD_TELL, |g, fd| {
            g.wasi.fd_tell(&mut g.mem, fd, OUT)
        }),
        (rights::FD_FDSTAT_SET_FLAGS, |g, fd| {
            g.wasi.fd_fdstat_set_flags(&mut g.mem, fd, 1)
        }),
        (rights::FD_ADVISE, |g, fd| {
            g.wasi.fd_advise(&mut g.mem, fd, 0, 0, 0)
        }),
        (rights::FD_ALLOCATE, |g, fd| {
            g.wasi.fd_allocate(&mut g.mem, fd, 0, 1)
        }),
        (rights::FD_FILESTAT_SET_SIZE, |g, fd| {
            g.wasi.fd_filestat_set_size(&mut g.mem, fd, 1)
        }),
        (rights::FD_FILESTAT_SET_TIMES, |g, fd| {
            g.wasi.fd_filestat_set_times(&mut g.mem, fd, 1, 1, 1)
        }),
        (rights::POLL_FD_READWRITE, |g, fd| g.poll(1, fd, 0, 0)),
    ];
    each_right_is_needed(&cases, rights::FILE, Guest::file);
}
