//! `agentfactory-worker run|compile [--own-user] [LAYER]...`: descriptor 0 is a socket to the parent; the named layers of
//! the jail are demanded. Started by root it becomes nobody, unless it is told to keep its user. `engines`: print the
//! engine's identity under every profile, `engine` under the default one. `doctor`: print which layers hold here.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use agentfactory_worker::jail::{Jail, Mode, User};
use agentfactory_worker::messages::Profile;
use agentfactory_worker::watchdog::exit;
use agentfactory_worker::{bench, compile, engine, jail, run};

const USAGE: &str = "usage: agentfactory-worker run [--own-user] [LAYER]... | compile [LAYER]... | engine | engines | doctor | --version | bench ARTIFACT RUNS [INPUT]";
const OWN_USER: &str = "--own-user";
const WRONG_USE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("run") => jailed(Mode::Run, arguments.collect(), |socket, jail| {
            run::serve(socket, jail)
        }),
        Some("compile") => jailed(Mode::Compile, arguments.collect(), compile::serve),
        Some("doctor") => doctor(),
        Some("engine" | "--version") => {
            println!(
                "{}",
                serde_json::to_string(&engine::info(Profile::Default))
                    .expect("plain strings serialize")
            );
            ExitCode::SUCCESS
        }
        Some("engines") => {
            println!(
                "{}",
                serde_json::to_string(&Profile::ALL.map(engine::info))
                    .expect("plain strings serialize")
            );
            ExitCode::SUCCESS
        }
        Some("bench") => match (
            arguments.next(),
            arguments.next().and_then(|text| text.parse().ok()),
        ) {
            (Some(path), Some(runs)) => {
                report(bench::run(&path, runs, arguments.next().as_deref()))
            }
            _ => report(Err(USAGE.to_owned())),
        },
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(WRONG_USE)
        }
    }
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("agentfactory-worker: {message}");
            ExitCode::from(WRONG_USE)
        }
    }
}

fn jailed(mode: Mode, mut demanded: Vec<String>, serve: impl FnOnce(OwnedFd, Jail)) -> ExitCode {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // One thread without the other is no worker: whatever panics ends the process.
        say(panic);
        agentfactory_worker::watchdog::end(exit::PANIC);
    }));
    let user = match demanded.first() {
        Some(first) if first == OWN_USER => User::Own,
        _ => User::Nobody,
    };
    demanded.retain(|name| name != OWN_USER);
    let entered =
        jail::enter(mode, user, demanded).and_then(|jail| Ok((jail::take_socket()?, jail)));
    match entered {
        Ok((socket, jail)) => {
            serve(socket, jail);
            ExitCode::SUCCESS
        }
        Err(message) => report(Err(message)),
    }
}

/// Enter the jail of a worker that runs guests, and print what holds here as one line of JSON.
fn doctor() -> ExitCode {
    let locked = jail::enter(Mode::Run, User::Nobody, Vec::new()).and_then(|mut jail| {
        jail.restrict(&[]);
        jail.lock().map(|()| jail)
    });
    report(locked.map(|jail| {
        println!(
            "{}",
            serde_json::to_string(jail.layers()).expect("plain strings serialize")
        );
    }))
}
