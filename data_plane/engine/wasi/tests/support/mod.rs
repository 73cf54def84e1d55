//! A guest without an engine: memory, descriptors and a directory with one of everything, for the tests of this crate.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use agentfactory_wasi::abi::{oflags, rights};
use agentfactory_wasi::{
    ClockMode, Config, Errno, Fault, Limits, Preopen, RandomMode, Stdio, Wasi,
};
use rustix::fs::{CWD, Mode, OFlags};

pub const MEMORY_BYTES: usize = 2 * 65_536;

/// Where results go; strings and lists are laid out behind it.
pub const OUT: u32 = 16;
const FIRST_FREE: u32 = 4096;

/// A pointer whose first byte is memory and whose fourth is not.
pub const BEYOND: u32 = MEMORY_BYTES as u32 - 2;

/// The preopens of a [`Guest`]: the same tree, the second one read-only.
pub const RW: u32 = 3;
pub const RO: u32 = 4;

/// Every right, those of sockets and those that do not exist included: what careless programs ask for.
pub const ALL_RIGHTS: u64 = u64::MAX;
pub const READ: u64 = rights::FILE & !rights::MUTATING;
pub const READ_WRITE: u64 = rights::FILE;

/// A directory that goes away with the test.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentfactory-wasi-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // A crashed run of the same process number may have left one.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Standard streams in memory.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdin: Vec<u8>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Bytes taken by one call, to see that the rest is offered again; 0 is no bound.
    pub take_bytes: usize,
}

impl Streams {
    fn take(&self, data: &[u8]) -> usize {
        if self.take_bytes == 0 {
            data.len()
        } else {
            data.len().min(self.take_bytes)
        }
    }
}

