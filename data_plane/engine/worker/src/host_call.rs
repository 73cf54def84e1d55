//! `agentfactory.call`: hands a guest's request to the parent and its answer back, and counts. Reads neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentfactory_wasi::{Fault, Wasi};

use crate::frames::Kind;
use crate::guest::{Input, refuse};
use crate::messages::RunLimits;
use crate::wasi::{GuestStdio, Unwind};
use crate::watchdog::{Shared, end, exit};

/// A request above this is answered here, and not forwarded.
pub const MAX_REQUEST_BYTES: usize = 512 * 1024;
/// The parent answers with no more.
pub const MAX_RESPONSE_BYTES: usize = 768 * 1024;
const LENGTH_BYTES: usize = 4;
const TOO_LARGE: &[u8] =
    br#"{"error":{"message":"a request has at most 524288 bytes","reason":"REQUEST_TOO_LARGE"}}"#;

/// What the host calls of one run may come to together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub calls: u32,
    pub bytes: u64,
    pub wait: Duration,
}

impl From<&RunLimits> for Limits {
    fn from(limits: &RunLimits) -> Self {
        Self {
            calls: limits.host_calls,
            bytes: limits.host_call_bytes,
            wait: Duration::from_millis(limits.host_call_ms),
        }
    }
}

/// What the host calls of the running guest came to. Written by the guest thread, read by the watchdog too.
#[derive(Debug, Default)]
pub struct Counts {
    calls: AtomicU32,
    bytes: AtomicU64,
    waited_us: AtomicU64,
}

impl Counts {
    /// Begin a run.
    pub fn reset(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.waited_us.store(0, Ordering::Relaxed);
    }

    /// Calls, bytes of requests and responses, and microseconds waited.
    #[must_use]
    pub fn used(&self) -> (u32, u64, u64) {
        (
            self.calls.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
            self.waited_us.load(Ordering::Relaxed),
        )
    }
}

/// What the parent said to a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// What goes to the guest's log before it goes on; counts as its own.
    pub log: Vec<u8>,
    pub response: Vec<u8>,
}

impl Reply {
    /// The payload of a `host_reply`: u32 little-endian length of the log, the log, the response.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (length, rest) = payload.split_at_checked(LENGTH_BYTES)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let (log, response) = rest.split_at_checked(length)?;
        (response.len() <= MAX_RESPONSE_BYTES).then(|| Self {
            log: log.to_vec(),
            response: response.to_vec(),
        })
    }
}

/// An answer that did not fit the guest's buffer.
struct Kept {
    request: Vec<u8>,
    response: Vec<u8>,
}

/// The host calls of one run.
pub struct HostCalls {
    input: Input,
    shared: Arc<Shared>,
    limits: Limits,
    kept: Option<Kept>,
}

impl HostCalls {
    #[must_use]
    pub fn new(stdio: &GuestStdio, limits: Limits) -> Self {
        Self {
            input: stdio.input.clone(),
            shared: Arc::clone(&stdio.shared),
            limits,
            kept: None,
        }
    }

    /// Answer the request at `[ptr, ptr + len)` into `[to, to + cap)` and return the answer's length. When it does not
    /// fit, nothing is copied, and the same request asked next gets the same answer: the call is not repeated. Only one
    /// that is too large to be forwarded counts each time.
    ///
    /// # Errors
    /// A range is not in the memory, or a limit is passed: the guest must not run on.
    pub fn call(
        &mut self,
        wasi: &mut Wasi<GuestStdio>,
        memory: &mut [u8],
        (ptr, len): (u32, u32),
        (to, cap): (u32, u32),
    ) -> Result<u32, Unwind> {
        let range = |start: u32, len: u32| start as usize..start as usize + len as usize;
        let request = memory.get(range(ptr, len)).ok_or(Unwind::HostCallFault)?;
        if memory.get(range(to, cap)).is_none() {
            return Err(Unwind::HostCallFault);
        }
        let response = match self.kept.take().filter(|kept| kept.request == request) {
            Some(kept) => kept.response,
            None => self.answer(wasi, request)?,
        };
        let size = u32::try_from(response.len()).expect("less than a frame");
        if size <= cap {
            memory[range(to, size)].copy_from_slice(&response);
        } else if len as usize <= MAX_REQUEST_BYTES {
            // To keep a larger one would take the guest's memory again, for an answer that costs nothing.
            let request = memory[range(ptr, len)].to_vec();
            self.kept = Some(Kept { request, response });
        }
        Ok(size)
    }

