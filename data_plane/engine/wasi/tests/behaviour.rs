//! What calls do when they succeed: bytes, positions, attributes, entries, rights, numbers.

mod support;

use agentfactory_wasi::abi::{FileType, fdflags, fstflags, oflags, rights, whence};
use agentfactory_wasi::{Config, Errno, Fault, Preopen, Wasi};
use support::{ALL_RIGHTS, Guest, OUT, READ, READ_WRITE, RO, RW, Streams, config};

fn content(guest: &Guest, path: &str) -> String {
    std::fs::read_to_string(guest.host(path)).unwrap()
}

fn position(guest: &mut Guest, fd: u32, offset: i64, whence: u32) -> u64 {
    guest
        .wasi
        .fd_seek(&mut guest.mem, fd, offset, whence, OUT)
        .unwrap();
    guest.u64_at(OUT)
}

/// Type, flags, rights and rights to hand on.
fn fdstat(guest: &mut Guest, fd: u32) -> (u8, u16, u64, u64) {
    guest.wasi.fd_fdstat_get(&mut guest.mem, fd, OUT).unwrap();
    let flags = u16::from_le_bytes(guest.bytes(OUT + 2, 2).try_into().unwrap());
    (
        guest.mem[OUT as usize],
        flags,
        guest.u64_at(OUT + 8),
        guest.u64_at(OUT + 16),
    )
}

#[test]
fn arguments_and_environment_arrive_as_c_strings() {
    let mut guest = Guest::new();
    guest
        .wasi
        .args_sizes_get(&mut guest.mem, OUT, OUT + 4)
        .unwrap();
    assert_eq!((2, 12), (guest.u32_at(OUT), guest.u32_at(OUT + 4)));
    guest.wasi.args_get(&mut guest.mem, OUT, 64).unwrap();
    assert_eq!((64, 70), (guest.u32_at(OUT), guest.u32_at(OUT + 4)));
    assert_eq!(b"agent\0--all\0", guest.bytes(64, 12));
    guest
        .wasi
        .environ_sizes_get(&mut guest.mem, OUT, OUT + 4)
        .unwrap();
    assert_eq!((1, 10), (guest.u32_at(OUT), guest.u32_at(OUT + 4)));
    guest.wasi.environ_get(&mut guest.mem, OUT, 64).unwrap();
    assert_eq!(b"KEY=value\0", guest.bytes(64, 10));
}

#[test]
fn preopens_are_found_from_3_on_by_length_and_name() {
    let mut guest = Guest::new();
    for (fd, name) in [(RW, b"/rw"), (RO, b"/ro")] {
        guest.wasi.fd_prestat_get(&mut guest.mem, fd, OUT).unwrap();
        assert_eq!((0, 3), (guest.u32_at(OUT), guest.u32_at(OUT + 4)));
        guest
            .wasi
            .fd_prestat_dir_name(&mut guest.mem, fd, OUT, 3)
            .unwrap();
        assert_eq!(name, guest.bytes(OUT, 3));
    }
    assert!(
        guest
            .wasi
            .fd_prestat_get(&mut guest.mem, RO + 1, OUT)
            .is_err()
    );
}

#[test]
fn a_file_is_written_read_and_moved_in() {
    let mut guest = Guest::new();
    let fd = guest
        .open(RW, "new", oflags::CREAT | oflags::EXCL, READ_WRITE)
        .unwrap();
    assert_eq!(Ok(6), guest.write(fd, b"abcdef"));
    assert_eq!(6, position(&mut guest, fd, 0, whence::CUR));
    assert_eq!(4, position(&mut guest, fd, -2, whence::END));
    assert_eq!(Ok(b"ef".to_vec()), guest.read(fd, 10));
    assert_eq!(Ok(Vec::new()), guest.read(fd, 10));
    assert_eq!(1, position(&mut guest, fd, 1, whence::SET));
    assert_eq!(Ok(1), guest.write(fd, b"X"));
    guest.wasi.fd_tell(&mut guest.mem, fd, OUT).unwrap();
    assert_eq!(2, guest.u64_at(OUT));
    assert_eq!("aXcdef", content(&guest, "rw/new"));
}

#[test]
fn reads_and_writes_fill_part_after_part() {
    let mut guest = Guest::new();
    let fd = guest.file();
    let (iovs, count) = guest.iovs(&[(64, 2), (0, 0), (80, 10)]);
    guest
        .wasi
        .fd_read(&mut guest.mem, fd, iovs, count, OUT)
        .unwrap();
    assert_eq!(5, guest.u32_at(OUT));
    assert_eq!(
        (b"he".as_slice(), b"llo".as_slice()),
        (guest.bytes(64, 2), guest.bytes(80, 3))
    );
    let (iovs, count) = guest.iovs(&[(80, 3), (64, 2)]);
    guest
        .wasi
        .fd_write(&mut guest.mem, fd, iovs, count, OUT)
        .unwrap();
    assert_eq!("hellollohe", content(&guest, "rw/file"));
}

