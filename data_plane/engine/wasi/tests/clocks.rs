//! Clocks, sleeps and randomness, real and deterministic.

mod support;

use std::time::{Duration, Instant};

use agentfactory_wasi::abi::clockid;
use agentfactory_wasi::{ClockMode, Config, MONOTONIC_START_NS, RandomMode};
use support::{Guest, OUT, config};

fn time(guest: &mut Guest, id: u32) -> u64 {
    guest
        .wasi
        .clock_time_get(&mut guest.mem, id, 0, OUT)
        .unwrap();
    guest.u64_at(OUT)
}

#[test]
fn real_clocks_go_forward_and_do_not_tell_how_long_the_machine_is_up() {
    let mut guest = Guest::new();
    let first = time(&mut guest, clockid::MONOTONIC);
    let second = time(&mut guest, clockid::MONOTONIC);
    assert!(
        (MONOTONIC_START_NS..2 * MONOTONIC_START_NS).contains(&first),
        "{first}"
    );
    assert!(second >= first);
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let guest_time = Duration::from_nanos(time(&mut guest, clockid::REALTIME));
    assert!(guest_time.abs_diff(host) < Duration::from_secs(5));
}

#[test]
fn a_sleep_lasts_at_least_as_long_as_asked_for() {
    let mut guest = Guest::new();
    let wait = Duration::from_millis(20);
    for (clock, flags) in [
        (clockid::MONOTONIC, 0),
        (clockid::REALTIME, 0),
        (clockid::MONOTONIC, 1),
    ] {
        let base = if flags == 1 {
            time(&mut guest, clock)
        } else {
            0
        };
        let start = Instant::now();
        guest
            .poll(0, clock, base + wait.as_nanos() as u64, flags)
            .unwrap();
        assert!(
            start.elapsed() >= wait - Duration::from_millis(1),
            "{clock} {flags}"
        );
    }
}

#[test]
fn waiting_for_a_clock_and_a_file_does_not_wait() {
    let mut guest = Guest::new();
    let fd = guest.file();
    let mut subscriptions = [[0; 48]; 2];
    subscriptions[0][0] = 1;
    subscriptions[0][16] = 1;
    subscriptions[0][24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    subscriptions[1][0] = 2;
    subscriptions[1][8] = 1;
    subscriptions[1][16..20].copy_from_slice(&fd.to_le_bytes());
    let (ptr, _) = guest.put(subscriptions.concat().as_slice());
    // The events overwrite what was asked for, which was read before.
    guest
        .wasi
        .poll_oneoff(&mut guest.mem, ptr, ptr, 2, OUT)
        .unwrap();
    assert_eq!(1, guest.u32_at(OUT));
    assert_eq!((2, 1), (guest.u64_at(ptr), guest.mem[ptr as usize + 10]));
    assert_eq!(5, guest.u64_at(ptr + 16));
}

fn deterministic() -> Guest {
    let clock = ClockMode::Deterministic {
        start_ns: 1_000,
        tick_ns: 10,
    };
    Guest::with(Config {
        clock,
        random: RandomMode::Seeded([1; 32]),
        ..config()
    })
}

#[test]
fn a_deterministic_clock_moves_by_ticks_and_jumps_over_sleeps() {
    let mut guest = deterministic();
    assert_eq!(1_010, time(&mut guest, clockid::REALTIME));
    assert_eq!(
        MONOTONIC_START_NS + 20,
        time(&mut guest, clockid::MONOTONIC)
    );
    assert_eq!(30, time(&mut guest, clockid::THREAD_CPUTIME));
    let start = Instant::now();
    let hour_ns = 3_600_000_000_000;
    guest.poll(0, clockid::MONOTONIC, hour_ns, 0).unwrap();
    assert_eq!(1_040 + hour_ns, time(&mut guest, clockid::REALTIME));
    guest.poll(0, clockid::REALTIME, u64::MAX, 0).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60));
    guest
        .wasi
        .clock_res_get(&mut guest.mem, clockid::REALTIME, OUT)
        .unwrap();
    assert_eq!(10, guest.u64_at(OUT));
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_seed_others() {
    let draw = |guest: &mut Guest| {
        guest.wasi.random_get(&mut guest.mem, OUT, 100).unwrap();
        guest.bytes(OUT, 100).to_vec()
    };
    let first = draw(&mut deterministic());
    assert_eq!(first, draw(&mut deterministic()));
    let other = RandomMode::Seeded([2; 32]);
    assert_ne!(
        first,
        draw(&mut Guest::with(Config {
            random: other,
            ..config()
        }))
    );
    let mut real = Guest::new();
    assert_ne!(draw(&mut real), draw(&mut real));
}
