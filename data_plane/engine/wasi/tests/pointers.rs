//! Every call with every edge a pointer, length, number or flag can have. Nothing panics, and nothing outside is touched.

mod support;

use agentfactory_wasi::{ClockMode, Errno, Fault, Stdio, Wasi, for_each_call};
use support::{Guest, MEMORY_BYTES, OUT, READ, RW, Streams};

fn errno<T>(errno: Errno) -> Result<T, Fault> {
    Err(Fault::Errno(errno))
}

/// Values a guest could pass where a pointer, length, descriptor or flag is expected.
const EDGES: [u64; 10] = [
    0,
    1,
    3,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff8,
    0xffff_ffff,
    MEMORY_BYTES as u64 - 1,
    MEMORY_BYTES as u64,
    u64::MAX,
];

/// A guest whose clock jumps, so that `poll_oneoff` may ask for any wait.
fn timeless() -> agentfactory_wasi::Config {
    let clock = ClockMode::Deterministic {
        start_ns: 0,
        tick_ns: 1,
    };
    agentfactory_wasi::Config {
        clock,
        ..support::config()
    }
}

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let edge = EDGES[(self.0 >> 40) as usize % EDGES.len()];
        // Mostly edges, sometimes a place inside the memory.
        if (self.0 >> 33).is_multiple_of(4) {
            (self.0 >> 20) % MEMORY_BYTES as u64
        } else {
            edge
        }
    }
}

macro_rules! call_with_edges {
    ($($name:ident($($param:ident: $kind:ident),*) -> $ret:ident, $status:ident$(($errno:ident, $why:literal))?, $summary:literal;)*) => {
        fn call_with_edges<S: Stdio>(wasi: &mut Wasi<S>, mem: &mut [u8], dice: &mut Dice, name: &str) {
            match name {
                $(stringify!($name) => {
                    let _ = wasi.$name(mem $(, { let $param = dice.roll() as $kind; $param })*);
                })*
                _ => unreachable!(),
            }
        }
    };
}

for_each_call!(call_with_edges);

#[test]
fn no_argument_whatever_makes_a_call_panic_or_touch_what_is_outside() {
    let mut dice = Dice(42);
    for call in agentfactory_wasi::CALLS {
        let mut guest = Guest::with(timeless());
        for _ in 0..2_000 {
            call_with_edges(&mut guest.wasi, &mut guest.mem, &mut dice, call.name);
        }
        assert_eq!(
            "secret",
            std::fs::read_to_string(guest.host("outside/secret")).unwrap()
        );
        assert_eq!(
            "hello",
            std::fs::read_to_string(guest.host("ro/file")).unwrap()
        );
    }
}

#[test]
fn no_pointer_works_without_memory() {
    let mut dice = Dice(7);
    let mut guest = Guest::with(timeless());
    for call in agentfactory_wasi::CALLS {
        call_with_edges(&mut guest.wasi, &mut [], &mut dice, call.name);
    }
    let mut streams: Wasi<Streams> = Wasi::new(support::config(), Streams::default()).unwrap();
    assert_eq!(errno(Errno::Fault), streams.random_get(&mut [], 0, 1));
    assert_eq!(Ok(()), streams.random_get(&mut [], 0, 0));
}

#[test]
fn parts_that_overlap_into_more_than_a_size_can_say_are_refused() {
    const MEM: u32 = 4 << 20;
    let mut guest = Guest::new();
    let mut mem = vec![0; MEM as usize];
    for part in mem.chunks_exact_mut(8).take(1_024) {
        part[4..].copy_from_slice(&MEM.to_le_bytes());
    }
    // 1024 times 4 MiB is 2^32; one byte less is the most there can be.
    let file = guest.file();
    for fd in [1, file] {
        let got = guest.wasi.fd_write(&mut mem, fd, 0, 1_024, OUT);
        assert_eq!(errno(Errno::Inval), got);
    }
    let got = guest.wasi.fd_read(&mut mem, 0, 0, 1_024, OUT);
    assert_eq!(errno(Errno::Inval), got);
    mem[4..8].copy_from_slice(&(MEM - 1).to_le_bytes());
    assert_eq!(Ok(()), guest.wasi.fd_read(&mut mem, 0, 0, 1_024, 16_384));
}

#[test]
fn parts_whose_end_overflows_are_refused() {
    let mut guest = Guest::new();
    let (iovs, count) = guest.iovs(&[(8, u32::MAX - 4)]);
    assert_eq!(
        errno(Errno::Fault),
        guest.wasi.fd_read(&mut guest.mem, 0, iovs, count, OUT)
    );
    let (iovs, count) = guest.iovs(&[(u32::MAX, 1)]);
    assert_eq!(
        errno(Errno::Fault),
        guest.wasi.fd_write(&mut guest.mem, 1, iovs, count, OUT)
    );
}

#[test]
fn a_part_may_end_exactly_where_the_memory_does() {
    let mut guest = Guest::new();
    let end = MEMORY_BYTES as u32;
    for (ptr, len, expected) in [
        (end - 4, 4, Ok(())),
        (end, 0, Ok(())),
        (end - 4, 5, errno(Errno::Fault)),
        (end, 1, errno(Errno::Fault)),
        (end + 1, 0, errno(Errno::Fault)),
    ] {
        let (iovs, count) = guest.iovs(&[(ptr, len)]);
        let got = guest.wasi.fd_write(&mut guest.mem, 1, iovs, count, OUT);
        assert_eq!(expected, got, "{ptr} {len}");
    }
}

#[test]
fn a_read_into_its_own_list_reads_by_the_list_as_it_was() {
    let mut guest = Guest::new();
    let fd = guest.file();
    let (iovs, _) = guest.iovs(&[(0, 0), (OUT + 16, 3)]);
    // The first part is the list itself: reading overwrites it with "he".
    guest.mem[iovs as usize..iovs as usize + 4].copy_from_slice(&iovs.to_le_bytes());
    guest.mem[iovs as usize + 4] = 2;
    guest
        .wasi
        .fd_read(&mut guest.mem, fd, iovs, 2, OUT)
        .unwrap();
    assert_eq!(5, guest.u32_at(OUT));
    assert_eq!(b"he", guest.bytes(iovs, 2));
    assert_eq!(b"llo", guest.bytes(OUT + 16, 3));
}

#[test]
fn a_result_that_ends_outside_opens_nothing_and_loses_no_input() {
    let mut guest = Guest::new();
    let (path, len) = guest.put(b"file");
    let beyond = support::BEYOND;
    for _ in 0..100 {
        let mem = &mut guest.mem;
        let got = guest
            .wasi
            .path_open(mem, RW, 0, path, len, 0, READ, 0, 0, beyond);
        assert_eq!(errno(Errno::Fault), got);
    }
    assert_eq!(5, guest.wasi.usage().peak_open_files);
    let part = guest.put(&[0; 5]);
    let (iovs, count) = guest.iovs(&[part]);
    let got = guest.wasi.fd_read(&mut guest.mem, 0, iovs, count, beyond);
    assert_eq!(errno(Errno::Fault), got);
    assert_eq!(b"typed".to_vec(), guest.read(0, 5).unwrap());
}