#[test]
fn reading_and_writing_at_an_offset_leaves_the_position() {
    let mut guest = Guest::new();
    let fd = guest.file();
    let part = guest.put(b"J");
    let (iovs, count) = guest.iovs(&[part]);
    guest
        .wasi
        .fd_pwrite(&mut guest.mem, fd, iovs, count, 0, OUT)
        .unwrap();
    let (iovs, count) = guest.iovs(&[(64, 1), (65, 100)]);
    guest
        .wasi
        .fd_pread(&mut guest.mem, fd, iovs, count, 2, OUT)
        .unwrap();
    assert_eq!(
        (3, b"llo".as_slice()),
        (guest.u32_at(OUT), guest.bytes(64, 3))
    );
    assert_eq!(Ok(b"Jello".to_vec()), guest.read(fd, 10));
}

#[test]
fn appending_follows_the_flag_as_it_is_switched() {
    let mut guest = Guest::new();
    let fd = guest
        .open_with(RW, 1, "file", 0, READ_WRITE, fdflags::APPEND)
        .unwrap();
    guest.write(fd, b"1").unwrap();
    position(&mut guest, fd, 0, whence::SET);
    guest.write(fd, b"2").unwrap();
    assert_eq!("hello12", content(&guest, "rw/file"));
    guest
        .wasi
        .fd_fdstat_set_flags(&mut guest.mem, fd, 0)
        .unwrap();
    position(&mut guest, fd, 0, whence::SET);
    guest.write(fd, b"J").unwrap();
    assert_eq!("Jello12", content(&guest, "rw/file"));
    guest
        .wasi
        .fd_fdstat_set_flags(&mut guest.mem, fd, fdflags::APPEND)
        .unwrap();
    guest.write(fd, b"3").unwrap();
    assert_eq!("Jello123", content(&guest, "rw/file"));
    assert_eq!(u32::from(fdstat(&mut guest, fd).1), fdflags::APPEND);
}

#[test]
fn cutting_growing_and_allocating_set_the_size() {
    let mut guest = Guest::new();
    let fd = guest.file();
    guest
        .wasi
        .fd_filestat_set_size(&mut guest.mem, fd, 2)
        .unwrap();
    assert_eq!("he", content(&guest, "rw/file"));
    guest
        .wasi
        .fd_filestat_set_size(&mut guest.mem, fd, 4)
        .unwrap();
    assert_eq!("he\0\0", content(&guest, "rw/file"));
    guest.wasi.fd_allocate(&mut guest.mem, fd, 3, 5).unwrap();
    assert_eq!(8, content(&guest, "rw/file").len());
    guest.open(RW, "file", oflags::TRUNC, READ_WRITE).unwrap();
    assert_eq!("", content(&guest, "rw/file"));
}

#[test]
fn attributes_are_those_of_the_host() {
    use std::os::unix::fs::MetadataExt;
    let mut guest = Guest::new();
    guest.stat(RW, 1, "link").unwrap();
    let host = std::fs::metadata(guest.host("rw/file")).unwrap();
    assert_eq!(
        (host.dev(), host.ino()),
        (guest.u64_at(OUT), guest.u64_at(OUT + 8))
    );
    assert_eq!(FileType::RegularFile as u8, guest.mem[OUT as usize + 16]);
    assert_eq!((1, 5), (guest.u64_at(OUT + 24), guest.u64_at(OUT + 32)));
    let mtim_ns = host.mtime() as u64 * 1_000_000_000 + host.mtime_nsec() as u64;
    assert_eq!(mtim_ns, guest.u64_at(OUT + 48));
    for (path, file_type) in [
        ("link", FileType::SymbolicLink),
        ("dir", FileType::Directory),
        ("socket", FileType::SocketStream),
        ("fifo", FileType::Unknown),
    ] {
        guest.stat(RW, 0, path).unwrap();
        assert_eq!(file_type as u8, guest.mem[OUT as usize + 16], "{path}");
    }
}