impl Stdio for Streams {
    fn read_stdin(&mut self, buf: &mut [u8]) -> Result<usize, Errno> {
        let count = buf.len().min(self.stdin.len());
        for (to, from) in buf.iter_mut().zip(self.stdin.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn write_stdout(&mut self, data: &[u8]) -> Result<usize, Errno> {
        let count = self.take(data);
        self.stdout.extend_from_slice(&data[..count]);
        Ok(count)
    }

    fn write_stderr(&mut self, data: &[u8]) -> Result<usize, Errno> {
        let count = self.take(data);
        self.stderr.extend_from_slice(&data[..count]);
        Ok(count)
    }
}

/// One of everything: files, directories, links that lead in, out, nowhere and in circles, a fifo and a socket.
pub fn plant(root: &Path) {
    use std::os::unix::fs::symlink;
    std::fs::create_dir(root).unwrap();
    std::fs::write(root.join("file"), "hello").unwrap();
    std::fs::create_dir_all(root.join("dir/nested")).unwrap();
    std::fs::write(root.join("dir/inner"), "inside").unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    symlink("file", root.join("link")).unwrap();
    symlink("dir", root.join("dirlink")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("../outside/secret", root.join("out")).unwrap();
    symlink("../outside", root.join("outdir")).unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
}

pub fn open_directory(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

pub fn config() -> Config {
    Config {
        args: vec![b"agent".to_vec(), b"--all".to_vec()],
        env: vec![b"KEY=value".to_vec()],
        preopens: Vec::new(),
        limits: Limits::default(),
        clock: ClockMode::Real,
        random: RandomMode::Os,
    }
}

#[derive(Debug)]
pub struct Guest {
    pub wasi: Wasi<Streams>,
    pub mem: Vec<u8>,
    pub temp: TempDir,
    free: u32,
}

impl Guest {
    /// Descriptor 3 is `/rw`, 4 is `/ro`; beside them on the host lies `outside/secret`.
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(mut config: Config) -> Self {
        let temp = TempDir::new();
        let outside = temp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        for (name, writable) in [("rw", true), ("ro", false)] {
            plant(&temp.path().join(name));
            let fd = open_directory(&temp.path().join(name));
            config.preopens.push(Preopen {
                fd,
                guest_path: format!("/{name}"),
                writable,
            });
        }
        let streams = Streams {
            stdin: b"typed".to_vec(),
            ..Streams::default()
        };
        let wasi = Wasi::new(config, streams).unwrap();
        Self {
            wasi,
            mem: vec![0; MEMORY_BYTES],
            temp,
            free: FIRST_FREE,
        }
    }

    /// The host's view of what the guest calls `/rw/...`.
    pub fn host(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    /// Forgets what was laid into the memory, for tests of many rounds.
    pub fn rewind(&mut self) {
        self.free = FIRST_FREE;
    }

    /// Lays bytes into the memory.
    pub fn put(&mut self, bytes: &[u8]) -> (u32, u32) {
        let (start, len) = (self.free, bytes.len() as u32);
        self.mem[start as usize..(start + len) as usize].copy_from_slice(bytes);
        self.free = (start + len).next_multiple_of(8);
        (start, len)
    }

    /// Lays a list of parts into the memory.
    pub fn iovs(&mut self, parts: &[(u32, u32)]) -> (u32, u32) {
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|(ptr, len)| [ptr.to_le_bytes(), len.to_le_bytes()].concat())
            .collect();
        (self.put(&bytes).0, parts.len() as u32)
    }

    pub fn u32_at(&self, ptr: u32) -> u32 {
        u32::from_le_bytes(self.bytes(ptr, 4).try_into().unwrap())
    }

    pub fn u64_at(&self, ptr: u32) -> u64 {
        u64::from_le_bytes(self.bytes(ptr, 8).try_into().unwrap())
    }

    pub fn bytes(&self, ptr: u32, len: u32) -> &[u8] {
        &self.mem[ptr as usize..(ptr + len) as usize]
    }

    /// `path_open` with these rights, handed on too, links followed.
    pub fn open(&mut self, fd: u32, path: &str, oflags: u32, rights: u64) -> Result<u32, Fault> {
        self.open_with(fd, 1, path, oflags, rights, 0)
    }

    pub fn open_with(
        &mut self,
        fd: u32,
        lookup: u32,
        path: &str,
        oflags: u32,
        rights: u64,
        fdflags: u32,
    ) -> Result<u32, Fault> {
        let (path, len) = self.put(path.as_bytes());
        let mem = &mut self.mem;
        self.wasi.path_open(
            mem, fd, lookup, path, len, oflags, rights, rights, fdflags, OUT,
        )?;
        Ok(self.u32_at(OUT))
    }

    /// A file with content, open for reading and writing at its beginning.
    pub fn file(&mut self) -> u32 {
        self.open(RW, "file", 0, READ_WRITE).unwrap()
    }

    /// A directory below the writable preopen, with all rights of one.
    pub fn dir(&mut self) -> u32 {
        self.open(RW, "dir", oflags::DIRECTORY, rights::DIRECTORY)
            .unwrap()
    }

    pub fn write(&mut self, fd: u32, data: &[u8]) -> Result<u32, Fault> {
        let part = self.put(data);
        let (iovs, count) = self.iovs(&[part]);
        self.wasi.fd_write(&mut self.mem, fd, iovs, count, OUT)?;
        Ok(self.u32_at(OUT))
    }

    pub fn read(&mut self, fd: u32, len: u32) -> Result<Vec<u8>, Fault> {
        let (ptr, _) = self.put(&vec![0; len as usize]);
        let (iovs, count) = self.iovs(&[(ptr, len)]);
        self.wasi.fd_read(&mut self.mem, fd, iovs, count, OUT)?;
        let got = self.u32_at(OUT);
        Ok(self.bytes(ptr, got).to_vec())
    }

    /// Names of a directory's entries, read through a buffer of this size.
    pub fn names(&mut self, fd: u32, buf_len: u32) -> Vec<String> {
        let (buf, _) = self.put(&vec![0; buf_len as usize]);
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            self.wasi
                .fd_readdir(&mut self.mem, fd, buf, buf_len, cookie, OUT)
                .unwrap();
            let used = self.u32_at(OUT);
            let (mut at, before) = (0, cookie);
            while at + 24 <= used {
                let len = self.u32_at(buf + at + 16);
                if at + 24 + len > used {
                    break;
                }
                cookie = self.u64_at(buf + at);
                let name = self.bytes(buf + at + 24, len).to_vec();
                names.push(String::from_utf8(name).unwrap());
                at += 24 + len;
            }
            if used < buf_len {
                return names;
            }
            assert_ne!(before, cookie, "the buffer is too small for one entry");
        }
    }

    /// A path call that takes only a directory and a path.
    pub fn path_call(&mut self, call: PathCall, fd: u32, path: &str) -> Result<(), Fault> {
        let (ptr, len) = self.put(path.as_bytes());
        call(&mut self.wasi, &mut self.mem, fd, ptr, len)
    }

    pub fn mkdir(&mut self, fd: u32, path: &str) -> Result<(), Fault> {
        self.path_call(Wasi::path_create_directory, fd, path)
    }

    pub fn rmdir(&mut self, fd: u32, path: &str) -> Result<(), Fault> {
        self.path_call(Wasi::path_remove_directory, fd, path)
    }

    pub fn unlink(&mut self, fd: u32, path: &str) -> Result<(), Fault> {
        self.path_call(Wasi::path_unlink_file, fd, path)
    }

    pub fn stat(&mut self, fd: u32, lookup: u32, path: &str) -> Result<(), Fault> {
        let (ptr, len) = self.put(path.as_bytes());
        self.wasi
            .path_filestat_get(&mut self.mem, fd, lookup, ptr, len, OUT)
    }

    pub fn set_times(&mut self, fd: u32, path: &str, flags: u32) -> Result<(), Fault> {
        let (ptr, len) = self.put(path.as_bytes());
        self.wasi
            .path_filestat_set_times(&mut self.mem, fd, 1, ptr, len, 1_000, 2_000, flags)
    }

    pub fn symlink(&mut self, target: &str, fd: u32, path: &str) -> Result<(), Fault> {
        let (target, target_len) = self.put(target.as_bytes());
        let (path, len) = self.put(path.as_bytes());
        self.wasi
            .path_symlink(&mut self.mem, target, target_len, fd, path, len)
    }

    pub fn readlink(&mut self, fd: u32, path: &str, buf_len: u32) -> Result<Vec<u8>, Fault> {
        let (ptr, len) = self.put(path.as_bytes());
        let (buf, _) = self.put(&vec![0; buf_len as usize]);
        self.wasi
            .path_readlink(&mut self.mem, fd, ptr, len, buf, buf_len, OUT)?;
        let used = self.u32_at(OUT);
        Ok(self.bytes(buf, used).to_vec())
    }

    pub fn rename(&mut self, fd: u32, old: &str, new_fd: u32, new: &str) -> Result<(), Fault> {
        let (old, old_len) = self.put(old.as_bytes());
        let (new, new_len) = self.put(new.as_bytes());
        self.wasi
            .path_rename(&mut self.mem, fd, old, old_len, new_fd, new, new_len)
    }

    pub fn link(&mut self, fd: u32, old: &str, new_fd: u32, new: &str) -> Result<(), Fault> {
        self.link_with(0, fd, old, new_fd, new)
    }

    pub fn link_with(
        &mut self,
        lookup: u32,
        fd: u32,
        old: &str,
        new_fd: u32,
        new: &str,
    ) -> Result<(), Fault> {
        let (old, old_len) = self.put(old.as_bytes());
        let (new, new_len) = self.put(new.as_bytes());
        self.wasi.path_link(
            &mut self.mem,
            fd,
            lookup,
            old,
            old_len,
            new_fd,
            new,
            new_len,
        )
    }

    /// One subscription: kind, descriptor or clock, timeout and flags.
    pub fn poll(&mut self, kind: u8, id: u32, timeout_ns: u64, flags: u16) -> Result<(), Fault> {
        let mut bytes = [0; 48];
        bytes[0..8].copy_from_slice(&77_u64.to_le_bytes());
        bytes[8] = kind;
        bytes[16..20].copy_from_slice(&id.to_le_bytes());
        bytes[24..32].copy_from_slice(&timeout_ns.to_le_bytes());
        bytes[40..42].copy_from_slice(&flags.to_le_bytes());
        let (subscriptions, _) = self.put(&bytes);
        let (events, _) = self.put(&[0xff; 32]);
        self.wasi
            .poll_oneoff(&mut self.mem, subscriptions, events, 1, OUT)?;
        assert_eq!(1, self.u32_at(OUT));
        assert_eq!(77, self.u64_at(events));
        match u16::from_le_bytes(self.bytes(events + 8, 2).try_into().unwrap()) {
            0 => Ok(()),
            // The event's own errno, told apart by the caller.
            code => Err(errno(u32::from(code)).into()),
        }
    }
}

pub type PathCall = fn(&mut Wasi<Streams>, &mut [u8], u32, u32, u32) -> Result<(), Fault>;

/// The errno with this code, of those the tests expect in events.
fn errno(code: u32) -> Errno {
    [
        Errno::Badf,
        Errno::Inval,
        Errno::Isdir,
        Errno::NotCapable,
        Errno::NotSup,
    ]
    .into_iter()
    .find(|errno| errno.code() == code)
    .unwrap()
}
