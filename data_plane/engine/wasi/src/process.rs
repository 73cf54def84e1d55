//! Arguments, environment, clocks, randomness and the end: the calls that touch no descriptor.

use crate::abi::Errno;
use crate::config::{ConfigError, Fault, LimitName, MAX_STRINGS_BYTES, Stdio};
use crate::{DEAR_BYTE, Wasi, memory};

/// Checks argument or environment strings before a run.
pub fn check_strings(strings: &[Vec<u8>]) -> Result<(), ConfigError> {
    if strings.iter().any(|entry| entry.contains(&0)) {
        return Err(ConfigError::NulByte);
    }
    let total: u64 = strings.iter().map(|entry| entry.len() as u64 + 1).sum();
    if total > u64::from(MAX_STRINGS_BYTES) {
        Err(ConfigError::TooLarge)
    } else {
        Ok(())
    }
}

/// Sizes of strings that `check_strings` accepted; both fit.
fn sizes(strings: &[Vec<u8>]) -> (u32, u32) {
    let total: usize = strings.iter().map(|entry| entry.len() + 1).sum();
    (strings.len() as u32, total as u32)
}

fn write_sizes(mem: &mut [u8], strings: &[Vec<u8>], count: u32, size: u32) -> Result<(), Errno> {
    let (number, total) = sizes(strings);
    memory::write_u32(mem, count, number)?;
    memory::write_u32(mem, size, total)
}

fn write_strings(mem: &mut [u8], strings: &[Vec<u8>], list: u32, buf: u32) -> Result<(), Errno> {
    let (number, total) = sizes(strings);
    memory::range(mem, list, u64::from(number) * 4)?;
    memory::range(mem, buf, u64::from(total))?;
    let (mut slot, mut at) = (list, buf);
    for entry in strings {
        // No overflow: both ranges were found inside the memory above.
        memory::write_u32(mem, slot, at)?;
        memory::write_bytes(mem, at, entry)?;
        at = at.wrapping_add(entry.len() as u32);
        memory::write_bytes(mem, at, &[0])?;
        at = at.wrapping_add(1);
        slot = slot.wrapping_add(4);
    }
    Ok(())
}

impl<S: Stdio> Wasi<S> {
    /// Writes a pointer to each argument at `argv` and the arguments, each ended by a zero byte, at `argv_buf`.
    pub fn args_get(&mut self, mem: &mut [u8], argv: u32, argv_buf: u32) -> Result<(), Fault> {
        self.usage.work += u64::from(sizes(&self.args).1);
        Ok(write_strings(mem, &self.args, argv, argv_buf)?)
    }

    /// Writes the number of arguments and the bytes they need.
    pub fn args_sizes_get(&mut self, mem: &mut [u8], count: u32, size: u32) -> Result<(), Fault> {
        Ok(write_sizes(mem, &self.args, count, size)?)
    }

    /// As `args_get`, for the environment.
    pub fn environ_get(
        &mut self,
        mem: &mut [u8],
        environ: u32,
        environ_buf: u32,
    ) -> Result<(), Fault> {
        self.usage.work += u64::from(sizes(&self.env).1);
        Ok(write_strings(mem, &self.env, environ, environ_buf)?)
    }

    /// As `args_sizes_get`, for the environment.
    pub fn environ_sizes_get(
        &mut self,
        mem: &mut [u8],
        count: u32,
        size: u32,
    ) -> Result<(), Fault> {
        Ok(write_sizes(mem, &self.env, count, size)?)
    }

    /// Writes the resolution of a clock in nanoseconds. `Inval` for an unknown clock.
    pub fn clock_res_get(&mut self, mem: &mut [u8], id: u32, resolution: u32) -> Result<(), Fault> {
        Ok(memory::write_u64(
            mem,
            resolution,
            self.clock.resolution(id)?,
        )?)
    }

    /// Writes the time of a clock in nanoseconds. `Inval` for an unknown clock. The precision asked for is not needed.
    pub fn clock_time_get(
        &mut self,
        mem: &mut [u8],
        id: u32,
        _precision: u64,
        time: u32,
    ) -> Result<(), Fault> {
        Ok(memory::write_u64(mem, time, self.clock.read(id)?)?)
    }

    /// Ends the guest.
    pub fn proc_exit(&mut self, _mem: &mut [u8], code: u32) -> Result<(), Fault> {
        Err(Fault::Exit(code))
    }

    /// Fills a buffer with random bytes. The limit on them is checked before any is given.
    pub fn random_get(&mut self, mem: &mut [u8], buf: u32, buf_len: u32) -> Result<(), Fault> {
        let out = memory::slice_mut(mem, buf, buf_len)?;
        let total = self.usage.random_bytes.saturating_add(u64::from(buf_len));
        if total > self.limits.max_random_bytes {
            return Err(Fault::Limit(LimitName::RandomBytes));
        }
        self.usage.work += u64::from(buf_len) * DEAR_BYTE;
        self.random.fill(out)?;
        self.usage.random_bytes = total;
        Ok(())
    }

    /// Lets other threads of the machine run.
    pub fn sched_yield(&mut self, _mem: &mut [u8]) -> Result<(), Fault> {
        std::thread::yield_now();
        Ok(())
    }
}