#[test]
fn times_are_set_on_the_link_or_on_what_it_names() {
    let mut guest = Guest::new();
    let mtim_of = |guest: &mut Guest, lookup, path| {
        guest.stat(RW, lookup, path).unwrap();
        guest.u64_at(OUT + 48)
    };
    let (link, len) = guest.put(b"link");
    let mem = &mut guest.mem;
    guest
        .wasi
        .path_filestat_set_times(mem, RW, 0, link, len, 0, 7, fstflags::MTIM)
        .unwrap();
    assert_eq!(7, mtim_of(&mut guest, 0, "link"));
    assert_ne!(7, mtim_of(&mut guest, 1, "link"));
    let mem = &mut guest.mem;
    guest
        .wasi
        .path_filestat_set_times(mem, RW, 1, link, len, 0, 9, fstflags::MTIM)
        .unwrap();
    assert_eq!(9, mtim_of(&mut guest, 0, "file"));
    let fd = guest.file();
    guest
        .wasi
        .fd_filestat_set_times(&mut guest.mem, fd, 5, 11, fstflags::ATIM)
        .unwrap();
    guest.wasi.fd_filestat_get(&mut guest.mem, fd, OUT).unwrap();
    assert_eq!((5, 9), (guest.u64_at(OUT + 40), guest.u64_at(OUT + 48)));
}

#[test]
fn every_entry_is_listed_once_whatever_the_size_of_the_buffer() {
    let mut guest = Guest::new();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    std::fs::create_dir(guest.host("rw/many")).unwrap();
    for number in 0..500 {
        let name = format!("file-{number:0width$}", width = number % 60 + 1);
        std::fs::write(guest.host("rw/many").join(&name), "").unwrap();
        expected.push(name);
    }
    expected.sort();
    let fd = guest
        .open(RW, "many", oflags::DIRECTORY, READ | rights::FD_READDIR)
        .unwrap();
    for buf_len in [120, 256, 4_096, 60_000] {
        guest.rewind();
        let mut names = guest.names(fd, buf_len);
        names.sort();
        assert_eq!(expected, names, "{buf_len}");
    }
}

#[test]
fn an_entry_that_does_not_fit_is_cut_at_the_end_of_the_buffer() {
    let mut guest = Guest::new();
    guest
        .wasi
        .fd_readdir(&mut guest.mem, RW, 64, 30, 0, OUT)
        .unwrap();
    assert_eq!(30, guest.u32_at(OUT));
    assert!(guest.bytes(94, 8).iter().all(|byte| *byte == 0));
}

#[test]
fn links_directories_and_names_come_and_go() {
    let mut guest = Guest::new();
    guest.mkdir(RW, "a").unwrap();
    guest.symlink("../file", RW, "a/up").unwrap();
    assert_eq!(Ok(b"../file".to_vec()), guest.readlink(RW, "a/up", 64));
    assert_eq!(Ok(b"../".to_vec()), guest.readlink(RW, "a/up", 3));
    let fd = guest.open(RW, "a/up", 0, READ).unwrap();
    assert_eq!(Ok(b"hello".to_vec()), guest.read(fd, 10));
    guest.link(RW, "file", RW, "a/second").unwrap();
    guest.rename(RW, "a/second", RW, "third").unwrap();
    guest.unlink(RW, "file").unwrap();
    assert_eq!("hello", content(&guest, "rw/third"));
    guest.unlink(RW, "a/up").unwrap();
    guest.rmdir(RW, "a").unwrap();
    assert!(!guest.host("rw/a").exists());
}

#[test]
fn a_slash_behind_a_directory_may_stand_on_either_side_of_a_rename() {
    let mut guest = Guest::new();
    guest.rename(RW, "empty/", RW, "one").unwrap();
    guest.rename(RW, "one", RW, "two/").unwrap();
    guest.rename(RW, "two//", RW, "three///").unwrap();
    assert!(guest.host("rw/three").is_dir());
}

#[test]
fn a_descriptor_has_the_rights_asked_for_where_they_mean_something() {
    let mut guest = Guest::new();
    let file = guest.open(RW, "file", 0, ALL_RIGHTS).unwrap();
    assert_eq!((4, 0, rights::FILE, 0), fdstat(&mut guest, file));
    let reader = guest
        .open(RW, "file", 0, ALL_RIGHTS & !rights::FD_WRITE)
        .unwrap();
    let withheld = rights::FD_WRITE | rights::FD_ALLOCATE | rights::FD_FILESTAT_SET_SIZE;
    assert_eq!(
        (4, 0, rights::FILE & !withheld, 0),
        fdstat(&mut guest, reader)
    );
    let dir = guest
        .open(RW, "dir", 0, ALL_RIGHTS & !rights::FD_WRITE)
        .unwrap();
    let inheriting = rights::INHERITABLE & !rights::FD_WRITE;
    assert_eq!(
        (3, 0, rights::DIRECTORY, inheriting),
        fdstat(&mut guest, dir)
    );
    let read_only = guest
        .open(RO, "dir", 0, ALL_RIGHTS & !rights::FD_WRITE)
        .unwrap();
    let base = rights::DIRECTORY & !rights::MUTATING;
    assert_eq!((3, 0, base, inheriting), fdstat(&mut guest, read_only));
}

