//! WASI snapshot preview 1 over `openat2`, free of any WebAssembly engine.
//!
//! Owns what a guest may reach: its standard streams, clock, randomness and the directories handed to it. Never opens an
//! absolute host path, a socket or a process, and never holds guest memory beyond one call.

#![forbid(unsafe_code)]

pub mod abi;
mod calls;
mod config;

pub use abi::Errno;
pub use calls::{CALLS, Call, MODULE, Status, ValType};
pub use config::{
    ClockMode, Config, ConfigError, Fault, LimitName, Limits, Preopen, RandomMode, Stdio, Usage,
};

pub struct Wasi<S: Stdio> {
    stdio: S,
    config: Config,
    usage: Usage,
}

impl<S: Stdio> Wasi<S> {
    pub fn new(config: Config, stdio: S) -> Result<Self, ConfigError> {
        Ok(Self {
            stdio,
            config,
            usage: Usage::default(),
        })
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    pub fn refused_limit(&self) -> Option<LimitName> {
        None
    }

    pub fn stdio_mut(&mut self) -> &mut S {
        &mut self.stdio
    }

    pub fn into_stdio(self) -> S {
        self.stdio
    }
    pub fn args_get(&mut self, mem: &mut [u8], argv: u32, argv_buf: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn args_sizes_get(&mut self, mem: &mut [u8], count: u32, size: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn environ_get(
        &mut self,
        mem: &mut [u8],
        environ: u32,
        environ_buf: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn environ_sizes_get(
        &mut self,
        mem: &mut [u8],
        count: u32,
        size: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn clock_res_get(&mut self, mem: &mut [u8], id: u32, resolution: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn clock_time_get(
        &mut self,
        mem: &mut [u8],
        id: u32,
        precision: u64,
        time: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_advise(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        offset: u64,
        len: u64,
        advice: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_allocate(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        offset: u64,
        len: u64,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_close(&mut self, mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_datasync(&mut self, mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_fdstat_get(&mut self, mem: &mut [u8], fd: u32, stat: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_fdstat_set_flags(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        flags: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_fdstat_set_rights(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        base: u64,
        inheriting: u64,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_filestat_get(&mut self, mem: &mut [u8], fd: u32, stat: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_filestat_set_size(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        size: u64,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_filestat_set_times(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        atim: u64,
        mtim: u64,
        fst_flags: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_pread(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        offset: u64,
        nread: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_prestat_get(&mut self, mem: &mut [u8], fd: u32, prestat: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_prestat_dir_name(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_pwrite(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        offset: u64,
        nwritten: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_read(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        nread: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_readdir(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        buf: u32,
        buf_len: u32,
        cookie: u64,
        used: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_renumber(&mut self, mem: &mut [u8], from: u32, to: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_seek(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        offset: i64,
        whence: u32,
        position: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_sync(&mut self, mem: &mut [u8], fd: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_tell(&mut self, mem: &mut [u8], fd: u32, position: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn fd_write(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        nwritten: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_create_directory(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_filestat_get(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        flags: u32,
        path: u32,
        path_len: u32,
        stat: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_filestat_set_times(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        flags: u32,
        path: u32,
        path_len: u32,
        atim: u64,
        mtim: u64,
        fst_flags: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_link(
        &mut self,
        mem: &mut [u8],
        old_fd: u32,
        old_flags: u32,
        old_path: u32,
        old_path_len: u32,
        new_fd: u32,
        new_path: u32,
        new_path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_open(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        dirflags: u32,
        path: u32,
        path_len: u32,
        oflags: u32,
        rights_base: u64,
        rights_inheriting: u64,
        fdflags: u32,
        opened: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_readlink(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
        buf: u32,
        buf_len: u32,
        used: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_remove_directory(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_rename(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        old_path: u32,
        old_path_len: u32,
        new_fd: u32,
        new_path: u32,
        new_path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_symlink(
        &mut self,
        mem: &mut [u8],
        old_path: u32,
        old_path_len: u32,
        fd: u32,
        new_path: u32,
        new_path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn path_unlink_file(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        path: u32,
        path_len: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn poll_oneoff(
        &mut self,
        mem: &mut [u8],
        subscriptions: u32,
        events: u32,
        count: u32,
        stored: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn proc_exit(&mut self, mem: &mut [u8], code: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn proc_raise(&mut self, mem: &mut [u8], signal: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn random_get(&mut self, mem: &mut [u8], buf: u32, buf_len: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn sched_yield(&mut self, mem: &mut [u8]) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn sock_accept(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        flags: u32,
        opened: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn sock_recv(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        flags: u32,
        nread: u32,
        out_flags: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn sock_send(
        &mut self,
        mem: &mut [u8],
        fd: u32,
        iovs: u32,
        iovs_len: u32,
        flags: u32,
        nwritten: u32,
    ) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
    pub fn sock_shutdown(&mut self, mem: &mut [u8], fd: u32, how: u32) -> Result<(), Fault> {
        let _ = mem;
        Err(Errno::Nosys.into())
    }
}
