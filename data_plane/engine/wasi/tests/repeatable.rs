//! Under a deterministic clock a guest sees nothing of the machine: order, numbers and times of files are its run's own.

mod support;

use agentfactory_wasi::abi::fstflags;
use agentfactory_wasi::{ClockMode, Config, Errno, Fault, RandomMode};
use support::{Guest, OUT, RW, config};

const START_NS: u64 = 1_000_000_000_000;

fn guest() -> Guest {
    Guest::with(Config {
        clock: ClockMode::Deterministic {
            start_ns: START_NS,
            tick_ns: 10,
        },
        random: RandomMode::Seeded([1; 32]),
        ..config()
    })
}

/// Device, inode, number of links, size and the three times.
fn stat(guest: &mut Guest, path: &str) -> [u64; 7] {
    guest.stat(RW, 0, path).unwrap();
    [0, 8, 24, 32, 40, 48, 56].map(|offset| guest.u64_at(OUT + offset))
}

#[test]
fn a_directory_is_listed_by_name_whatever_fits_into_one_call() {
    let mut names = guest().names(RW, 4096);
    assert_eq!([".", ".."], [&names[0], &names[1]]);
    assert!(names[2..].is_sorted());
    for room in [300, 301, 350] {
        let mut guest = guest();
        assert_eq!(names, guest.names(RW, room), "{room} bytes");
    }
    names.sort();
    let mut host = Guest::new().names(RW, 4096);
    host.sort();
    assert_eq!(host, names);
}

#[test]
fn a_listing_stays_as_it_was_while_files_are_removed_until_it_is_begun_anew() {
    let mut guest = guest();
    let list = |guest: &mut Guest, cookie| {
        guest
            .wasi
            .fd_readdir(&mut guest.mem, RW, 8192, 4096, cookie, OUT)
            .map(|()| guest.u32_at(OUT))
    };
    let whole = list(&mut guest, 0).unwrap();
    guest.unlink(RW, "file").unwrap();
    // The rest behind `.`, whose entry has 24 bytes and its name.
    assert_eq!(whole - 25, list(&mut guest, 1).unwrap());
    assert_eq!(whole - 24 - 4, list(&mut guest, 0).unwrap());
    assert_eq!(Err(Fault::Errno(Errno::Inval)), list(&mut guest, 1_000));
}

#[test]
fn files_are_numbered_in_the_order_in_which_the_run_meets_them() {
    let mut guest = guest();
    assert_eq!(
        [1, 1, 1, 5, START_NS, START_NS, START_NS],
        stat(&mut guest, "file")
    );
    assert_eq!(
        [1, 2, 1, 0, START_NS, START_NS, START_NS],
        stat(&mut guest, "dir")
    );
    assert_eq!(1, stat(&mut guest, "file")[1]);
    guest.link(RW, "file", RW, "again").unwrap();
    assert_eq!([1, 2], stat(&mut guest, "again")[1..3]);
}

#[test]
fn a_file_that_went_is_never_taken_for_the_one_that_got_its_number() {
    let mut guest = guest();
    let first = stat(&mut guest, "file")[1];
    guest.unlink(RW, "file").unwrap();
    guest.mkdir(RW, "file").unwrap();
    assert_ne!(first, stat(&mut guest, "file")[1]);
    // Over another one: the name keeps what it was renamed from.
    let moved = stat(&mut guest, "dir/inner")[1];
    let fd = guest.open(RW, "new", 1, support::READ_WRITE).unwrap();
    stat(&mut guest, "new");
    guest.wasi.fd_close(&mut guest.mem, fd).unwrap();
    guest.rename(RW, "dir/inner", RW, "new").unwrap();
    assert_eq!(moved, stat(&mut guest, "new")[1]);
}

#[test]
fn times_are_what_the_guest_set_and_never_the_hosts() {
    let mut guest = guest();
    let fd = guest.open(RW, "file", 0, support::READ_WRITE).unwrap();
    guest.write(fd, b"longer than before").unwrap();
    assert_eq!([18, START_NS, START_NS], stat(&mut guest, "file")[3..6]);
    let flags = fstflags::ATIM | fstflags::MTIM_NOW;
    guest
        .wasi
        .fd_filestat_set_times(&mut guest.mem, fd, 7, 8, flags)
        .unwrap();
    assert_eq!([7, START_NS], stat(&mut guest, "file")[4..6]);
}

#[test]
fn allocating_grows_a_file_and_never_cuts_it() {
    let mut guest = guest();
    let fd = guest.open(RW, "file", 0, support::READ_WRITE).unwrap();
    for (offset, len, size) in [(2, 1, 5), (0, 9, 9), (100, 1, 101)] {
        guest
            .wasi
            .fd_allocate(&mut guest.mem, fd, offset, len)
            .unwrap();
        assert_eq!(size, stat(&mut guest, "file")[3]);
    }
    let nothing = guest.wasi.fd_allocate(&mut guest.mem, fd, 0, 0);
    assert_eq!(Err(Fault::Errno(Errno::Inval)), nothing);
}

#[test]
fn the_same_calls_are_the_same_work() {
    let work = || {
        let mut guest = guest();
        guest.names(RW, 300);
        guest.wasi.random_get(&mut guest.mem, OUT, 10).unwrap();
        guest.wasi.work()
    };
    assert_eq!(work(), work());
    let mut guest = guest();
    guest.wasi.random_get(&mut guest.mem, OUT, 10).unwrap();
    assert_eq!(80, guest.wasi.work());
}
