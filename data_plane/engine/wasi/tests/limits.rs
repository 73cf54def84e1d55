//! Limits: at, one before and one past each; what the guest sees and what is remembered.

mod support;

use agentfactory_wasi::{
    Config, ConfigError, Errno, Fault, LimitName, Limits, MAX_STRINGS_BYTES, Preopen, Wasi,
};
use support::{Guest, OUT, READ, RW, Streams, config};

fn limited(limits: Limits) -> Guest {
    Guest::with(Config { limits, ..config() })
}

#[test]
fn one_file_past_the_limit_is_emfile_and_remembered() {
    // Three standard streams and two preopens are open already.
    let mut guest = limited(Limits {
        max_open_files: 7,
        ..Limits::default()
    });
    guest.open(RW, "file", 0, READ).unwrap();
    let last = guest.open(RW, "file", 0, READ).unwrap();
    assert_eq!(None, guest.wasi.refused_limit());
    assert_eq!(
        Err(Fault::Errno(Errno::Mfile)),
        guest.open(RW, "file", 0, READ)
    );
    assert_eq!(Some(LimitName::OpenFiles), guest.wasi.refused_limit());
    assert_eq!("open_files", LimitName::OpenFiles.as_str());
    guest.wasi.fd_close(&mut guest.mem, last).unwrap();
    assert_eq!(Ok(last), guest.open(RW, "file", 0, READ));
    assert_eq!(7, guest.wasi.usage().peak_open_files);
}

#[test]
fn refused_opening_creates_nothing() {
    let mut guest = limited(Limits {
        max_open_files: 5,
        ..Limits::default()
    });
    let result = guest.open(RW, "new", agentfactory_wasi::abi::oflags::CREAT, READ);
    assert_eq!(Err(Fault::Errno(Errno::Mfile)), result);
    assert!(!guest.host("rw/new").exists());
}

#[test]
fn opening_what_cannot_be_opened_leaks_no_descriptor() {
    let mut guest = limited(Limits {
        max_open_files: 6,
        ..Limits::default()
    });
    for path in ["fifo", "nowhere", "out", "file/"] {
        assert!(guest.open(RW, path, 0, READ).is_err());
    }
    assert!(guest.open(RW, "file", 0, READ).is_ok());
}

#[test]
fn output_up_to_the_limit_passes_and_one_byte_more_stops_the_guest() {
    let mut guest = limited(Limits {
        max_stdout_bytes: 6,
        ..Limits::default()
    });
    assert_eq!(Ok(5), guest.write(1, b"12345"));
    assert_eq!(Ok(1), guest.write(1, b"6"));
    assert_eq!(
        Err(Fault::Limit(LimitName::OutputBytes)),
        guest.write(1, b"7")
    );
    assert_eq!(6, guest.wasi.usage().stdout_bytes);
    assert_eq!("output_bytes", LimitName::OutputBytes.as_str());
    assert_eq!(b"123456".to_vec(), guest.wasi.into_stdio().stdout);
}

#[test]
fn a_write_across_the_limit_passes_on_what_fits() {
    let mut guest = limited(Limits {
        max_stderr_bytes: 3,
        ..Limits::default()
    });
    assert_eq!(
        Err(Fault::Limit(LimitName::LogBytes)),
        guest.write(2, b"1234")
    );
    assert_eq!("log_bytes", LimitName::LogBytes.as_str());
    // The other stream has a limit of its own.
    assert_eq!(Ok(4), guest.write(1, b"more"));
    assert_eq!(b"123".to_vec(), guest.wasi.into_stdio().stderr);
}

#[test]
fn a_limit_of_nothing_stops_the_first_byte_and_not_an_empty_write() {
    let mut guest = limited(Limits {
        max_stdout_bytes: 0,
        ..Limits::default()
    });
    assert_eq!(Ok(0), guest.write(1, b""));
    assert_eq!(
        Err(Fault::Limit(LimitName::OutputBytes)),
        guest.write(1, b"1")
    );
}

#[test]
fn output_moved_to_another_number_still_counts() {
    let mut guest = limited(Limits {
        max_stdout_bytes: 2,
        ..Limits::default()
    });
    let fd = guest.open(RW, "file", 0, READ).unwrap();
    guest.wasi.fd_renumber(&mut guest.mem, 1, fd).unwrap();
    assert_eq!(
        Err(Fault::Limit(LimitName::OutputBytes)),
        guest.write(fd, b"123")
    );
}

#[test]
fn output_taken_in_pieces_arrives_whole() {
    let mut guest = Guest::new();
    guest.wasi.stdio_mut().take_bytes = 2;
    assert_eq!(Ok(5), guest.write(1, b"12345"));
    assert_eq!(b"12345".to_vec(), guest.wasi.into_stdio().stdout);
}

#[test]
fn random_bytes_past_the_limit_stop_the_guest_and_are_not_given() {
    let mut guest = limited(Limits {
        max_random_bytes: 8,
        ..Limits::default()
    });
    assert_eq!(Ok(()), guest.wasi.random_get(&mut guest.mem, OUT, 8));
    let result = guest.wasi.random_get(&mut guest.mem, 64, 1);
    assert_eq!(Err(Fault::Limit(LimitName::RandomBytes)), result);
    assert_eq!(0, guest.mem[64]);
    assert_eq!(8, guest.wasi.usage().random_bytes);
}

