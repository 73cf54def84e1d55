//! `poll_oneoff`: waiting for clocks. Descriptors are always ready: files do not block, and whether standard streams would
//! is known only by trying.

use rustix::fs::{SeekFrom, fstat, seek};

use crate::abi::{Errno, clockid, rights};
use crate::config::{Fault, Stdio};
use crate::table::{Entry, Resource};
use crate::{ASKING, Wasi, memory};

/// Subscriptions of one call.
pub const MAX_SUBSCRIPTIONS: u32 = 1024;

const SUBSCRIPTION_BYTES: usize = 48;
const EVENT_BYTES: usize = 32;

const EVENT_CLOCK: u8 = 0;
const EVENT_FD_READ: u8 = 1;
const EVENT_FD_WRITE: u8 = 2;

const ABSTIME: u16 = 1;

enum Wanted {
    /// Ready once this clock shows this time.
    Clock {
        id: u32,
        deadline_ns: u64,
    },
    Read {
        fd: u32,
    },
    Write {
        fd: u32,
    },
    /// Known to be an error as soon as it was read.
    Refused {
        event: u8,
        errno: Errno,
    },
}

struct Subscription {
    userdata: u64,
    wanted: Wanted,
}

struct Event {
    userdata: u64,
    event: u8,
    result: Result<u64, Errno>,
}

impl Event {
    fn encode(&self) -> [u8; EVENT_BYTES] {
        let mut out = [0; EVENT_BYTES];
        let (errno, bytes) = match self.result {
            Ok(bytes) => (0, bytes),
            Err(errno) => (errno as u16, 0),
        };
        out[0..8].copy_from_slice(&self.userdata.to_le_bytes());
        out[8..10].copy_from_slice(&errno.to_le_bytes());
        out[10] = self.event;
        out[16..24].copy_from_slice(&bytes.to_le_bytes());
        out
    }
}

impl<S: Stdio> Wasi<S> {
    /// Waits until one subscription at least is ready, and writes an event for each that is and their number.
    ///
    /// `Inval` for none, for more than [`MAX_SUBSCRIPTIONS`] and for an unknown kind. What is wrong with one subscription
    /// (its descriptor, right, clock or flags) is that event's error.
    pub fn poll_oneoff(
        &mut self,
        mem: &mut [u8],
        subscriptions: u32,
        events: u32,
        count: u32,
        stored: u32,
    ) -> Result<(), Fault> {
        if count == 0 || count > MAX_SUBSCRIPTIONS {
            return Err(Errno::Inval.into());
        }
        memory::range(mem, events, u64::from(count) * EVENT_BYTES as u64)?;
        memory::range(mem, stored, 4)?;
        self.usage.work += ASKING * u64::from(count);
        let wanted = self.read_subscriptions(mem, subscriptions, count)?;
        let mut ready = self.ready(&wanted);
        if ready.is_empty() {
            // Only clocks, and none of them due.
            self.clock.sleep(self.shortest_wait(&wanted)?);
            while ready.is_empty() {
                ready = self.ready(&wanted);
                if ready.is_empty() {
                    // The real time clock was set back, or a clock ran a little slower than the one slept by.
                    self.clock.sleep(self.shortest_wait(&wanted)?);
                }
            }
        }
        let bytes: Vec<u8> = ready.iter().flat_map(Event::encode).collect();
        memory::write_bytes(mem, events, &bytes)?;
        Ok(memory::write_u32(mem, stored, ready.len() as u32)?)
    }

    fn read_subscriptions(
        &mut self,
        mem: &[u8],
        ptr: u32,
        count: u32,
    ) -> Result<Vec<Subscription>, Errno> {
        let range = memory::range(mem, ptr, u64::from(count) * SUBSCRIPTION_BYTES as u64)?;
        let list = mem.get(range).ok_or(Errno::Fault)?;
        list.chunks_exact(SUBSCRIPTION_BYTES)
            .map(|bytes| self.subscription(bytes))
            .collect()
    }

