//! What a run costs, measured by the binary that runs it: the engine alone, and a blocking parent beside a real worker.
//! Prints one JSON line; judges nothing.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentfactory_wasi::{ClockMode, Config, Limits, RandomMode, Wasi};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use serde::Serialize;
use wasmer::Module;

use crate::frames::{FrameReader, Kind, MAX_FRAME_BYTES, append_frame, send_all};
use crate::guest::{Guest, Input};
use crate::host_call;
use crate::output::Output;
use crate::wasi::GuestStdio;
use crate::watchdog::Shared;
use crate::{artifact, engine};

const SPAWNS: usize = 20;
const BATCHES: usize = 10;
const MAX_RUNS: usize = 1_000_000;
const MAX_OUTPUT_BYTES: u64 = 1024 * 1024;
const RUN: &str = r#"{"args":["bench"],"limits":{"wall_ms":10000,"cpu_ms":10000,"memory_bytes":67108864,
"output_bytes":1048576,"log_bytes":65536,"open_files":16,"table_elements":1000000,"random_bytes":1048576,"log_lines":100,
"scratch_bytes":0,"scratch_inodes":0,"fuel":1,"host_calls":100,"host_call_bytes":1048576,"host_call_ms":10000}}"#;
/// What every host call is told: no line for the log, and that all went well.
const REPLY: &[u8] = b"\0\0\0\0{\"ok\":{}}";

/// Times in microseconds, memory in bytes.
#[derive(Serialize)]
struct Report {
    runs: usize,
    /// CPU of one run in a fresh store, without any protocol: of the batches the cheapest, and the middle one.
    engine_run_cpu_us_min: f64,
    engine_run_cpu_us_median: f64,
    /// Pages that the kernel mapped or copied because a run touched them.
    engine_run_page_faults: f64,
    round_trip_us_p50: f64,
    round_trip_us_p99: f64,
    spawn_to_ready_us_p50: f64,
    spawn_to_ready_us_max: f64,
    idle_resident_bytes: u64,
}

/// Measure `runs` runs of the artifact at `path`, which are given the bytes of the file `input` to read, and print the
/// report.
///
/// # Errors
/// A file cannot be opened, or a worker does not do as it should.
pub fn run(path: &str, runs: usize, input: Option<&str>) -> Result<(), String> {
    if !(BATCHES..=MAX_RUNS).contains(&runs) {
        return Err(format!("RUNS is a number from {BATCHES} to {MAX_RUNS}"));
    }
    let stdin = match input {
        Some(input) => std::fs::read(input).map_err(|error| format!("{input}: {error}"))?,
        None => Vec::new(),
    };
    // What a run asks its host is asked again by each, so the answers can be there before it asks.
    let calls = Parent::start(path, &stdin)?.round_trip()?;
    let mut given = frames_of(&stdin);
    for _ in 0..calls {
        append_frame(&mut given, Kind::HostReply, REPLY);
    }
    // On a thread of its own, as in a worker: the first thread's heap gives back to the kernel what others keep.
    let (mut cpu, faults) = std::thread::scope(|scope| {
        scope
            .spawn(|| engine_only(path, runs, &given))
            .join()
            .map_err(|_| "the engine panicked".to_owned())?
    })?;
    let mut spawns = Vec::new();
    for _ in 0..SPAWNS {
        spawns.push(Parent::start(path, &stdin)?.spawn_to_ready);
    }
    let mut parent = Parent::start(path, &stdin)?;
    let mut trips = Vec::new();
    for _ in 0..runs {
        let started = Instant::now();
        parent.round_trip()?;
        trips.push(started.elapsed());
    }
    cpu.sort_by(f64::total_cmp);
    let report = Report {
        runs,
        engine_run_cpu_us_min: cpu[0],
        engine_run_cpu_us_median: cpu[cpu.len() / 2],
        engine_run_page_faults: faults,
        round_trip_us_p50: percentile(&mut trips, 50),
        round_trip_us_p99: percentile(&mut trips, 99),
        spawn_to_ready_us_p50: percentile(&mut spawns, 50),
        spawn_to_ready_us_max: percentile(&mut spawns, 100),
        idle_resident_bytes: parent.resident_bytes()?,
    };
    println!(
        "{}",
        serde_json::to_string(&report).expect("plain numbers serialize")
    );
    Ok(())
}

fn percentile(values: &mut [Duration], percent: usize) -> f64 {
    values.sort();
    let index = (values.len() * percent / 100).min(values.len() - 1);
    values[index].as_secs_f64() * 1e6
}

/// The CPU microseconds of a run in each batch, and the page faults of a run over all of them.
fn engine_only(path: &str, runs: usize, given: &[u8]) -> Result<(Vec<f64>, f64), String> {
    let (ours, theirs) = pair()?;
    let reading = ours.try_clone().map_err(|error| error.to_string())?;
    let shared = Arc::new(Shared::new(Output::new(ours)).map_err(|error| error.to_string())?);
    let input = Input::new(FrameReader::new(reading));
    let file = OwnedFd::from(File::open(path).map_err(|error| format!("{path}: {error}"))?);
    let (made_by, payload) = artifact::open(file).map_err(|error| format!("{path}: {error:?}"))?;
    let headless = engine::headless(&shared.budget);
    // SAFETY: whoever runs the bench names an artifact that the same binary has just compiled.
    let module =
        unsafe { Module::deserialize(&headless, payload) }.map_err(|error| error.to_string())?;
    let guest = Guest::new(headless, module, made_by, &shared.budget)?;
    let batch = runs / BATCHES;
    let per_batch = f64::from(u32::try_from(batch).unwrap_or(u32::MAX));
    let mut asked = vec![0; MAX_FRAME_BYTES];
    let mut costs = Vec::new();
    let faults_before = thread_faults();
    for _ in 0..BATCHES {
        let mut spent = Duration::ZERO;
        for _ in 0..batch {
            send_all(&theirs, given, &[]).map_err(|error| error.to_string())?;
            input.begin();
            let started = thread_cpu();
            one(&guest, &input, &shared)?;
            spent += thread_cpu() - started;
            input.finish(&shared);
            // What it asked its host.
            while recv(&theirs, &mut asked, RecvFlags::DONTWAIT).is_ok() {}
        }
        costs.push(spent.as_secs_f64() * 1e6 / per_batch);
    }
    let faults = u32::try_from(thread_faults() - faults_before).unwrap_or(u32::MAX);
    Ok((costs, f64::from(faults) / per_batch / BATCHES as f64))
}

