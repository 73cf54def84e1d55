//! `agentfactory-worker run|compile`: descriptor 0 is a socket to the parent. `engine`: print the engine's identity.

use std::process::ExitCode;

use agentfactory_worker::watchdog::exit;
use agentfactory_worker::{bench, compile, engine, jail, run};

const USAGE: &str =
    "usage: agentfactory-worker run | compile | engine | --version | bench ARTIFACT RUNS";
const WRONG_USE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("run") => jailed(|socket| run::serve(socket)),
        Some("compile") => jailed(compile::serve),
        Some("engine" | "--version") => {
            println!(
                "{}",
                serde_json::to_string(&engine::info()).expect("plain strings serialize")
            );
            ExitCode::SUCCESS
        }
        Some("bench") => match (
            arguments.next(),
            arguments.next().and_then(|text| text.parse().ok()),
        ) {
            (Some(path), Some(runs)) => report(bench::run(&path, runs)),
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

fn jailed(serve: impl FnOnce(std::os::fd::OwnedFd)) -> ExitCode {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // One thread without the other is no worker: whatever panics ends the process.
        say(panic);
        agentfactory_worker::watchdog::end(exit::PANIC);
    }));
    match jail::enter().and_then(|()| jail::take_socket()) {
        Ok(socket) => {
            serve(socket);
            ExitCode::SUCCESS
        }
        Err(message) => report(Err(message)),
    }
}
