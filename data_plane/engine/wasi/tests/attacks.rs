//! A guest that wants out: by path, by link, by rename. Each test is named for the attack.

mod support;

use std::os::unix::fs::symlink;

use agentfactory_wasi::abi::{oflags, rights};
use agentfactory_wasi::{Errno, Fault};
use support::{ALL_RIGHTS, Guest, OUT, READ, READ_WRITE, RO, RW};

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
