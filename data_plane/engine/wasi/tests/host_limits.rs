//! The process' own limit on descriptors. Alone in its file: it holds for all tests of one.

mod support;

use agentfactory_wasi::{Config, Errno, Fault, LimitName, Limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Guest, READ, RW, config};

#[test]
fn a_host_without_descriptors_is_emfile_and_remembered_too() {
    let limits = Limits {
        max_open_files: u32::MAX,
        ..Limits::default()
    };
    let mut guest = Guest::with(Config { limits, ..config() });
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(40),
            maximum,
        },
    )
    .unwrap();
    let refused = (0..40).find_map(|_| guest.open(RW, "file", 0, READ).err());
    assert_eq!(Some(Fault::Errno(Errno::Mfile)), refused);
    assert_eq!(Some(LimitName::OpenFiles), guest.wasi.refused_limit());
}
