//! A guest that wants out: by path, by link, by rename, by pointer. Each test is named for the attack.

mod support;

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agentfactory_wasi::abi::{oflags, rights};
use agentfactory_wasi::{ClockMode, Errno, Fault, Stdio, Wasi, for_each_call};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::{ALL_RIGHTS, Guest, MEMORY_BYTES, OUT, READ, READ_WRITE, RO, RW, Streams};

fn errno<T>(errno: Errno) -> Result<T, Fault> {
    Err(Fault::Errno(errno))
}

#[test]
fn paths_that_lead_out_are_refused_wherever_they_turn() {
    let mut guest = Guest::new();
    for path in [
        "/etc/passwd",
        "//etc/passwd",
        "..",
        "../",
        "../outside/secret",
        "./../outside/secret",
        "dir/../../outside/secret",
        "dir/nested/../../../outside/secret",
        "dirlink/../../outside/secret",
        "../rw/file",
        "out",
        "outdir",
        "outdir/secret",
        "absolute",
        "absolute/passwd",
        "magic/etc/passwd",
    ] {
        assert_eq!(
            errno(Errno::NotCapable),
            guest.open(RW, path, 0, READ),
            "{path}"
        );
        assert_eq!(errno(Errno::NotCapable), guest.stat(RW, 1, path), "{path}");
    }
    assert_eq!(
        "secret",
        std::fs::read_to_string(guest.host("outside/secret")).unwrap()
    );
}

#[test]
fn proc_handed_in_by_mistake_gives_no_magic_links() {
    let mut config = support::config();
    let fd = support::open_directory("/proc".as_ref());
    config.preopens.push(agentfactory_wasi::Preopen {
        fd,
        guest_path: "/proc".into(),
        writable: false,
    });
    let mut guest = Guest::with(config);
    let (proc, rw) = (RW, RO);
    for path in ["self/root/etc/passwd", "self/cwd", "self/fd/0", "self/exe"] {
        let result = guest.open(proc, path, 0, READ);
        assert!(
            matches!(result, Err(Fault::Errno(Errno::Loop | Errno::NotCapable))),
            "{path}: {result:?}"
        );
    }
    assert!(guest.open(rw, "file", 0, READ).is_ok());
}

#[test]
fn a_link_made_by_the_guest_does_not_lead_out() {
    let mut guest = Guest::new();
    guest.symlink("../outside/secret", RW, "escape").unwrap();
    guest.symlink("../../outside", RW, "dir/deeper").unwrap();
    assert_eq!(errno(Errno::NotCapable), guest.open(RW, "escape", 0, READ));
    assert_eq!(
        errno(Errno::NotCapable),
        guest.open(RW, "dir/deeper/secret", 0, READ)
    );
    assert_eq!(
        errno(Errno::NotCapable),
        guest.open(RW, "escape", oflags::CREAT, READ_WRITE)
    );
    assert_eq!(
        errno(Errno::NotCapable),
        guest.open(RW, "escape", oflags::TRUNC, READ_WRITE)
    );
    assert_eq!(
        "secret",
        std::fs::read_to_string(guest.host("outside/secret")).unwrap()
    );
}

#[test]
fn creating_through_a_dangling_link_that_leads_out_makes_nothing_there() {
    let mut guest = Guest::new();
    guest.symlink("../outside/new", RW, "escape").unwrap();
    assert_eq!(
        errno(Errno::NotCapable),
        guest.open(RW, "escape", oflags::CREAT, READ_WRITE)
    );
    assert!(!guest.host("outside/new").exists());
}

#[test]
fn a_directory_below_is_a_boundary_of_its_own() {
    let mut guest = Guest::new();
    let dir = guest
        .open(RW, "dir", oflags::DIRECTORY, ALL_RIGHTS & !rights::FD_WRITE)
        .unwrap();
    assert_eq!(errno(Errno::NotCapable), guest.open(dir, "..", 0, READ));
    assert_eq!(
        errno(Errno::NotCapable),
        guest.open(dir, "../file", 0, READ)
    );
    assert_eq!(
        errno(Errno::NotCapable),
        guest.rename(dir, "inner", dir, "../inner")
    );
    assert!(guest.open(dir, "nested/../inner", 0, READ).is_ok());
}

#[test]
fn a_directory_moved_away_by_the_host_does_not_open_its_new_surroundings() {
    let mut guest = Guest::new();
    let dir = guest
        .open(RW, "dir", oflags::DIRECTORY, ALL_RIGHTS & !rights::FD_WRITE)
        .unwrap();
    std::fs::rename(guest.host("rw/dir"), guest.host("outside/dir")).unwrap();
    assert_eq!(
        errno(Errno::NotCapable),
        guest.open(dir, "../secret", 0, READ)
    );
    assert!(guest.open(dir, "inner", 0, READ).is_ok());
}