#[test]
fn usage_counts_what_went_in_and_out() {
    let mut guest = Guest::new();
    guest.write(1, b"out").unwrap();
    guest.write(2, b"errs").unwrap();
    guest.read(0, 100).unwrap();
    let usage = guest.wasi.usage();
    assert_eq!(
        (5, 3, 4, 0),
        (
            usage.stdin_bytes,
            usage.stdout_bytes,
            usage.stderr_bytes,
            usage.random_bytes
        )
    );
}

#[test]
fn strings_past_their_limit_are_refused_before_the_run() {
    let with_args = |len: usize| Config {
        args: vec![vec![b'a'; len]],
        ..config()
    };
    // The zero byte behind an argument counts.
    let most = MAX_STRINGS_BYTES as usize - 1;
    assert!(Wasi::new(with_args(most), Streams::default()).is_ok());
    let error = Wasi::new(with_args(most + 1), Streams::default()).unwrap_err();
    assert_eq!(ConfigError::TooLarge, error);
    assert_eq!(
        "arguments or environment are larger than 1 MiB",
        error.to_string()
    );
}

#[test]
fn a_zero_byte_in_a_string_is_refused_before_the_run() {
    let config = Config {
        env: vec![b"KEY=a\0B=c".to_vec()],
        ..config()
    };
    assert_eq!(
        ConfigError::NulByte,
        Wasi::new(config, Streams::default()).unwrap_err()
    );
}

#[test]
fn a_preopen_that_is_a_file_is_refused_before_the_run() {
    let temp = support::TempDir::new();
    let path = temp.path().join("file");
    std::fs::write(&path, "").unwrap();
    let fd = std::fs::File::open(&path).unwrap().into();
    let preopens = vec![Preopen {
        fd,
        guest_path: "/".into(),
        writable: true,
    }];
    let error = Wasi::new(
        Config {
            preopens,
            ..config()
        },
        Streams::default(),
    )
    .unwrap_err();
    assert_eq!(
        ConfigError::Preopen {
            index: 0,
            errno: Errno::NotDir
        },
        error
    );
}

#[test]
fn renumbering_makes_room_for_one_more() {
    let mut guest = limited(Limits {
        max_open_files: 7,
        ..Limits::default()
    });
    let (first, second) = (guest.file(), guest.file());
    guest
        .wasi
        .fd_renumber(&mut guest.mem, first, second)
        .unwrap();
    assert_eq!(Ok(first), guest.open(RW, "file", 0, READ));
    assert_eq!(
        Err(Fault::Errno(Errno::Mfile)),
        guest.open(RW, "file", 0, READ)
    );
}

#[test]
fn lines_up_to_the_limit_pass_and_the_end_of_one_more_stops_the_guest() {
    let mut guest = limited(Limits {
        max_log_lines: 2,
        ..Limits::default()
    });
    assert_eq!(Ok(4), guest.write(2, b"a\nb\n"));
    // A line that has not ended is none yet.
    assert_eq!(Ok(1), guest.write(2, b"c"));
    assert_eq!(
        Err(Fault::Limit(LimitName::LogLines)),
        guest.write(2, b"d\ne")
    );
    assert_eq!("log_lines", LimitName::LogLines.as_str());
    assert_eq!(2, guest.wasi.usage().log_lines);
    assert_eq!(Ok(3), guest.write(1, b"\n\n\n"));
    assert_eq!(b"a\nb\ncd".to_vec(), guest.wasi.into_stdio().stderr);
}

#[test]
fn a_file_grows_to_the_limit_and_not_by_a_byte_more() {
    use agentfactory_wasi::abi::oflags::CREAT;
    let mut guest = limited(Limits {
        max_scratch_bytes: 10,
        ..Limits::default()
    });
    let fd = guest.open(RW, "new", CREAT, u64::MAX >> 1).unwrap();
    assert_eq!(Ok(9), guest.write(fd, b"123456789"));
    assert_eq!(Ok(1), guest.write(fd, b"0"));
    assert_eq!(
        Err(Fault::Limit(LimitName::ScratchBytes)),
        guest.write(fd, b"1")
    );
    // What is there may be written again; cutting it gives nothing back.
    guest
        .wasi
        .fd_filestat_set_size(&mut guest.mem, fd, 0)
        .unwrap();
    assert_eq!(
        Err(Fault::Limit(LimitName::ScratchBytes)),
        guest.wasi.fd_filestat_set_size(&mut guest.mem, fd, 1)
    );
    assert_eq!(
        Err(Fault::Limit(LimitName::ScratchBytes)),
        guest.wasi.fd_allocate(&mut guest.mem, fd, u64::MAX, 1)
    );
    assert_eq!(10, guest.wasi.usage().scratch_bytes);
}

#[test]
fn names_up_to_the_limit_are_made_and_what_was_there_costs_none() {
    use agentfactory_wasi::abi::oflags::{CREAT, EXCL};
    let mut guest = limited(Limits {
        max_scratch_inodes: 1,
        ..Limits::default()
    });
    guest.open(RW, "file", CREAT, READ).unwrap();
    assert_eq!(
        Err(Fault::Errno(Errno::Exist)),
        guest.open(RW, "file", CREAT | EXCL, READ)
    );
    assert_eq!(0, guest.wasi.usage().scratch_inodes);
    guest.open(RW, "new", CREAT | EXCL, READ).unwrap();
    assert_eq!(
        Err(Fault::Limit(LimitName::ScratchInodes)),
        guest.open(RW, "more", CREAT, READ)
    );
    assert!(!guest.host("rw/more").exists());
    assert_eq!("scratch_inodes", LimitName::ScratchInodes.as_str());
    assert_eq!("scratch_bytes", LimitName::ScratchBytes.as_str());
}