#[test]
fn rights_given_up_stay_given_up() {
    let mut guest = Guest::new();
    let fd = guest.file();
    let mem = &mut guest.mem;
    guest
        .wasi
        .fd_fdstat_set_rights(mem, fd, rights::FD_SEEK | rights::FD_READ, 0)
        .unwrap();
    assert_eq!(Err(Fault::Errno(Errno::NotCapable)), guest.write(fd, b"x"));
    assert_eq!(Ok(b"hello".to_vec()), guest.read(fd, 10));
    let mem = &mut guest.mem;
    let more = guest.wasi.fd_fdstat_set_rights(mem, fd, rights::FILE, 0);
    assert_eq!(Err(Fault::Errno(Errno::NotCapable)), more);
    assert_eq!(rights::FD_SEEK | rights::FD_READ, fdstat(&mut guest, fd).2);
}

#[test]
fn a_directory_that_hands_on_less_opens_with_less() {
    let mut guest = Guest::new();
    let mem = &mut guest.mem;
    let inheriting = rights::INHERITABLE & !rights::FD_WRITE;
    guest
        .wasi
        .fd_fdstat_set_rights(mem, RW, rights::DIRECTORY, inheriting)
        .unwrap();
    assert_eq!(
        Err(Fault::Errno(Errno::NotCapable)),
        guest.open(RW, "file", 0, READ_WRITE)
    );
    assert!(guest.open(RW, "file", 0, READ).is_ok());
}

#[test]
fn the_lowest_free_number_is_given() {
    let mut guest = Guest::new();
    let (first, second) = (guest.file(), guest.file());
    assert_eq!((5, 6), (first, second));
    guest.wasi.fd_close(&mut guest.mem, first).unwrap();
    assert_eq!(5, guest.file());
    guest.wasi.fd_close(&mut guest.mem, 0).unwrap();
    assert_eq!(0, guest.file());
}

#[test]
fn renumbering_moves_closes_and_frees() {
    let mut guest = Guest::new();
    let fd = guest.file();
    guest.wasi.fd_renumber(&mut guest.mem, fd, 1).unwrap();
    assert_eq!(Ok(2), guest.write(1, b"Je"));
    assert_eq!("Jello", content(&guest, "rw/file"));
    assert_eq!(Err(Fault::Errno(Errno::Badf)), guest.read(fd, 1));
    assert_eq!(fd, guest.file());
    assert!(guest.wasi.into_stdio().stdout.is_empty());
}

#[test]
fn standard_streams_are_no_terminal() {
    let mut guest = Guest::new();
    assert_eq!((0, 0, rights::STDIN, 0), fdstat(&mut guest, 0));
    assert_eq!((0, 0, rights::STDOUT, 0), fdstat(&mut guest, 1));
    assert_eq!(Ok(b"ty".to_vec()), guest.read(0, 2));
    assert_eq!(Ok(b"ped".to_vec()), guest.read(0, 9));
    assert_eq!(Ok(Vec::new()), guest.read(0, 9));
}

#[test]
fn syncing_flags_are_kept_from_the_opening() {
    let mut guest = Guest::new();
    let flags = fdflags::APPEND | fdflags::SYNC;
    let fd = guest
        .open_with(RW, 1, "file", 0, READ_WRITE, flags)
        .unwrap();
    assert_eq!(u32::from(fdstat(&mut guest, fd).1), flags);
    guest
        .wasi
        .fd_fdstat_set_flags(&mut guest.mem, fd, fdflags::SYNC)
        .unwrap();
    let without = guest.wasi.fd_fdstat_set_flags(&mut guest.mem, fd, 0);
    assert_eq!(Err(Fault::Errno(Errno::NotSup)), without);
}

#[test]
fn a_preopen_shared_by_two_guests_has_a_position_for_each() {
    let temp = support::TempDir::new();
    for name in ["a", "b", "c", "d"] {
        std::fs::write(temp.path().join(name), "").unwrap();
    }
    // One open description, as it would be after passing one descriptor to two workers.
    let shared = std::fs::File::open(temp.path()).unwrap();
    let mut guests = [0, 1].map(|_| {
        let fd = shared.try_clone().unwrap().into();
        let preopen = Preopen {
            fd,
            guest_path: "/".into(),
            writable: true,
        };
        Wasi::new(
            Config {
                preopens: vec![preopen],
                ..config()
            },
            Streams::default(),
        )
        .unwrap()
    });
    let mut mem = vec![0; 4_096];
    for _ in 0..3 {
        for guest in &mut guests {
            guest.fd_readdir(&mut mem, RW, 64, 2_048, 0, OUT).unwrap();
            let used = u32::from_le_bytes(mem[OUT as usize..][..4].try_into().unwrap());
            assert_eq!(6 * 24 + 1 + 2 + 4, used);
        }
    }
    assert_eq!(0, rustix::fs::tell(&shared).unwrap());
}