    fn subscription(&mut self, bytes: &[u8]) -> Result<Subscription, Errno> {
        let userdata = u64::from_le_bytes(memory::field(bytes, 0)?);
        let [event] = memory::field(bytes, 8)?;
        let first = u32::from_le_bytes(memory::field(bytes, 16)?);
        let wanted = match event {
            EVENT_FD_READ => Wanted::Read { fd: first },
            EVENT_FD_WRITE => Wanted::Write { fd: first },
            EVENT_CLOCK => {
                let timeout_ns = u64::from_le_bytes(memory::field(bytes, 24)?);
                let flags = u16::from_le_bytes(memory::field(bytes, 40)?);
                match self.deadline(first, timeout_ns, flags) {
                    Ok(deadline_ns) => Wanted::Clock {
                        id: first,
                        deadline_ns,
                    },
                    Err(errno) => Wanted::Refused { event, errno },
                }
            }
            _ => return Err(Errno::Inval),
        };
        Ok(Subscription { userdata, wanted })
    }

    fn deadline(&self, id: u32, timeout_ns: u64, flags: u16) -> Result<u64, Errno> {
        if flags & !ABSTIME != 0 {
            return Err(Errno::Inval);
        }
        let now_ns = self.clock.peek(id)?;
        if id != clockid::REALTIME && id != clockid::MONOTONIC {
            // CPU time does not pass while waiting for it.
            return Err(Errno::NotSup);
        }
        Ok(if flags & ABSTIME != 0 {
            timeout_ns
        } else {
            now_ns.saturating_add(timeout_ns)
        })
    }

    fn ready(&self, wanted: &[Subscription]) -> Vec<Event> {
        wanted
            .iter()
            .filter_map(|subscription| {
                let (event, result) = match subscription.wanted {
                    Wanted::Clock { id, deadline_ns } => {
                        let now_ns = self.clock.peek(id).unwrap_or(u64::MAX);
                        (now_ns >= deadline_ns).then_some((EVENT_CLOCK, Ok(0)))?
                    }
                    Wanted::Read { fd } => (EVENT_FD_READ, self.readable(fd)),
                    Wanted::Write { fd } => (EVENT_FD_WRITE, self.writable(fd)),
                    Wanted::Refused { event, errno } => (event, Err(errno)),
                };
                Some(Event {
                    userdata: subscription.userdata,
                    event,
                    result,
                })
            })
            .collect()
    }

    fn shortest_wait(&self, wanted: &[Subscription]) -> Result<u64, Errno> {
        let mut shortest_ns = u64::MAX;
        for subscription in wanted {
            if let Wanted::Clock { id, deadline_ns } = subscription.wanted {
                let now_ns = self.clock.peek(id)?;
                shortest_ns = shortest_ns.min(deadline_ns.saturating_sub(now_ns));
            }
        }
        Ok(shortest_ns)
    }

    /// Bytes there are to read; 1 for standard input, of which that is not known.
    fn readable(&self, fd: u32) -> Result<u64, Errno> {
        let entry = self.pollable(fd, rights::FD_READ)?;
        let Resource::File(file) = &entry.resource else {
            return Ok(1);
        };
        let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        Ok(size.saturating_sub(seek(file, SeekFrom::Current(0))?))
    }

    /// Bytes that can be written; not known of anything.
    fn writable(&self, fd: u32) -> Result<u64, Errno> {
        self.pollable(fd, rights::FD_WRITE).map(|_| 1)
    }

    fn pollable(&self, fd: u32, needed: u64) -> Result<&Entry, Errno> {
        let entry = self.table.get(fd)?;
        if matches!(entry.resource, Resource::Directory(_)) {
            return Err(Errno::Isdir);
        }
        entry.require(rights::POLL_FD_READWRITE | needed)?;
        Ok(entry)
    }
}