fn frames_of(stdin: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    for chunk in stdin.chunks(MAX_FRAME_BYTES / 2) {
        append_frame(&mut frames, Kind::Stdin, chunk);
    }
    append_frame(&mut frames, Kind::Stdin, b"");
    frames
}

const HOST_CALLS: host_call::Limits = host_call::Limits {
    calls: u32::MAX,
    bytes: u64::MAX,
    wait: Duration::from_secs(10),
};

fn one(guest: &Guest, input: &Input, shared: &Arc<Shared>) -> Result<(), String> {
    shared.budget.reset(64 << 20, 1_000_000, false);
    shared.calls.reset();
    let config = Config {
        args: vec![b"bench".to_vec()],
        env: Vec::new(),
        preopens: Vec::new(),
        limits: Limits {
            max_open_files: 16,
            max_stdout_bytes: MAX_OUTPUT_BYTES,
            max_stderr_bytes: MAX_OUTPUT_BYTES,
            max_random_bytes: MAX_OUTPUT_BYTES,
            max_log_lines: 100,
            ..Limits::default()
        },
        clock: ClockMode::Real,
        random: RandomMode::Os,
    };
    let stdio = GuestStdio {
        input: input.clone(),
        shared: Arc::clone(shared),
    };
    let wasi = Wasi::new(config, stdio).map_err(|error| error.to_string())?;
    let (outcome, _) = guest.run(wasi, u64::MAX, HOST_CALLS, shared);
    shared.output().discard();
    if outcome.outcome == "succeeded" {
        Ok(())
    } else {
        Err(format!(
            "the guest {} {}",
            outcome.outcome,
            outcome.limit.unwrap_or_default()
        ))
    }
}

/// A parent that blocks, as no node does: the least a round trip can cost.
struct Parent {
    child: std::process::Child,
    socket: OwnedFd,
    reader: FrameReader<OwnedFd>,
    request: Vec<u8>,
    spawn_to_ready: Duration,
}

impl Parent {
    fn start(path: &str, stdin: &[u8]) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("{path}: {error}"))?;
        let (ours, theirs) = pair()?;
        let started = Instant::now();
        let child = Command::new("/proc/self/exe")
            .arg("run")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|error| format!("worker cannot be started: {error}"))?;
        let mut load = Vec::new();
        append_frame(&mut load, Kind::Load, b"{}");
        send_all(&ours, &load, &[file.as_fd()]).map_err(|error| error.to_string())?;
        let reading = ours.try_clone().map_err(|error| error.to_string())?;
        let mut reader = FrameReader::new(reading);
        match reader.next_frame() {
            Ok(Some((Kind::Ready, _))) => {}
            other => return Err(format!("worker is not ready: {other:?}")),
        }
        let spawn_to_ready = started.elapsed();
        let mut request = Vec::new();
        append_frame(&mut request, Kind::Run, RUN.as_bytes());
        request.extend(frames_of(stdin));
        Ok(Self {
            child,
            socket: ours,
            reader,
            request,
            spawn_to_ready,
        })
    }

    /// Run once, and return how many host calls were made.
    fn round_trip(&mut self) -> Result<usize, String> {
        send_all(&self.socket, &self.request, &[]).map_err(|error| error.to_string())?;
        let mut calls = 0;
        loop {
            match self.reader.next_frame() {
                Ok(Some((Kind::Output, _))) => {}
                Ok(Some((Kind::HostCall, _))) => {
                    let mut reply = Vec::new();
                    append_frame(&mut reply, Kind::HostReply, REPLY);
                    send_all(&self.socket, &reply, &[]).map_err(|error| error.to_string())?;
                    calls += 1;
                }
                Ok(Some((Kind::Outcome, payload)))
                    if payload.starts_with(b"{\"outcome\":\"succeeded\"") =>
                {
                    return Ok(calls);
                }
                other => return Err(format!("worker answers {other:?}")),
            }
        }
    }

    /// Of the worker and of the monitor in front of it, which is the process started here.
    fn resident_bytes(&self) -> Result<u64, String> {
        let monitor = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children"))
            .map_err(|error| format!("children of the monitor: {error}"))?;
        let workers = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(monitor)
            .chain(workers)
            .map(resident_bytes)
            .sum()
    }
}

fn resident_bytes(pid: u32) -> Result<u64, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|text| text.parse::<u64>().ok());
    kibibytes
        .map(|size| size * 1024)
        .ok_or_else(|| "the kernel names no resident size".to_owned())
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), String> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| error.to_string())
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn thread_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the place is valid to write to, and all zeros are a valid value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    u64::try_from(usage.ru_minflt).unwrap_or(0)
}