    fn answer(&self, wasi: &mut Wasi<GuestStdio>, request: &[u8]) -> Result<Vec<u8>, Unwind> {
        let counts = &self.shared.calls;
        if counts.calls.load(Ordering::Relaxed) >= self.limits.calls {
            return Err(Unwind::Killed("host_calls"));
        }
        counts.calls.fetch_add(1, Ordering::Relaxed);
        if request.len() > MAX_REQUEST_BYTES {
            return Ok(TOO_LARGE.to_vec());
        }
        self.count_bytes(request.len())?;
        let waited = Duration::from_micros(counts.waited_us.load(Ordering::Relaxed));
        let left = self.limits.wait.saturating_sub(waited);
        if left.is_zero() {
            return Err(Unwind::Killed("host_call_ms"));
        }
        let started = Instant::now();
        self.ask(wasi, request);
        let reply = self.input.reply(&self.shared, started + left);
        let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.waited_us.fetch_add(took, Ordering::Relaxed);
        let reply = reply.ok_or(Unwind::Killed("host_call_ms"))?;
        self.count_bytes(reply.response.len())?;
        match wasi.write_log(&reply.log) {
            Ok(()) => Ok(reply.response),
            Err(Fault::Limit(limit)) => Err(Unwind::Limit(limit)),
            Err(_) => end(exit::PROTOCOL),
        }
    }

    /// Bytes that would pass the limit are not counted as used: nothing came of them.
    fn count_bytes(&self, size: usize) -> Result<(), Unwind> {
        let bytes = &self.shared.calls.bytes;
        let used = bytes.load(Ordering::Relaxed).saturating_add(size as u64);
        if used > self.limits.bytes {
            return Err(Unwind::Killed("host_call_bytes"));
        }
        bytes.store(used, Ordering::Relaxed);
        Ok(())
    }

    /// Send what was used until now, as JSON behind its length, and then the guest's exact bytes.
    fn ask(&self, wasi: &Wasi<GuestStdio>, request: &[u8]) {
        let mut output = self.shared.output();
        let (wall, cpu) = self.shared.elapsed();
        let mut used = self.shared.resources(&output, wall, cpu);
        used.add(&wasi.usage());
        let used = serde_json::to_vec(&used).expect("plain numbers serialize");
        let length = u32::try_from(used.len()).expect("a short object");
        output.send(Kind::HostCall, &[&length.to_le_bytes(), &used, request]);
        if output.flush().is_err() {
            end(exit::PROTOCOL);
        }
    }
}

/// Read a reply, or tell the parent that it sent none.
pub fn parse_reply(payload: &[u8], shared: &Shared) -> Reply {
    match Reply::parse(payload) {
        Some(reply) => reply,
        None => refuse(
            &mut shared.output(),
            format!("a host_reply of {} bytes that is none", payload.len()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_its_log_and_its_response() {
        let reply = Reply::parse(b"\x02\0\0\0a\n{}").expect("a reply");
        assert_eq!(
            (reply.log.as_slice(), reply.response.as_slice()),
            (b"a\n".as_slice(), b"{}".as_slice())
        );
        for broken in [
            b"".as_slice(),
            b"\x01\0\0",
            b"\x05\0\0\0abcd",
            b"\xff\xff\xff\xff",
        ] {
            assert_eq!(Reply::parse(broken), None);
        }
        let largest = vec![0; LENGTH_BYTES + MAX_RESPONSE_BYTES];
        assert!(Reply::parse(&largest).is_some());
        assert!(Reply::parse(&[largest, vec![0]].concat()).is_none());
    }
}
