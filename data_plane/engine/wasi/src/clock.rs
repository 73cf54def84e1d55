//! The clocks of a guest, real or deterministic.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

use crate::abi::{Errno, clockid};
use crate::config::ClockMode;

/// Where the monotonic clock starts. Not zero, which some language runtimes take for a broken clock.
pub const MONOTONIC_START_NS: u64 = 1_000_000_000;

const NS_PER_S: u64 = 1_000_000_000;

#[derive(Debug)]
pub enum Clock {
    /// `origin_ns` is the host's monotonic time at the start of the guest, which is not told how long the machine is up.
    Real { origin_ns: u64 },
    Deterministic {
        start_ns: u64,
        tick_ns: u64,
        elapsed_ns: u64,
    },
}

/// Nanoseconds of a host time; before 1970 counts as 1970, after 2554 as 2554.
pub fn timespec_ns(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(NS_PER_S).saturating_add(nanoseconds)
}

/// A host time of nanoseconds.
pub fn ns_timespec(ns: u64) -> Timespec {
    // Both fit: u64::MAX / 10^9 is below 2^35.
    Timespec {
        tv_sec: (ns / NS_PER_S) as i64,
        tv_nsec: (ns % NS_PER_S) as _,
    }
}

impl Clock {
    pub fn new(mode: ClockMode) -> Self {
        match mode {
            ClockMode::Real => Self::Real {
                origin_ns: timespec_ns(clock_gettime(ClockId::Monotonic)),
            },
            ClockMode::Deterministic { start_ns, tick_ns } => Self::Deterministic {
                start_ns,
                tick_ns,
                elapsed_ns: 0,
            },
        }
    }

    /// The time of a clock. A deterministic clock moves on by one tick for it.
    ///
    /// # Errors
    /// `Inval` for a clock that does not exist.
    pub fn read(&mut self, id: u32) -> Result<u64, Errno> {
        host_clock(id)?;
        if let Self::Deterministic {
            tick_ns,
            elapsed_ns,
            ..
        } = self
        {
            *elapsed_ns = elapsed_ns.saturating_add(*tick_ns);
        }
        self.peek(id)
    }

    /// The time of a clock, without a tick.
    pub fn peek(&self, id: u32) -> Result<u64, Errno> {
        let host = host_clock(id)?;
        Ok(match self {
            Self::Real { origin_ns } => {
                let now_ns = timespec_ns(clock_gettime(host));
                if id == clockid::MONOTONIC {
                    now_ns
                        .saturating_sub(*origin_ns)
                        .saturating_add(MONOTONIC_START_NS)
                } else {
                    now_ns
                }
            }
            Self::Deterministic {
                start_ns,
                elapsed_ns,
                ..
            } => match id {
                clockid::REALTIME => start_ns.saturating_add(*elapsed_ns),
                clockid::MONOTONIC => MONOTONIC_START_NS.saturating_add(*elapsed_ns),
                _ => *elapsed_ns,
            },
        })
    }

    /// Where realtime starts, if the clock is not the machine's.
    pub fn start_ns(&self) -> Option<u64> {
        match self {
            Self::Real { .. } => None,
            Self::Deterministic { start_ns, .. } => Some(*start_ns),
        }
    }

    /// The resolution of a clock, at least 1.
    ///
    /// # Errors
    /// `Inval` for a clock that does not exist.
    pub fn resolution(&self, id: u32) -> Result<u64, Errno> {
        let host = host_clock(id)?;
        let resolution_ns = match self {
            Self::Real { .. } => timespec_ns(clock_getres(host)),
            Self::Deterministic { tick_ns, .. } => *tick_ns,
        };
        Ok(resolution_ns.max(1))
    }

    /// Waits. There is no bound here: wall clock time is the watchdog's, which ends the process.
    /// A deterministic clock jumps instead.
    pub fn sleep(&mut self, wait_ns: u64) {
        match self {
            Self::Real { .. } => std::thread::sleep(Duration::from_nanos(wait_ns)),
            Self::Deterministic { elapsed_ns, .. } => {
                *elapsed_ns = elapsed_ns.saturating_add(wait_ns);
            }
        }
    }
}

/// A guest is one thread: its process' CPU time is that thread's, and not what the worker used before it.
fn host_clock(id: u32) -> Result<ClockId, Errno> {
    match id {
        clockid::REALTIME => Ok(ClockId::Realtime),
        clockid::MONOTONIC => Ok(ClockId::Monotonic),
        clockid::PROCESS_CPUTIME | clockid::THREAD_CPUTIME => Ok(ClockId::ThreadCPUTime),
        _ => Err(Errno::Inval),
    }
}
