//! A guest that makes any calls in any order with any arguments, over a small memory and one directory of everything.
//!
//! After every sequence: nothing panicked, nothing was written beside the guest's memory, nothing outside its directory
//! was read or changed, nothing read-only was changed, no limit was passed, and no descriptor is left.

#![no_main]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use agentfactory_wasi::{CALLS, ClockMode, Fault, Limits, RandomMode, Wasi};
use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use support::{Guest, Streams};

/// Bytes on both sides of what the guest is given; they must stay as they are.
const GUARD_BYTES: usize = 4096;
const GUARD: u8 = 0xa5;
/// The guest's memory, small so that random pointers meet.
const SMALL_BYTES: usize = 16 * 1024;
const MAX_CALLS: usize = 64;
/// Where results, lists and paths lie; a sequence may write over all of them.
const RESULTS: u32 = 64;
const LISTS: u32 = 1024;
const DATA: u32 = 2048;
const PATHS: u32 = 8192;
const SECRET_BYTES: usize = 16;

/// Paths worth trying; a sequence makes others by writing over them.
const NAMES: [&str; 32] = [
    "file",
    "dir",
    "dir/inner",
    "dir/nested",
    "empty",
    "link",
    "dirlink",
    "dirlink/inner",
    "dangling",
    "loop",
    "out",
    "outdir",
    "outdir/secret",
    "absolute",
    "magic",
    "fifo",
    "socket",
    ".",
    "..",
    "../outside/secret",
    "../ro/file",
    "/etc/passwd",
    "new",
    "new/",
    "dir/new",
    "dir/../new",
    "dir/../../outside/made",
    "a/b/c",
    "new2",
    "link/",
    "é",
    "",
];

struct Draw<'a, 'b> {
    input: &'b mut Unstructured<'a>,
    places: Vec<(u32, u32)>,
    /// Length of the path drawn last.
    length: u32,
}

impl Draw<'_, '_> {
    /// A number that fits the parameter, or any.
    fn number(&mut self, parameter: &str) -> Result<u64> {
        if self.input.ratio(1, 12)? {
            return self.edge();
        }
        Ok(match parameter {
            "fd" | "old_fd" | "new_fd" | "from" | "to" => {
                u64::from(self.input.int_in_range(0..=12_u8)?)
            }
            "path" | "old_path" | "new_path" => {
                let (place, length) = *self.input.choose(&self.places)?;
                self.length = length;
                u64::from(place)
            }
            "path_len" | "old_path_len" | "new_path_len" => u64::from(self.length),
            "iovs" | "subscriptions" => u64::from(LISTS),
            "iovs_len" | "count" => u64::from(self.input.int_in_range(0..=6_u8)?),
            "buf" | "events" | "argv_buf" | "environ_buf" => u64::from(DATA),
            "buf_len" | "offset" | "len" | "size" | "cookie" => {
                u64::from(self.input.arbitrary::<u16>()? >> 3)
            }
            "dirflags" | "flags" | "old_flags" => u64::from(self.input.int_in_range(0..=2_u8)?),
            "oflags" | "fdflags" | "fst_flags" | "whence" | "advice" | "id" => {
                u64::from(self.input.int_in_range(0..=31_u8)?)
            }
            "rights_base" | "rights_inheriting" | "base" | "inheriting" => {
                match self.input.int_in_range(0..=3_u8)? {
                    0 => self.input.arbitrary()?,
                    1 => support::READ,
                    _ => support::ALL_RIGHTS,
                }
            }
            _ => u64::from(RESULTS) + u64::from(self.input.int_in_range(0..=31_u8)?) * 8,
        })
    }

    fn edge(&mut self) -> Result<u64> {
        let edges = [
            0,
            1,
            SMALL_BYTES as u64 - 2,
            SMALL_BYTES as u64,
            1 << 31,
            u64::from(u32::MAX),
            1 << 63,
            u64::MAX,
        ];
        if self.input.arbitrary()? {
            Ok(*self.input.choose(&edges)?)
        } else {
            self.input.arbitrary()
        }
    }

    fn u32(&mut self, parameter: &str) -> Result<u32> {
        Ok(self.number(parameter)? as u32)
    }

