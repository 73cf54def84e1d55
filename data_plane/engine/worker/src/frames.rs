//! The worker's side of the frame protocol: framing over one stream socket, and descriptors beside the bytes.
//! Knows lengths and types; the meaning of a payload is not its business.
//!
//! A frame is u32 little-endian length of what follows, u8 type, payload. Descriptors that belong to a frame
//! travel by `SCM_RIGHTS` in the same send, so they have arrived when the frame has.

use std::collections::VecDeque;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Largest frame: type byte and payload. Larger bodies are chunked.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// Descriptors that may wait for their frame: an artifact with 16 roots, then 16 preopens of the first run.
pub const MAX_WAITING_FDS: usize = 34;
const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = LENGTH_BYTES + 1;
const READ_BYTES: usize = 64 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Load = 1,
    Ready = 2,
    Run = 3,
    Stdin = 4,
    Output = 5,
    HostCall = 6,
    HostReply = 7,
    Outcome = 8,
    Stop = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Load,
            2 => Self::Ready,
            3 => Self::Run,
            4 => Self::Stdin,
            5 => Self::Output,
            6 => Self::HostCall,
            7 => Self::HostReply,
            8 => Self::Outcome,
            9 => Self::Stop,
            _ => return None,
        })
    }
}

/// The peer broke the protocol, or the socket failed. Nothing can be said after it: the worker ends.
#[derive(Debug)]
pub enum FrameError {
    Empty,
    Oversized(usize),
    UnknownKind(u8),
    Truncated,
    TooManyDescriptors,
    Io(Errno),
}

impl fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(formatter, "frame without a type"),
            Self::Oversized(size) => write!(
                formatter,
                "frame of {size} bytes, the bound is {MAX_FRAME_BYTES}"
            ),
            Self::UnknownKind(kind) => write!(formatter, "frame of unknown type {kind}"),
            Self::Truncated => write!(formatter, "the peer closed inside a frame"),
            Self::TooManyDescriptors => {
                write!(
                    formatter,
                    "more than {MAX_WAITING_FDS} descriptors wait for their frame"
                )
            }
            Self::Io(error) => write!(formatter, "socket: {error}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<Errno> for FrameError {
    fn from(error: Errno) -> Self {
        Self::Io(error)
    }
}

/// Reads frames; keeps what came beyond the current one.
pub struct FrameReader<Socket: AsFd> {
    socket: Socket,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl<Socket: AsFd> FrameReader<Socket> {
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            buffer: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            descriptors: VecDeque::new(),
        }
    }

    /// Wait for the next frame; `None` when the peer has closed between frames.
    ///
    /// # Errors
    /// The peer broke the protocol, see [`FrameError`].
    pub fn next_frame(&mut self) -> Result<Option<(Kind, &[u8])>, FrameError> {
        loop {
            let have = self.end - self.start;
            let wanted = self.wanted()?;
            if have >= wanted {
                let byte = self.buffer[self.start + LENGTH_BYTES];
                let kind = Kind::from_byte(byte).ok_or(FrameError::UnknownKind(byte))?;
                let payload = self.start + HEADER_BYTES..self.start + wanted;
                self.start = payload.end;
                return Ok(Some((kind, &self.buffer[payload])));
            }
            self.make_room(wanted);
            if self.receive()? == 0 {
                return if have == 0 {
                    Ok(None)
                } else {
                    Err(FrameError::Truncated)
                };
            }
        }
    }

    /// Wait until `next_frame` does not, or until the deadline: then `false`.
    ///
    /// # Errors
    /// The peer broke the protocol, see [`FrameError`].
    pub fn wait_for_frame(&mut self, deadline: Instant) -> Result<bool, FrameError> {
        loop {
            let wanted = self.wanted()?;
            if self.end - self.start >= wanted {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("a short duration");
            let mut waiting = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut waiting, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            self.make_room(wanted);
            if self.receive()? == 0 {
                // The end; `next_frame` says of what.
                return Ok(true);
            }
        }
    }

    /// The bytes that the next frame takes, as far as it is known.
    fn wanted(&self) -> Result<usize, FrameError> {
        if self.end - self.start < LENGTH_BYTES {
            return Ok(HEADER_BYTES);
        }
        let head = &self.buffer[self.start..self.start + LENGTH_BYTES];
        match u32::from_le_bytes(head.try_into().expect("four bytes")) as usize {
            0 => Err(FrameError::Empty),
            size if size > MAX_FRAME_BYTES => Err(FrameError::Oversized(size)),
            size => Ok(LENGTH_BYTES + size),
        }
    }

    /// Take the descriptors that came for the frame just read, in the order they were sent.
    ///
    /// # Errors
    /// Fewer have come than the frame names.
    pub fn take_descriptors(&mut self, count: usize) -> Result<Vec<OwnedFd>, FrameError> {
        if count > self.descriptors.len() {
            return Err(FrameError::Truncated);
        }
        Ok(self.descriptors.drain(..count).collect())
    }

    fn make_room(&mut self, wanted: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
        }
    }

    fn receive(&mut self) -> Result<usize, FrameError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_WAITING_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer[self.end..])];
            match recvmsg(
                &self.socket,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > MAX_WAITING_FDS
        {
            return Err(FrameError::TooManyDescriptors);
        }
        self.end += received.bytes;
        Ok(received.bytes)
    }
}

