//! What the worker says: output frames, coalesced, and the outcome. One lock over buffer and socket, so that frames
//! never interleave, whoever of the two threads speaks.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;

use crate::frames::{FrameError, Kind, append_frame, send_all};

/// Output held back until it is worth a system call, the run ends, the guest waits for input, or the watchdog ticks.
pub const FLUSH_BYTES: usize = 64 * 1024;
/// Output frames of one send that keep the order between the two streams. A guest that alternates byte by byte must
/// not cost its parent a frame for each byte: beyond this, what waits becomes one frame of each stream.
const MAX_ORDERED_FRAMES: usize = 64;
const HEADER_BYTES: usize = 5;

/// A stream of the guest, by the number it has in an output frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Frames on their way to the parent.
pub struct Output {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// The output frame at the buffer's end that may still grow, and where it begins.
    open: Option<(Stream, usize)>,
    ordered_frames: usize,
    /// Output beyond the ordered frames, stdout and stderr.
    late: [Vec<u8>; 2],
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}

impl Output {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
            open: None,
            ordered_frames: 0,
            late: [Vec::new(), Vec::new()],
            stdout_bytes: 0,
            stderr_bytes: 0,
        }
    }

    /// Begin a run: nothing counted yet.
    pub fn reset(&mut self) {
        (self.stdout_bytes, self.stderr_bytes) = (0, 0);
    }

    /// Take what the guest wrote; sends when enough has gathered.
    ///
    /// # Errors
    /// The socket failed.
    pub fn write(&mut self, stream: Stream, data: &[u8]) -> Result<(), FrameError> {
        match stream {
            Stream::Stdout => self.stdout_bytes += data.len() as u64,
            Stream::Stderr => self.stderr_bytes += data.len() as u64,
        }
        for chunk in data.chunks(FLUSH_BYTES) {
            self.append(stream, chunk);
            if self.buffer.len() + self.late[0].len() + self.late[1].len() >= FLUSH_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn append(&mut self, stream: Stream, chunk: &[u8]) {
        let start = match self.open {
            Some((open, start)) if open == stream => start,
            _ if self.ordered_frames == MAX_ORDERED_FRAMES => {
                self.open = None;
                self.late[stream as usize - 1].extend_from_slice(chunk);
                return;
            }
            _ => {
                self.ordered_frames += 1;
                let start = self.buffer.len();
                append_frame(&mut self.buffer, Kind::Output, &[stream as u8]);
                self.open = Some((stream, start));
                start
            }
        };
        self.buffer.extend_from_slice(chunk);
        let size = self.buffer.len() - start - (HEADER_BYTES - 1);
        let size = u32::try_from(size).expect("two chunks at most");
        self.buffer[start..start + 4].copy_from_slice(&size.to_le_bytes());
    }

    /// Nothing gathered so far can grow any more.
    fn close_frames(&mut self) {
        self.open = None;
        self.ordered_frames = 0;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let late = std::mem::take(&mut self.late[stream as usize - 1]);
            for chunk in late.chunks(FLUSH_BYTES) {
                self.append(stream, chunk);
                self.open = None;
            }
        }
        self.ordered_frames = 0;
    }

    /// Append a frame with a JSON payload.
    pub fn say<Message: Serialize>(&mut self, kind: Kind, message: &Message) {
        self.close_frames();
        let payload = serde_json::to_vec(message).expect("plain strings and numbers serialize");
        append_frame(&mut self.buffer, kind, &payload);
    }

    /// Append a frame of several parts.
    ///
    /// # Panics
    /// They are larger than a frame.
    pub fn send(&mut self, kind: Kind, parts: &[&[u8]]) {
        self.close_frames();
        append_frame(&mut self.buffer, kind, &parts.concat());
    }

    /// Send everything; waits for the parent.
    ///
    /// # Errors
    /// The socket failed.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        self.close_frames();
        let sent = send_all(&self.socket, &self.buffer, &[]);
        self.buffer.clear();
        sent
    }

    /// Send as much as the parent takes within `patience`; the rest stays.
    ///
    /// # Errors
    /// The socket failed.
    pub fn flush_within(&mut self, patience: Duration) -> Result<(), FrameError> {
        self.close_frames();
        let deadline = Instant::now() + patience;
        while !self.buffer.is_empty() {
            match send(
                &self.socket,
                &self.buffer,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => drop(self.buffer.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(());
                    }
                    let left = Timespec::try_from(left).expect("a short duration");
                    let mut waiting = [PollFd::new(&self.socket, PollFlags::OUT)];
                    match poll(&mut waiting, Some(&left)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Forget what was not sent; for measurements without a parent.
    pub fn discard(&mut self) {
        self.close_frames();
        self.buffer.clear();
    }

    /// Whether anything waits to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::FrameReader;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn small_writes_of_one_stream_become_one_frame() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair");
        let mut output = Output::new(ours);
        for (stream, data) in [
            (Stream::Stdout, "a"),
            (Stream::Stdout, "b"),
            (Stream::Stderr, "c"),
        ] {
            output.write(stream, data.as_bytes()).expect("write");
        }
        output.flush().expect("flush");
        let mut reader = FrameReader::new(theirs);
        assert_eq!(
            reader.next_frame().expect("frame"),
            Some((Kind::Output, b"\x01ab".as_slice()))
        );
        assert_eq!(
            reader.next_frame().expect("frame"),
            Some((Kind::Output, b"\x02c".as_slice()))
        );
        assert_eq!((output.stdout_bytes, output.stderr_bytes), (2, 1));
    }

    #[test]
    fn alternating_bytes_keep_their_stream_and_do_not_become_a_frame_each() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair");
        let mut output = Output::new(ours);
        let mut sent: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
        for index in 0..20_000_usize {
            let (stream, byte) = (
                [Stream::Stdout, Stream::Stderr][index % 2],
                [(index % 251) as u8],
            );
            sent[index % 2].push(byte[0]);
            output.write(stream, &byte).expect("write");
        }
        output.flush().expect("flush");
        drop(output);
        let mut reader = FrameReader::new(theirs);
        let mut found: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
        let mut frames = 0;
        while let Some((_, payload)) = reader.next_frame().expect("frame") {
            found[payload[0] as usize - 1].extend_from_slice(&payload[1..]);
            frames += 1;
        }
        assert_eq!(found, sent);
        assert!(frames <= MAX_ORDERED_FRAMES + 2, "{frames} frames");
    }
}
