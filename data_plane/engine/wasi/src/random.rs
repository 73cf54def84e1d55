//! Randomness for a guest: the kernel's, or a reproducible key stream.

use rustix::io::Errno as HostErrno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::abi::Errno;
use crate::config::RandomMode;

const BLOCK_BYTES: usize = 64;

/// Source of random bytes.
#[derive(Debug)]
pub enum Random {
    Os,
    Seeded(Box<KeyStream>),
}

impl Random {
    pub fn new(mode: RandomMode) -> Self {
        match mode {
            RandomMode::Os => Self::Os,
            RandomMode::Seeded(seed) => Self::Seeded(Box::new(KeyStream::new(&seed))),
        }
    }

    /// Fills all of `out`.
    ///
    /// # Errors
    /// `Io` when the kernel gives none; nothing weaker is put in its place.
    pub fn fill(&mut self, out: &mut [u8]) -> Result<(), Errno> {
        match self {
            Self::Seeded(stream) => {
                stream.fill(out);
                Ok(())
            }
            Self::Os => {
                let mut done = 0;
                while done < out.len() {
                    let rest = out.get_mut(done..).ok_or(Errno::Io)?;
                    match getrandom(rest, GetRandomFlags::empty()) {
                        Ok(0) => return Err(Errno::Io),
                        Ok(filled) => done += filled,
                        Err(HostErrno::INTR) => {}
                        Err(_) => return Err(Errno::Io),
                    }
                }
                Ok(())
            }
        }
    }
}

/// The ChaCha20 key stream (RFC 8439, section 2.3) with nonce zero and a counter from 0; the counter's carry goes on into
/// the nonce's first word, so the stream does not repeat after 256 GiB.
#[derive(Debug)]
pub struct KeyStream {
    key: [u32; 8],
    counter: u64,
    block: [u8; BLOCK_BYTES],
    used: usize,
}

impl KeyStream {
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut key = [0; 8];
        for (word, bytes) in key.iter_mut().zip(seed.chunks_exact(4)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |value, byte| (value << 8) | u32::from(*byte));
        }
        Self {
            key,
            counter: 0,
            block: [0; BLOCK_BYTES],
            used: BLOCK_BYTES,
        }
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == BLOCK_BYTES {
                self.block = self.next_block();
                self.used = 0;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }

    fn next_block(&mut self) -> [u8; BLOCK_BYTES] {
        let [k0, k1, k2, k3, k4, k5, k6, k7] = self.key;
        let (low, high) = (self.counter as u32, (self.counter >> 32) as u32);
        // "expand 32-byte k" as four little-endian words.
        let start = [
            0x6170_7865,
            0x3320_646e,
            0x7962_2d32,
            0x6b20_6574,
            k0,
            k1,
            k2,
            k3,
            k4,
            k5,
            k6,
            k7,
            low,
            high,
            0,
            0,
        ];
        self.counter = self.counter.wrapping_add(1);
        let mut state = start;
        for _ in 0..10 {
            for column in 0..4 {
                quarter_round(&mut state, column, 4 + column, 8 + column, 12 + column);
            }
            for diagonal in 0..4 {
                let (b, c, d) = ((diagonal + 1) % 4, (diagonal + 2) % 4, (diagonal + 3) % 4);
                quarter_round(&mut state, diagonal, 4 + b, 8 + c, 12 + d);
            }
        }
        let mut block = [0; BLOCK_BYTES];
        for ((bytes, word), first) in block.chunks_exact_mut(4).zip(state).zip(start) {
            bytes.copy_from_slice(&word.wrapping_add(first).to_le_bytes());
        }
        block
    }
}

fn quarter_round(state: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    state[a] = state[a].wrapping_add(state[b]);
    state[d] = (state[d] ^ state[a]).rotate_left(16);
    state[c] = state[c].wrapping_add(state[d]);
    state[b] = (state[b] ^ state[c]).rotate_left(12);
    state[a] = state[a].wrapping_add(state[b]);
    state[d] = (state[d] ^ state[a]).rotate_left(8);
    state[c] = state[c].wrapping_add(state[d]);
    state[b] = (state[b] ^ state[c]).rotate_left(7);
}

#[cfg(test)]
mod tests {
    use super::KeyStream;

    /// RFC 8439, appendix A.1, test vectors 1 and 2: key zero, nonce zero, counters 0 and 1.
    #[test]
    fn zero_key_gives_the_key_stream_of_rfc_8439() {
        let mut out = [0; 128];
        KeyStream::new(&[0; 32]).fill(&mut out);
        let expected_first = [
            0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90, 0x40, 0x5d, 0x6a, 0xe5, 0x53, 0x86,
            0xbd, 0x28, 0xbd, 0xd2, 0x19, 0xb8, 0xa0, 0x8d, 0xed, 0x1a, 0xa8, 0x36, 0xef, 0xcc,
            0x8b, 0x77, 0x0d, 0xc7, 0xda, 0x41, 0x59, 0x7c, 0x51, 0x57, 0x48, 0x8d, 0x77, 0x24,
            0xe0, 0x3f, 0xb8, 0xd8, 0x4a, 0x37, 0x6a, 0x43, 0xb8, 0xf4, 0x15, 0x18, 0xa1, 0x1c,
            0xc3, 0x87, 0xb6, 0x69, 0xb2, 0xee, 0x65, 0x86,
        ];
        assert_eq!(expected_first[..], out[..64]);
        assert_eq!(
            [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a],
            out[64..72]
        );
    }

    #[test]
    fn the_sizes_of_the_reads_do_not_change_the_stream() {
        let seed = [7; 32];
        let mut whole = [0; 200];
        KeyStream::new(&seed).fill(&mut whole);
        let mut parts = [0; 200];
        let mut stream = KeyStream::new(&seed);
        let (head, tail) = parts.split_at_mut(63);
        stream.fill(head);
        stream.fill(tail);
        assert_eq!(whole, parts);
    }
}
