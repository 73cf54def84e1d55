//! Random walks: whatever sequence of path calls a guest makes, what is outside and what is read-only stays as it was.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentfactory_wasi::Fault;
use support::{ALL_RIGHTS, Guest, RO, RW};

/// A small generator, so that a failing walk can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn path(&mut self) -> String {
        // Mostly short ways to what is there, sometimes far out.
        const PARTS: [&str; 16] = [
            "..", ".", "", "dir", "dir", "nested", "inner", "file", "file", "link", "dirlink",
            "outdir", "secret", "new", "new", "empty",
        ];
        const WAYS_OUT: [&str; 6] = [
            "out",
            "outdir/secret",
            "../outside/secret",
            "dir/../../outside/new",
            "../ro/file",
            "/etc",
        ];
        if self.below(8) == 0 {
            return self.pick(&WAYS_OUT).to_owned();
        }
        let parts: Vec<_> = (0..=self.below(3)).map(|_| self.pick(&PARTS)).collect();
        let ends = ["", "", "", "", "", "/"];
        format!("{}{}", parts.join("/"), self.pick(&ends))
    }
}

/// Kind, content or target, modification time and number of names of all that is beneath, by path.
fn snapshot(root: &Path) -> BTreeMap<String, (u32, Vec<u8>, i64, u64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() {
            std::fs::read(&path).unwrap()
        } else if meta.is_symlink() {
            std::fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        found.insert(
            path.display().to_string(),
            (meta.mode(), content, mtime_ns, meta.nlink()),
        );
    }
    found
}

fn step(guest: &mut Guest, dice: &mut Dice, open: &mut Vec<u32>) -> Result<(), Fault> {
    guest.rewind();
    let (fd, other) = (dice.pick(open), dice.pick(open));
    let (path, second) = (dice.path(), dice.path());
    match dice.below(11) {
        0 => guest.mkdir(fd, &path),
        1 => guest.rmdir(fd, &path),
        2 => guest.unlink(fd, &path),
        3 => guest.set_times(fd, &path, dice.below(16) as u32),
        4 => guest.symlink(&path, fd, &second),
        5 => guest.rename(fd, &path, other, &second),
        6 => guest.link_with(dice.below(2) as u32, fd, &path, other, &second),
        7 => guest.readlink(fd, &path, 64).map(|_| ()),
        8 => guest.stat(fd, dice.below(2) as u32, &path),
        _ => {
            let oflags = dice.below(16) as u32;
            let rights = if dice.below(2) == 0 {
                ALL_RIGHTS
            } else {
                ALL_RIGHTS & !(1 << 6)
            };
            let opened = guest.open_with(fd, dice.below(2) as u32, &path, oflags, rights, 0)?;
            let _ = guest.write(opened, b"mark");
            let _ = guest.wasi.fd_filestat_set_size(&mut guest.mem, opened, 1);
            let _ = guest
                .wasi
                .fd_filestat_set_times(&mut guest.mem, opened, 1, 1, 5);
            let _ = guest.wasi.fd_allocate(&mut guest.mem, opened, 0, 64);
            open.push(opened);
            Ok(())
        }
    }
}

#[test]
fn no_walk_changes_what_is_outside_or_read_only() {
    const WALKS: u64 = 60;
    const STEPS: usize = 400;
    let mut succeeded = 0;
    for seed in 0..WALKS {
        let mut guest = Guest::new();
        let (outside, read_only) = (guest.host("outside"), guest.host("ro"));
        let before = (snapshot(&outside), snapshot(&read_only));
        let (mut dice, mut open) = (Dice(seed), vec![RW, RW, RO]);
        for _ in 0..STEPS {
            succeeded += usize::from(step(&mut guest, &mut dice, &mut open).is_ok());
        }
        assert_eq!(
            before,
            (snapshot(&outside), snapshot(&read_only)),
            "seed {seed}"
        );
        assert!(guest.host("rw").is_dir());
    }
    // The walks do something: if nearly all were refused they would prove nothing.
    assert!(succeeded > WALKS as usize * STEPS / 20, "{succeeded}");
}
