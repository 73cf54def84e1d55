//! The calls that exist so that modules importing them link, and are refused: sockets and signals.

use crate::Wasi;
use crate::abi::Errno;
use crate::config::{Fault, Stdio};

impl<S: Stdio> Wasi<S> {
    /// `Nosys`: a guest has no signals.
    pub fn proc_raise(&mut self, _mem: &mut [u8], _signal: u32) -> Result<(), Fault> {
        Err(Errno::Nosys.into())
    }

    /// `Badf`, or `NotSock`: no descriptor ever is one.
    pub fn sock_accept(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        _flags: u32,
        _opened: u32,
    ) -> Result<(), Fault> {
        self.no_socket(fd)
    }

    /// As `sock_accept`.
    // The signature is preview 1's.
    #[allow(clippy::too_many_arguments)]
    pub fn sock_recv(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        _iovs: u32,
        _iovs_len: u32,
        _flags: u32,
        _nread: u32,
        _out_flags: u32,
    ) -> Result<(), Fault> {
        self.no_socket(fd)
    }

    /// As `sock_accept`.
    pub fn sock_send(
        &mut self,
        _mem: &mut [u8],
        fd: u32,
        _iovs: u32,
        _iovs_len: u32,
        _flags: u32,
        _nwritten: u32,
    ) -> Result<(), Fault> {
        self.no_socket(fd)
    }

    /// As `sock_accept`.
    pub fn sock_shutdown(&mut self, _mem: &mut [u8], fd: u32, _how: u32) -> Result<(), Fault> {
        self.no_socket(fd)
    }

    fn no_socket(&self, fd: u32) -> Result<(), Fault> {
        self.table.get(fd)?;
        Err(Errno::NotSock.into())
    }
}