    fn u64(&mut self, parameter: &str) -> Result<u64> {
        self.number(parameter)
    }

    fn i64(&mut self, parameter: &str) -> Result<i64> {
        Ok(self.number(parameter)? as i64)
    }
}

macro_rules! dispatch {
    ($($name:ident($($param:ident: $kind:ident),*) -> $ret:ident, $status:ident$(($errno:ident, $why:literal))?, $summary:literal;)*) => {
        fn call(name: &str, draw: &mut Draw<'_, '_>, wasi: &mut Wasi<Streams>, mem: &mut [u8]) -> Result<std::result::Result<(), Fault>> {
            match name {
                $(stringify!($name) => {
                    $(let $param = draw.$kind(stringify!($param))?;)*
                    Ok(wasi.$name(mem, $($param),*))
                })*
                _ => unreachable!("a row of the table"),
            }
        }
    };
}

agentfactory_wasi::for_each_call!(dispatch);

/// Lay paths and lists into the memory; return where the paths are.
fn furnish(mem: &mut [u8]) -> Vec<(u32, u32)> {
    for index in 0..6_u32 {
        let at = (LISTS + index * 8) as usize;
        mem[at..at + 4].copy_from_slice(&(DATA + index * 16).to_le_bytes());
        mem[at + 4..at + 8].copy_from_slice(&(index * 5).to_le_bytes());
    }
    let mut place = PATHS;
    NAMES
        .iter()
        .map(|name| {
            let (start, length) = (place, name.len() as u32);
            mem[start as usize..(start + length) as usize].copy_from_slice(name.as_bytes());
            place += length + 1;
            (start, length)
        })
        .collect()
}

/// Mode, links, size, time of change in seconds and nanoseconds, content.
type Row = (u32, u64, u64, i64, i64, Vec<u8>);

/// What must not change: names, contents, and all attributes but the time of access.
fn picture(folder: &Path) -> BTreeMap<String, Row> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let about = std::fs::symlink_metadata(&path).expect("still there");
        let content = if about.is_dir() {
            waiting.extend(
                std::fs::read_dir(&path)
                    .expect("a folder")
                    .map(|entry| entry.expect("an entry").path()),
            );
            Vec::new()
        } else if about.is_file() {
            std::fs::read(&path).expect("readable")
        } else {
            Vec::new()
        };
        let row = (
            about.mode(),
            about.nlink(),
            about.size(),
            about.mtime(),
            about.mtime_nsec(),
            content,
        );
        found.insert(path.to_string_lossy().into_owned(), row);
    }
    found
}

/// Names and bytes below a directory, links and holes counted as they are.
fn used(folder: &Path) -> (u64, u64) {
    let (mut names, mut bytes) = (0, 0);
    let mut seen = std::collections::HashSet::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(&path).expect("a folder") {
            let entry = entry.expect("an entry").path();
            let about = std::fs::symlink_metadata(&entry).expect("still there");
            names += 1;
            if about.is_dir() {
                waiting.push(entry);
            } else if about.is_file() && seen.insert(about.ino()) {
                bytes += about.size();
            }
        }
    }
    (names, bytes)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("proc is mounted")
        .count()
}

/// What lies outside; of each process its own, so that no input can know it.
fn secret() -> &'static [u8; SECRET_BYTES] {
    static SECRET: OnceLock<[u8; SECRET_BYTES]> = OnceLock::new();
    SECRET.get_or_init(|| {
        let mut bytes = [0; SECRET_BYTES];
        let mut source = std::fs::File::open("/dev/urandom").expect("randomness");
        std::io::Read::read_exact(&mut source, &mut bytes).expect("randomness");
        bytes
    })
}

fn holds_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET_BYTES).any(|window| window == secret())
}

fn limits(input: &mut Unstructured<'_>) -> Result<Limits> {
    Ok(Limits {
        max_open_files: input.int_in_range(5..=12)?,
        max_stdout_bytes: input.int_in_range(0..=100)?,
        max_stderr_bytes: input.int_in_range(0..=100)?,
        max_random_bytes: input.int_in_range(0..=SMALL_BYTES as u64)?,
        max_log_lines: input.int_in_range(0..=5)?,
        max_scratch_bytes: input.int_in_range(0..=64 * 1024)?,
        max_scratch_inodes: input.int_in_range(0..=8)?,
    })
}

