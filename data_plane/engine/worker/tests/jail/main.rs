//! A worker that has been taken over: it enters the jail as the shipped one does and then tries what a guest that broke
//! out would try. Each attempt is a process; the kernel's answer is its exit code, or the signal that ended it.

mod attempts;

use std::fs::{self, File, Permissions};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};

use agentfactory_worker::jail::{self, Mode, Root, User};
use agentfactory_worker::watchdog::end;

use Answer::{Done, Errno, Killed};
use attempts::{ATTEMPTS, Answer, Attempt, COMPILING, LANDLOCK, all};

/// What has to hold wherever the tests run.
const REQUIRED: [&str; 4] = ["seccomp", "namespaces", "rlimits", "no_new_privs"];
/// Exit codes above every errno that is looked for.
const JAIL_REFUSED: i32 = 200;
const OTHER: i32 = 201;
/// Descriptors that an attempt is started with: a directory that it may use, and one that it may not.
const SCRATCH: i32 = 1;
const OUTSIDE: i32 = 2;

/// In the process that misbehaves. Never returns.
fn attempt(name: &str, demanded: Vec<String>) -> ! {
    let mode = if name.starts_with("compile") {
        Mode::Compile
    } else {
        Mode::Run
    };
    let Ok(mut jail) = jail::enter(mode, User::Nobody, demanded) else {
        end(JAIL_REFUSED)
    };
    // SAFETY: a directory that the driver opened for this process; it stays open besides, for the attempts.
    let directory = unsafe { OwnedFd::from_raw_fd(libc::fcntl(SCRATCH, libc::F_DUPFD_CLOEXEC, 3)) };
    jail.restrict(&[Root {
        directory,
        writable: true,
    }]);
    if jail.lock().is_err() {
        end(JAIL_REFUSED);
    }
    let Some((_, act, _)) = all().find(|(each, _, _)| *each == name) else {
        end(0)
    };
    if act() >= 0 {
        end(0);
    }
    end(std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(OTHER))
}

struct Driver {
    folder: std::path::PathBuf,
    failed: u32,
}

impl Driver {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("agentfactory-jail-{}", std::process::id()));
        for name in ["scratch", "outside"] {
            fs::create_dir_all(folder.join(name)).expect("a folder");
        }
        // Started by root, the worker is nobody.
        fs::set_permissions(folder.join("scratch"), Permissions::from_mode(0o777)).expect("a mode");
        fs::write(folder.join("outside/secret"), b"secret").expect("a file");
        // Who may write it may also link it, as far as the mode bits are asked.
        fs::set_permissions(folder.join("outside/secret"), Permissions::from_mode(0o666))
            .expect("a mode");
        std::os::unix::fs::symlink("../outside/secret", folder.join("scratch/link"))
            .expect("a link");
        Self { folder, failed: 0 }
    }

    fn start(&self, arguments: &[&str]) -> Answer {
        let directory = |name| Stdio::from(File::open(self.folder.join(name)).expect("a folder"));
        let status = Command::new(std::env::current_exe().expect("own path"))
            .arg("attempt")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(directory("scratch"))
            .stderr(directory("outside"))
            .status()
            .expect("a process");
        match (status.code(), status.signal()) {
            (Some(0), _) => Done,
            (Some(code), _) => Errno(code),
            (None, Some(libc::SIGSYS)) => Killed,
            (None, other) => Errno(-other.unwrap_or(0)),
        }
    }

    fn check(&mut self, (name, _, expected): &Attempt) {
        let answer = self.start(&[name]);
        if answer != *expected {
            println!("FAILED {name}: {answer:?}, not {expected:?}");
            self.failed += 1;
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, name, demanded @ ..] = arguments.as_slice()
        && first == "attempt"
    {
        attempt(name, demanded.to_vec());
    }
    let mut driver = Driver::new();
    for layer in REQUIRED {
        if driver.start(&["none", layer]) != Done {
            println!("FAILED layer {layer} is not active here, and has to be");
            driver.failed += 1;
        }
    }
    if driver.start(&["none", "moat"]) != Errno(JAIL_REFUSED) {
        println!("FAILED a layer that does not exist was taken for active");
        driver.failed += 1;
    }
    ATTEMPTS
        .iter()
        .chain(COMPILING)
        .for_each(|each| driver.check(each));
    if driver.start(&["none", "landlock"]) == Done {
        LANDLOCK.iter().for_each(|each| driver.check(each));
    } else {
        println!(
            "not here: landlock; {} attempts were left out",
            LANDLOCK.len()
        );
    }
    println!("jail: {} attempts, {} failed", all().count(), driver.failed);
    if driver.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
