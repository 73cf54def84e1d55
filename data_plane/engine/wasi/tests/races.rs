//! Names swapped by a second thread while the guest's call is under way.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agentfactory_wasi::{Errno, Fault};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::{Guest, READ, RW};

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