fn sequence(data: &[u8]) -> Result<()> {
    if holds_secret(data) {
        return Ok(());
    }
    let mut input = Unstructured::new(data);
    let limits = limits(&mut input)?;
    let mut config = support::config();
    config.limits = limits;
    // Sleeping moves this clock on; the machine's would be waited for.
    config.clock = ClockMode::Deterministic {
        start_ns: input.arbitrary()?,
        tick_ns: input.arbitrary()?,
    };
    if input.arbitrary()? {
        config.random = RandomMode::Seeded(input.arbitrary()?);
    }
    let before = descriptors();
    let mut guest = Guest::with(config);
    std::fs::write(guest.host("outside/secret"), secret()).expect("a secret");
    let untouched = ["outside", "ro"].map(|name| picture(&guest.host(name)));
    let (names, bytes) = used(&guest.host("rw"));

    let inside = GUARD_BYTES..GUARD_BYTES + SMALL_BYTES;
    guest.mem = [
        [GUARD; GUARD_BYTES].as_slice(),
        &[0; SMALL_BYTES],
        &[GUARD; GUARD_BYTES],
    ]
    .concat();
    let places = furnish(&mut guest.mem[inside.clone()]);
    let ended = calls(
        &mut guest,
        inside.clone(),
        &mut Draw {
            input: &mut input,
            places,
            length: 0,
        },
    );

    for outer in [&guest.mem[..inside.start], &guest.mem[inside.end..]] {
        assert!(*outer == [GUARD; GUARD_BYTES], "written beside the memory");
    }
    assert_eq!(
        untouched,
        ["outside", "ro"].map(|name| picture(&guest.host(name))),
        "changed what is not the guest's"
    );
    let usage = guest.wasi.usage();
    let (new_names, new_bytes) = used(&guest.host("rw"));
    assert!(
        new_names.saturating_sub(names) <= usage.scratch_inodes
            && usage.scratch_inodes <= limits.max_scratch_inodes
    );
    assert!(
        new_bytes.saturating_sub(bytes) <= usage.scratch_bytes
            && usage.scratch_bytes <= limits.max_scratch_bytes
    );
    assert!(
        usage.peak_open_files <= limits.max_open_files
            && usage.random_bytes <= limits.max_random_bytes
    );
    let streams = guest.wasi.stdio_mut();
    assert_eq!(
        (streams.stdout.len() as u64, streams.stderr.len() as u64),
        (usage.stdout_bytes, usage.stderr_bytes)
    );
    assert!(
        usage.stdout_bytes <= limits.max_stdout_bytes
            && usage.stderr_bytes <= limits.max_stderr_bytes
    );
    assert!(usage.log_lines <= limits.max_log_lines);
    assert!(!holds_secret(&streams.stdout) && !holds_secret(&streams.stderr));
    drop(guest);
    assert_eq!(before, descriptors(), "a descriptor is left");
    ended
}

/// Make calls until the input ends, or the guest must not go on.
fn calls(guest: &mut Guest, inside: std::ops::Range<usize>, draw: &mut Draw<'_, '_>) -> Result<()> {
    for _ in 0..MAX_CALLS {
        if draw.input.ratio(1, 6)? {
            let at = inside.start + usize::from(draw.input.arbitrary::<u16>()?) % (SMALL_BYTES - 8);
            guest.mem[at..at + 8].copy_from_slice(&draw.input.arbitrary::<[u8; 8]>()?);
        }
        let row = draw.input.choose(CALLS)?;
        let result = call(
            row.name,
            draw,
            &mut guest.wasi,
            &mut guest.mem[inside.clone()],
        )?;
        // Only these give bytes of files; looking takes longer than a call.
        let reads = matches!(row.name, "fd_read" | "fd_pread" | "path_readlink");
        assert!(
            !reads || !holds_secret(&guest.mem[inside.clone()]),
            "{} gave what is outside",
            row.name
        );
        if matches!(result, Err(Fault::Exit(_) | Fault::Limit(_))) {
            break;
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // An input that ends early is a shorter sequence.
    let _ = sequence(data);
});
