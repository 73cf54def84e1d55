//! Run mode: load one artifact, then run it as often as the parent asks, one run at a time.

use std::num::ParseIntError;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentfactory_wasi::{ClockMode, Config, Limits, Preopen, RandomMode, Wasi};
use serde::Deserialize;
use wasmer::Module;

use crate::artifact::{self, ArtifactError};
use crate::engine;
use crate::frames::{FrameReader, Kind};
use crate::guest::{Guest, Input, Used, refuse};
use crate::host_call;
use crate::jail::{self, Jail, Root};
use crate::messages::{Load, MAX_ARGUMENTS, MAX_PREOPENS, Outcome, Profile, Ready, Refusal, Run};
use crate::output::Output;
use crate::wasi::GuestStdio;
use crate::watchdog::{Shared, end, exit};

/// Stack of the guest thread: host functions run on it, the guest has its own.
const GUEST_THREAD_STACK_BYTES: usize = 1024 * 1024;
/// How far a deterministic clock moves on each reading.
const CLOCK_TICK_NS: u64 = 1_000;

/// Serve the parent on `socket` until it says stop, closes, or a limit ends the process.
pub fn serve(socket: OwnedFd, mut jail: Jail) -> ! {
    let reading = socket
        .try_clone()
        .expect("a second descriptor of the socket");
    let shared = Arc::new(Shared::new(Output::new(socket)).expect("a timer"));
    let input = Input::new(FrameReader::new(reading));
    // Landlock holds for the thread that asks and for those it starts, so it comes before the second thread.
    let (request, artifact) = asked(&input, &shared, &mut jail);
    let guest_side = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("guest".to_owned())
        .stack_size(GUEST_THREAD_STACK_BYTES)
        .spawn(move || {
            // The last thread there is.
            jail::no_more_processes();
            let guest = load(&request, artifact, &guest_side, jail);
            serve_runs(&guest, &input, &guest_side)
        })
        .expect("a guest thread");
    shared.watch()
}

/// What the next frame asks for.
enum Asked<Message> {
    Message(Message, Vec<OwnedFd>),
    Broken(String),
    Ended,
}

/// Read one frame of the wanted kind, with the descriptors that `count` finds in it.
fn next<Message: for<'a> Deserialize<'a>>(
    input: &Input,
    wanted: Kind,
    count: impl FnOnce(&Message) -> usize,
) -> Asked<Message> {
    input.with_reader(|reader| {
        let message = match reader.next_frame() {
            Ok(None | Some((Kind::Stop, _))) => return Asked::Ended,
            Ok(Some((kind, payload))) if kind == wanted => {
                serde_json::from_slice::<Message>(payload)
            }
            Ok(Some((kind, _))) => {
                return Asked::Broken(format!("frame {kind:?} where {wanted:?} was due"));
            }
            Err(error) => return Asked::Broken(error.to_string()),
        };
        match message {
            Err(error) => Asked::Broken(format!("{wanted:?}: {error}")),
            Ok(message) => match reader.take_descriptors(count(&message)) {
                Ok(descriptors) => Asked::Message(message, descriptors),
                Err(_) => Asked::Broken(format!("{wanted:?} came without its descriptors")),
            },
        }
    })
}

/// Read what to load, and let the process see no directory but those that came with it.
fn asked(input: &Input, shared: &Shared, jail: &mut Jail) -> (Load, OwnedFd) {
    let count = |request: &Load| request.roots.len() + 1;
    let (request, mut descriptors) = match next::<Load>(input, Kind::Load, count) {
        Asked::Message(request, descriptors) => (request, descriptors),
        Asked::Broken(message) => refuse(&mut shared.output(), message),
        Asked::Ended => end(0),
    };
    let artifact = descriptors.remove(0);
    let roots: Vec<Root> = descriptors
        .into_iter()
        .zip(&request.roots)
        .map(|(directory, root)| Root {
            directory,
            writable: root.writable,
        })
        .collect();
    jail.restrict(&roots);
    (request, artifact)
}

fn load(request: &Load, artifact: OwnedFd, shared: &Shared, mut jail: Jail) -> Guest {
    jail::limit_process(&request.process);
    match open(request, artifact, shared) {
        Ok(guest) => {
            let locked = jail.lock();
            let mut output = shared.output();
            if let Err(message) = locked {
                output.say(Kind::Outcome, &Outcome::from(Refusal::new("jail", message)));
                let _ = output.flush();
                end(exit::JAIL);
            }
            output.say(
                Kind::Ready,
                &Ready {
                    engine: &guest.info,
                    jail: jail.layers(),
                },
            );
            if output.flush().is_err() {
                end(exit::PROTOCOL);
            }
            guest
        }
        Err(refusal) => {
            let mut output = shared.output();
            output.say(Kind::Outcome, &Outcome::from(refusal));
            let _ = output.flush();
            end(exit::LOAD_REFUSED)
        }
    }
}

