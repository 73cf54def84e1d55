//! Another agent that shares a writable directory swaps everything in it while a guest makes path calls there: what lies
//! outside is never opened, and nothing in it blocks or reaches a device.

mod support;

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentfactory_wasi::abi::oflags;
use agentfactory_wasi::{Errno, Fault};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use support::{Guest, RW};

const CALLS: u32 = 100_000;
const SWAPPERS: u64 = 2;
/// A call that waited for a fifo or a device would take for ever; a busy machine takes its time.
const SLOWEST_CALL: Duration = Duration::from_secs(20);
const CANARY: &[u8] = b"canary: who reads this is outside";

/// What is swapped. Only what lies at the top: the host follows links, and would itself walk out.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// xorshift64*; a seed that is not 0.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn choose<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// One change by the other agent or by whoever else may write there, made apart and then exchanged for what is there.
fn swap(root: &Path, spare: &str, random: &mut Random) {
    let name = root.join(random.choose(&NAMES));
    let spare = root.join(spare);
    let _ = std::fs::remove_file(&spare);
    let _ = std::fs::remove_dir_all(&spare);
    if random.below(4) == 0 {
        // A directory that the guest may be walking through moves away.
        let _ = std::fs::rename(root.join(random.choose(&NAMES)), &spare);
    } else if random.below(2) == 0 {
        // The guest may have made a name in the old one while that was being removed: then it stays.
        let _ = std::fs::create_dir(&spare);
        make(root, &spare.join("x"), random);
    } else {
        make(root, &spare, random);
    }
    if renameat_with(CWD, &spare, CWD, &name, RenameFlags::EXCHANGE).is_err() {
        let _ = std::fs::rename(&spare, &name);
    }
}

/// Make something that is worth opening, or worth not opening.
fn make(root: &Path, path: &Path, random: &mut Random) {
    let outside = root.parent().expect("a parent").join("outside");
    let mode = Mode::from_raw_mode(0o666);
    // Only root may make devices; for others there are none.
    let _ = match random.below(11) {
        0 | 1 => std::fs::write(path, b"inside"),
        2 => symlink("../outside", path),
        3 => symlink("../outside/x", path),
        4 => symlink("../../outside/x", path),
        5 => symlink("/proc/self/fd/3", path),
        6 => symlink("/proc/self/root", path),
        7 => symlink(outside.join("x"), path),
        8 => symlink(
            random.choose(&["a", "b", "../c", "a/../b", "c/../../outside"]),
            path,
        ),
        9 => mknodat(CWD, path, FileType::Fifo, mode, 0).map_err(Into::into),
        _ => {
            let zero = rustix::fs::makedev(1, 5);
            mknodat(CWD, path, FileType::CharacterDevice, mode, zero).map_err(Into::into)
        }
    };
}

/// What the guest got to see and to do.
#[derive(Default)]
struct Seen {
    opened: u32,
    kept_out: u32,
    special: u32,
}

fn one_call(guest: &mut Guest, random: &mut Random, seen: &mut Seen) {
    const PATHS: [&str; 12] = [
        "a",
        "b/x",
        "c/x",
        "a/../b/x",
        "a/x/x",
        "b/../../outside/x",
        "c/x/../x",
        "./a/./x",
        "a/",
        "b/x/y",
        "../outside/x",
        "c/../a/../b/x",
    ];
    let (path, other) = (random.choose(&PATHS), random.choose(&PATHS));
    let result = match random.below(14) {
        0..=4 => guest
            .open(RW, path, 0, support::READ)
            .map(|fd| look_at(guest, fd, seen)),
        5 => guest
            .open(RW, path, oflags::CREAT | oflags::TRUNC, support::READ_WRITE)
            .map(|fd| scribble(guest, fd)),
        6 => guest
            .open(RW, path, 0, support::READ_WRITE)
            .map(|fd| scribble(guest, fd)),
        7 => guest.stat(RW, 1, path),
        8 => guest.readlink(RW, path, 64).map(drop),
        9 => guest.set_times(RW, path, 5),
        10 => guest.link(RW, path, RW, other),
        11 => guest.rename(RW, path, RW, other),
        12 => guest.mkdir(RW, path).and_then(|()| guest.rmdir(RW, path)),
        _ => guest.unlink(RW, path),
    };
    match result {
        Err(Fault::Errno(Errno::NotCapable)) => seen.kept_out += 1,
        Err(Fault::Errno(Errno::NotSup)) => seen.special += 1,
        Ok(()) | Err(Fault::Errno(_)) => {}
        Err(fault) => panic!("{fault:?}"),
    }
}

/// What was opened is a file of the tree or a directory, never the canary and never a device.
fn look_at(guest: &mut Guest, fd: u32, seen: &mut Seen) {
    seen.opened += 1;
    if let Ok(content) = guest.read(fd, 64) {
        assert!(
            !content.windows(6).any(|part| part == &CANARY[..6]),
            "read what is outside"
        );
        assert_ne!([0; 64].as_slice(), content, "read a device");
    }
    guest.wasi.fd_close(&mut guest.mem, fd).expect("open");
}

fn scribble(guest: &mut Guest, fd: u32) {
    // A directory is refused; a file of the tree takes it.
    let _ = guest.write(fd, b"guest");
    guest.wasi.fd_close(&mut guest.mem, fd).expect("open");
}

fn outside(guest: &Guest) -> (Vec<String>, Vec<u8>, u64, u32, i64, i64) {
    let mut names: Vec<_> = std::fs::read_dir(guest.host("outside"))
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    let canary = guest.host("outside/x");
    let about = std::fs::metadata(&canary).expect("still there");
    let content = std::fs::read(canary).expect("readable");
    (
        names,
        content,
        about.nlink(),
        about.mode(),
        about.mtime(),
        about.mtime_nsec(),
    )
}

#[test]
fn whatever_is_swapped_under_a_guest_nothing_outside_is_opened_and_nothing_blocks() {
    let mut guest = Guest::new();
    std::fs::write(guest.host("outside/x"), CANARY).unwrap();
    let untouched = outside(&guest);
    let (root, stop, swaps) = (guest.host("rw"), AtomicBool::new(false), AtomicU64::new(0));
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        for swapper in 1..=SWAPPERS {
            let (root, stop, swaps) = (&root, &stop, &swaps);
            scope.spawn(move || {
                let (mut random, spare) = (Random(swapper), format!("spare-{swapper}"));
                while !stop.load(Ordering::Relaxed) {
                    swap(root, &spare, &mut random);
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Panicking would leave the swappers running for ever.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut random = Random(0x5eed);
            for _ in 0..CALLS {
                guest.rewind();
                let started = Instant::now();
                one_call(&mut guest, &mut random, &mut seen);
                assert!(started.elapsed() < SLOWEST_CALL, "a call blocked");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(untouched, outside(&guest));
    let swaps = swaps.into_inner();
    assert!(
        seen.opened > 100 && seen.kept_out > 100 && seen.special > 10 && swaps > 1_000,
        "hardly a race: {} opened, {} kept out, {} special files refused, {swaps} swaps",
        seen.opened,
        seen.kept_out,
        seen.special,
    );
}