#[test]
fn a_hard_link_does_not_make_a_read_only_file_writable() {
    let mut guest = Guest::new();
    assert_eq!(errno(Errno::Rofs), guest.link(RO, "file", RW, "stolen"));
    assert_eq!(errno(Errno::Rofs), guest.rename(RO, "file", RW, "stolen"));
    assert!(!guest.host("rw/stolen").exists());
}

#[test]
fn a_hard_link_to_a_link_that_leads_out_stays_a_link() {
    let mut guest = Guest::new();
    guest.link(RW, "out", RW, "copy").unwrap();
    assert!(
        std::fs::symlink_metadata(guest.host("rw/copy"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(errno(Errno::NotCapable), guest.open(RW, "copy", 0, READ));
}

#[test]
fn a_slash_behind_a_link_does_not_make_link_follow_it_out() {
    let mut guest = Guest::new();
    assert_eq!(
        errno(Errno::NotCapable),
        guest.link(RW, "outdir/", RW, "stolen")
    );
    assert_eq!(
        errno(Errno::NotCapable),
        guest.link(RW, "out/", RW, "stolen")
    );
}

#[test]
fn a_slash_behind_a_link_does_not_make_removal_or_rename_follow_it() {
    let mut guest = Guest::new();
    std::fs::create_dir(guest.host("outside/empty")).unwrap();
    symlink("../outside/empty", guest.host("rw/toempty")).unwrap();
    assert_eq!(errno(Errno::NotDir), guest.rmdir(RW, "toempty/"));
    assert_eq!(errno(Errno::NotDir), guest.unlink(RW, "toempty/"));
    assert_eq!(
        errno(Errno::NotDir),
        guest.rename(RW, "toempty/", RW, "new")
    );
    assert!(guest.host("outside/empty").is_dir());
}

#[test]
fn nothing_beneath_a_read_only_preopen_changes() {
    let mut guest = Guest::new();
    let dir = guest
        .open(RO, "dir", oflags::DIRECTORY, ALL_RIGHTS & !rights::FD_WRITE)
        .unwrap();
    for fd in [RO, dir] {
        assert_eq!(errno(Errno::Rofs), guest.mkdir(fd, "new"));
        assert_eq!(errno(Errno::Rofs), guest.rmdir(fd, "nested"));
        assert_eq!(errno(Errno::Rofs), guest.unlink(fd, "inner"));
        assert_eq!(errno(Errno::Rofs), guest.symlink("inner", fd, "new"));
        assert_eq!(errno(Errno::Rofs), guest.link(fd, "inner", fd, "new"));
        assert_eq!(errno(Errno::Rofs), guest.rename(fd, "inner", fd, "new"));
        assert_eq!(errno(Errno::Rofs), guest.set_times(fd, ".", 4));
        assert_eq!(
            errno(Errno::Rofs),
            guest.open(fd, "new", oflags::CREAT, READ)
        );
        assert_eq!(errno(Errno::Rofs), guest.open(fd, ".", oflags::TRUNC, READ));
        assert_eq!(
            errno(Errno::Rofs),
            guest.open(fd, "inner", 0, rights::FD_WRITE)
        );
    }
    assert_eq!(
        "inside",
        std::fs::read_to_string(guest.host("ro/dir/inner")).unwrap()
    );
    assert!(guest.host("ro/dir/nested").is_dir());
    assert!(!guest.host("ro/new").exists() && !guest.host("ro/dir/new").exists());
}

#[test]
fn a_descriptor_moved_onto_a_writable_one_stays_read_only() {
    let mut guest = Guest::new();
    guest.wasi.fd_renumber(&mut guest.mem, RO, RW).unwrap();
    assert_eq!(errno(Errno::Rofs), guest.mkdir(RW, "new"));
}

type Attempt = fn(&mut Guest, u32) -> Result<(), Fault>;

fn each_right_is_needed(cases: &[(u64, Attempt)], full: u64, open: fn(&mut Guest) -> u32) {
    for (right, attempt) in cases {
        let (mut guest, mut lesser) = (Guest::new(), Guest::new());
        let (fd, lesser_fd) = (open(&mut guest), open(&mut lesser));
        let inheriting = if fd == RW { rights::INHERITABLE } else { 0 };
        let mem = &mut lesser.mem;
        lesser
            .wasi
            .fd_fdstat_set_rights(mem, lesser_fd, full & !right, inheriting)
            .unwrap();
        assert_eq!(Ok(()), attempt(&mut guest, fd), "{right:#x}");
        assert_eq!(
            errno(Errno::NotCapable),
            attempt(&mut lesser, lesser_fd),
            "{right:#x}"
        );
    }
}

#[test]
fn each_right_to_a_directory_is_needed_for_its_call() {
    let cases: [(u64, Attempt); 16] = [
        (rights::PATH_CREATE_DIRECTORY, |g, fd| g.mkdir(fd, "new")),
        (rights::PATH_CREATE_FILE, |g, fd| {
            g.open(fd, "new", oflags::CREAT, READ).map(|_| ())
        }),
        (rights::PATH_LINK_SOURCE, |g, fd| {
            g.link(fd, "file", fd, "new")
        }),
        (rights::PATH_LINK_TARGET, |g, fd| {
            g.link(fd, "file", fd, "new")
        }),
        (rights::PATH_OPEN, |g, fd| {
            g.open(fd, "file", 0, READ).map(|_| ())
        }),
        (rights::FD_READDIR, |g, fd| {
            g.wasi.fd_readdir(&mut g.mem, fd, 64, 64, 0, OUT)
        }),
        (rights::PATH_READLINK, |g, fd| {
            g.readlink(fd, "link", 64).map(|_| ())
        }),
        (rights::PATH_RENAME_SOURCE, |g, fd| {
            g.rename(fd, "file", fd, "new")
        }),
        (rights::PATH_RENAME_TARGET, |g, fd| {
            g.rename(fd, "file", fd, "new")
        }),
        (rights::PATH_FILESTAT_GET, |g, fd| g.stat(fd, 1, "file")),
        (rights::PATH_FILESTAT_SET_SIZE, |g, fd| {
            g.open(fd, "file", oflags::TRUNC, READ).map(|_| ())
        }),
        (rights::PATH_FILESTAT_SET_TIMES, |g, fd| {
            g.set_times(fd, "file", 4)
        }),
        (rights::PATH_SYMLINK, |g, fd| g.symlink("file", fd, "new")),
        (rights::PATH_REMOVE_DIRECTORY, |g, fd| g.rmdir(fd, "empty")),
        (rights::PATH_UNLINK_FILE, |g, fd| g.unlink(fd, "file")),
        (rights::FD_FILESTAT_GET, |g, fd| {
            g.wasi.fd_filestat_get(&mut g.mem, fd, OUT)
        }),
    ];
    each_right_is_needed(&cases, rights::DIRECTORY, |_| RW);
}

#[test]
fn each_right_to_a_file_is_needed_for_its_call() {
    let cases: [(u64, Attempt); 14] = [
        (rights::FD_DATASYNC, |g, fd| {
            g.wasi.fd_datasync(&mut g.mem, fd)
        }),
        (rights::FD_SYNC, |g, fd| g.wasi.fd_sync(&mut g.mem, fd)),
        (rights::FD_READ, |g, fd| g.read(fd, 1).map(|_| ())),
        (rights::FD_WRITE, |g, fd| g.write(fd, b"x").map(|_| ())),
        (rights::FD_READ, |g, fd| {
            g.wasi.fd_pread(&mut g.mem, fd, 0, 0, 0, OUT)
        }),
        (rights::FD_WRITE, |g, fd| {
            g.wasi.fd_pwrite(&mut g.mem, fd, 0, 0, 0, OUT)
        }),
        (rights::FD_SEEK, |g, fd| {
            g.wasi.fd_seek(&mut g.mem, fd, 1, 0, OUT)
        }),
        (rights::FD_SEEK | rights::FD_TELL, |g, fd| {
            g.wasi.fd_tell(&mut g.mem, fd, OUT)
        }),
        (rights::FD_FDSTAT_SET_FLAGS, |g, fd| {
            g.wasi.fd_fdstat_set_flags(&mut g.mem, fd, 1)
        }),
        (rights::FD_ADVISE, |g, fd| {
            g.wasi.fd_advise(&mut g.mem, fd, 0, 0, 0)
        }),
        (rights::FD_ALLOCATE, |g, fd| {
            g.wasi.fd_allocate(&mut g.mem, fd, 0, 1)
        }),
        (rights::FD_FILESTAT_SET_SIZE, |g, fd| {
            g.wasi.fd_filestat_set_size(&mut g.mem, fd, 1)
        }),
        (rights::FD_FILESTAT_SET_TIMES, |g, fd| {
            g.wasi.fd_filestat_set_times(&mut g.mem, fd, 1, 1, 1)
        }),
        (rights::POLL_FD_READWRITE, |g, fd| g.poll(1, fd, 0, 0)),
    ];
    each_right_is_needed(&cases, rights::FILE, Guest::file);
}

#[test]
fn a_fifo_or_socket_neither_opens_nor_blocks() {
    let mut guest = Guest::new();
    for path in ["fifo", "socket"] {
        assert_eq!(errno(Errno::NotSup), guest.open(RW, path, 0, READ));
        assert_eq!(
            errno(Errno::NotSup),
            guest.open(RW, path, 0, rights::FD_WRITE)
        );
        assert_eq!(
            errno(Errno::NotSup),
            guest.open(RW, path, oflags::CREAT, READ_WRITE)
        );
    }
}

/// Swaps two names on the host, over and over, while the guest works on one of them; `attack` says whether it got in.
///
/// Goes on until both answers were seen, so that there was a race at all, for at most [`MAX_RACE`].
fn while_swapping(guest: &mut Guest, [one, other]: [&str; 2], attack: impl Fn(&mut Guest) -> bool) {
    let (one, other) = (guest.host(one), guest.host(other));
    let stop = AtomicBool::new(false);
    let (mut got_in, mut kept_out) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let start = Instant::now();
        while start.elapsed() < MAX_RACE
            && (got_in + kept_out < ROUNDS || got_in == 0 || kept_out == 0)
        {
            guest.rewind();
            if attack(guest) {
                got_in += 1;
            } else {
                kept_out += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        got_in > 0 && kept_out > 0,
        "no race was run: {got_in} times in, {kept_out} out"
    );
}

const ROUNDS: u32 = 5_000;
const MAX_RACE: Duration = Duration::from_secs(30);

/// Opens a name that is what it should be or is refused, and never anything else.
fn opens_only(guest: &mut Guest, path: &str, content: &[u8], refusals: &[Errno]) -> bool {
    match guest.open(RW, path, 0, READ) {
        Ok(fd) => {
            assert_eq!(Ok(content.to_vec()), guest.read(fd, 16));
            guest.wasi.fd_close(&mut guest.mem, fd).unwrap();
            true
        }
        Err(Fault::Errno(errno)) if refusals.contains(&errno) => false,
        Err(fault) => panic!("{fault:?}"),
    }
}

#[test]
fn a_directory_swapped_for_a_link_under_the_call_never_leads_out() {
    let mut guest = Guest::new();
    std::fs::write(guest.host("rw/dir/secret"), "decoy").unwrap();
    while_swapping(&mut guest, ["rw/dir", "rw/outdir"], |guest| {
        opens_only(
            guest,
            "dir/secret",
            b"decoy",
            &[Errno::NotCapable, Errno::Again],
        )
    });
}

#[test]
fn a_directory_swapped_under_a_change_never_changes_what_is_outside() {
    let mut guest = Guest::new();
    while_swapping(&mut guest, ["rw/dir", "rw/outdir"], |guest| {
        let made = guest.mkdir(RW, "dir/made").is_ok();
        let _ = guest.rmdir(RW, "dir/made");
        let _ = guest.unlink(RW, "dir/secret");
        let _ = guest.rename(RW, "dir/secret", RW, "stolen");
        let _ = guest.link(RW, "dir/secret", RW, "stolen");
        let _ = guest.set_times(RW, "dir/secret", 4);
        made
    });
    assert_eq!(
        "secret",
        std::fs::read_to_string(guest.host("outside/secret")).unwrap()
    );
    let names: Vec<_> = std::fs::read_dir(guest.host("outside")).unwrap().collect();
    assert_eq!(1, names.len());
    let modified = std::fs::metadata(guest.host("outside/secret"))
        .unwrap()
        .modified()
        .unwrap();
    assert!(
        modified
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
            > 1_000
    );
}

#[test]
fn a_file_swapped_for_a_fifo_under_the_call_never_blocks_nor_opens() {
    let mut guest = Guest::new();
    while_swapping(&mut guest, ["rw/file", "rw/fifo"], |guest| {
        opens_only(guest, "file", b"hello", &[Errno::NotSup])
    });
}

#[test]
fn the_number_of_the_parent_outside_is_not_told() {
    let mut guest = Guest::new();
    guest.wasi.fd_filestat_get(&mut guest.mem, RW, OUT).unwrap();
    let own_ino = guest.u64_at(OUT + 8);
    guest
        .wasi
        .fd_readdir(&mut guest.mem, RW, 8192, 4096, 0, OUT)
        .unwrap();
    let (used, mut at, mut parents) = (guest.u32_at(OUT), 0, Vec::new());
    while at + 24 < used {
        let entry = 8192 + at;
        let len = guest.u32_at(entry + 16);
        if guest.bytes(entry + 24, len) == b".." {
            parents.push(guest.u64_at(entry + 8));
        }
        at += 24 + len;
    }
    assert_eq!(vec![own_ino], parents);
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