fn open(request: &Load, descriptor: OwnedFd, shared: &Shared) -> Result<Guest, Refusal> {
    let (made_by, payload) = artifact::open(descriptor).map_err(|error| match error {
        ArtifactError::Invalid(message) => {
            Refusal::new("artifact_invalid", format!("artifact: {message}"))
        }
        ArtifactError::OtherEngine(message) => {
            Refusal::new("engine_mismatch", format!("artifact: {message}"))
        }
    })?;
    // What the artifact was made by is what this process is; the parent says which of its engines that has to be.
    if let Some(difference) = request
        .engine
        .as_ref()
        .and_then(|wanted| artifact::difference(wanted, &made_by))
    {
        return Err(Refusal::new("engine_mismatch", difference));
    }
    let engine = engine::headless(&shared.budget);
    // SAFETY: the parent authenticated the file over its whole length before handing it over, and its header names
    // exactly this engine, configuration and CPU.
    let module = unsafe { Module::deserialize(&engine, payload) }
        .map_err(|error| Refusal::new("artifact_invalid", format!("artifact: {error}")))?;
    Guest::new(engine, module, made_by, &shared.budget)
        .map_err(|message| Refusal::new("invalid_module", message))
}

fn serve_runs(guest: &Guest, input: &Input, shared: &Arc<Shared>) -> ! {
    for number in 1.. {
        let (run, descriptors) = match next::<Run>(input, Kind::Run, |run| run.preopens.len()) {
            Asked::Message(run, descriptors) => (run, descriptors),
            Asked::Broken(message) => refuse(&mut shared.output(), message),
            Asked::Ended => end(0),
        };
        let (wall, cpu) = (
            Duration::from_millis(run.limits.wall_ms),
            Duration::from_millis(run.limits.cpu_ms),
        );
        let profile = guest.info.profile;
        let fuel = run.limits.fuel;
        shared.budget.reset(
            run.limits.memory_bytes,
            run.limits.table_elements,
            profile.is_repeatable(),
        );
        shared.calls.reset();
        shared.output().reset();
        input.begin();
        shared.arm(number, wall, cpu);
        let stdio = GuestStdio {
            input: input.clone(),
            shared: Arc::clone(shared),
        };
        let host_calls = host_call::Limits::from(&run.limits);
        let (outcome, used) = match configure(run, descriptors, profile) {
            Err(message) => (
                Refusal::new("invalid_request", message).into(),
                Used::default(),
            ),
            Ok(config) => match Wasi::new(config, stdio) {
                Err(error) => (
                    Refusal::new("invalid_request", error.to_string()).into(),
                    Used::default(),
                ),
                Ok(wasi) => guest.run(wasi, fuel, host_calls, shared),
            },
        };
        report(outcome, &used, shared);
        input.finish(shared);
    }
    unreachable!("a worker does not live for 2^64 runs")
}

fn configure(run: Run, descriptors: Vec<OwnedFd>, profile: Profile) -> Result<Config, String> {
    if run.args.len() > MAX_ARGUMENTS || run.env.len() > MAX_ARGUMENTS {
        return Err(format!(
            "more than {MAX_ARGUMENTS} arguments or environment entries"
        ));
    }
    if run.preopens.len() > MAX_PREOPENS {
        return Err(format!("more than {MAX_PREOPENS} preopened directories"));
    }
    if profile.is_repeatable() && (run.seed.is_none() || run.clock.is_none()) {
        return Err(format!(
            "a run under profile {} needs a seed and a clock",
            profile.as_str()
        ));
    }
    let random = match run.seed {
        None => RandomMode::Os,
        Some(text) => RandomMode::Seeded(
            seed(&text).map_err(|_| "seed is not 64 hexadecimal digits".to_owned())?,
        ),
    };
    Ok(Config {
        args: run.args.into_iter().map(String::into_bytes).collect(),
        env: run
            .env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}").into_bytes())
            .collect(),
        preopens: run
            .preopens
            .into_iter()
            .zip(descriptors)
            .map(|(preopen, fd)| Preopen {
                fd,
                guest_path: preopen.guest_path,
                writable: preopen.writable,
            })
            .collect(),
        limits: Limits {
            max_open_files: run.limits.open_files,
            max_stdout_bytes: run.limits.output_bytes,
            max_stderr_bytes: run.limits.log_bytes,
            max_random_bytes: run.limits.random_bytes,
            max_log_lines: run.limits.log_lines,
            max_scratch_bytes: run.limits.scratch_bytes,
            max_scratch_inodes: run.limits.scratch_inodes,
        },
        clock: run
            .clock
            .map_or(ClockMode::Real, |start_ns| ClockMode::Deterministic {
                start_ns,
                tick_ns: CLOCK_TICK_NS,
            }),
        random,
    })
}

fn seed(text: &str) -> Result<[u8; 32], ParseIntError> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return Err(u8::from_str_radix("", 16).expect_err("empty is no number"));
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)?;
    }
    Ok(bytes)
}

/// Send the outcome. From taking the lock to letting go of it the watchdog cannot speak; it stays armed until the
/// outcome has left, so that a parent which does not read cannot hold the worker.
fn report(mut outcome: Outcome, used: &Used, shared: &Shared) {
    let mut output = shared.output();
    let (wall, cpu) = shared.elapsed();
    let mut resources = shared.resources(&output, wall, cpu);
    resources.add(&used.wasi);
    resources.fuel = used.fuel;
    outcome.resources = Some(resources);
    output.say(Kind::Outcome, &outcome);
    if output.flush().is_err() {
        end(exit::PROTOCOL);
    }
    shared.disarm();
}