/// Append one frame to `buffer`.
///
/// # Panics
/// The payload is larger than a frame: the caller chunks.
pub fn append_frame(buffer: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let size = payload.len() + 1;
    assert!(
        size <= MAX_FRAME_BYTES,
        "payload of {} bytes does not fit a frame",
        payload.len()
    );
    buffer.extend_from_slice(&u32::try_from(size).expect("at most 1 MiB").to_le_bytes());
    buffer.push(kind as u8);
    buffer.extend_from_slice(payload);
}

/// Send all of `bytes`, with `descriptors` beside the first byte.
///
/// # Errors
/// The socket failed or the peer is gone.
pub fn send_all(
    socket: impl AsFd,
    mut bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_WAITING_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(FrameError::TooManyDescriptors);
    }
    while !bytes.is_empty() {
        match sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(sent) => {
                bytes = &bytes[sent..];
                control.clear();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair")
    }

    #[test]
    fn frames_arrive_whole_and_in_order_with_their_descriptors() {
        let (ours, theirs) = pair();
        let mut bytes = Vec::new();
        append_frame(&mut bytes, Kind::Load, b"{}");
        append_frame(&mut bytes, Kind::Stdin, b"");
        send_all(&ours, &bytes, &[ours.as_fd()]).expect("send");
        drop(ours);
        let mut reader = FrameReader::new(theirs);
        assert_eq!(
            reader.next_frame().expect("frame"),
            Some((Kind::Load, b"{}".as_slice()))
        );
        assert_eq!(reader.take_descriptors(1).expect("descriptor").len(), 1);
        assert_eq!(
            reader.next_frame().expect("frame"),
            Some((Kind::Stdin, b"".as_slice()))
        );
        assert!(reader.next_frame().expect("end").is_none());
    }

    #[test]
    fn oversized_empty_unknown_and_truncated_frames_are_refused() {
        let cases: [(&[u8], &str); 4] = [
            (&[1, 0, 16, 0, 4], "the bound is"),
            (&[0, 0, 0, 0, 4], "without a type"),
            (&[1, 0, 0, 0, 10], "unknown type 10"),
            (&[9, 0, 0, 0, 4, 1], "inside a frame"),
        ];
        for (bytes, message) in cases {
            let (ours, theirs) = pair();
            send_all(&ours, bytes, &[]).expect("send");
            drop(ours);
            let error = FrameReader::new(theirs)
                .next_frame()
                .map(|_| ())
                .expect_err("must be refused");
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
