//! One run of a loaded module: a fresh store, its imports, `_start`, and how it ended.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use agentfactory_module::pages;
use agentfactory_wasi::{Errno, Usage, Wasi};
use wasmer::{
    Extern, ExternType, Function, FunctionEnv, Instance, InstantiationError, Module, RuntimeError,
    Store, Value,
};

use crate::engine;
use crate::frames::{FrameReader, Kind};
use crate::fuel;
use crate::host_call::{self, HostCalls, Reply};
use crate::image::{Image, Recording};
use crate::limits::{Budget, Fresh};
use crate::messages::{EngineInfo, Outcome, Refusal, Trap};
use crate::output::Output;
use crate::wasi::{Context, GuestStdio, Maker, Unwind, resolve};
use crate::watchdog::{Shared, end, exit};

/// The engine's name of the trap of a guest whose call stack is full; its type is not exported.
const STACK_OVERFLOW: &str = "StackOverflow";

/// A module ready to run, again and again.
pub struct Guest {
    engine: wasmer::Engine,
    module: Module,
    imports: Vec<Maker>,
    /// The engine that the module was compiled by; its profile is the one of every run.
    pub info: EngineInfo,
}

/// What a run used, as far as it is known inside the guest.
#[derive(Default)]
pub struct Used {
    pub wasi: Usage,
    /// 0 under a profile that does not count it.
    pub fuel: u64,
}

impl Guest {
    /// Before the jail is locked: what the module's memory begins with is kept for all runs, if that saves them work.
    ///
    /// # Errors
    /// Names an import that is not offered.
    pub fn new(
        engine: wasmer::Engine,
        module: Module,
        info: EngineInfo,
        budget: &Arc<Budget>,
    ) -> Result<Self, String> {
        let imports = resolve(&module)?;
        let engine = match image(&engine, &module, budget) {
            Some(image) => engine::beginning(&engine, budget, Fresh::Image(Arc::new(image))),
            None => engine,
        };
        Ok(Self {
            engine,
            module,
            imports,
            info,
        })
    }

    /// Run `_start` in a store of its own, on `fuel` if the profile counts it; nothing of it is left for the next run.
    pub fn run(
        &self,
        mut wasi: Wasi<GuestStdio>,
        fuel: u64,
        limits: host_call::Limits,
        shared: &Shared,
    ) -> (Outcome, Used) {
        let mut store = Store::new(self.engine.clone());
        let context = Context {
            host_calls: HostCalls::new(wasi.stdio_mut(), limits),
            wasi,
            memory: None,
            fuel: None,
        };
        let env = FunctionEnv::new(&mut store, context);
        let ended = self.start(&mut store, &env, fuel);
        let remaining = env
            .as_ref(&store)
            .fuel
            .clone()
            .and_then(|remaining| remaining.get(&mut store).i64());
        let wasi = &env.as_ref(&store).wasi;
        let used = Used {
            wasi: wasi.usage(),
            fuel: remaining.map_or(0, |left| fuel::used(fuel, left)),
        };
        if remaining.is_some_and(|left| left < 0) {
            // However it ended: a block is paid for as a whole, so it may have come to its end on fuel it did not have.
            return (killed("fuel"), used);
        }
        // A refusal that the guest could not live with is the reason of its end; one it coped with is not.
        let refused = shared.budget.refused_limit().or_else(|| {
            wasi.refused_limit()
                .map(agentfactory_wasi::LimitName::as_str)
        });
        (outcome(ended, refused), used)
    }

    fn start(
        &self,
        store: &mut Store,
        env: &FunctionEnv<Context>,
        fuel: u64,
    ) -> Result<(), RuntimeError> {
        let imports: Vec<Extern> = self
            .imports
            .iter()
            .map(|make| make(store, env).into())
            .collect();
        let instance = match Instance::new_by_index(store, &self.module, &imports) {
            Ok(instance) => instance,
            Err(InstantiationError::Start(error)) => return Err(error),
            Err(error) => return Err(RuntimeError::new(format!("instantiate: {error}"))),
        };
        let missing = |name: &str| RuntimeError::new(format!("export {name} is missing"));
        if self.info.profile.is_repeatable() {
            let remaining = instance
                .exports
                .get_global(fuel::REMAINING)
                .map_err(|_| missing(fuel::REMAINING))?
                .clone();
            remaining.set(store, Value::I64(i64::try_from(fuel).unwrap_or(i64::MAX)))?;
            env.as_mut(store).fuel = Some(remaining);
            if let Ok(start) = instance.exports.get_function(fuel::START) {
                start.call(store, &[])?;
            }
        }
        let memory = instance
            .exports
            .get_memory("memory")
            .map_err(|_| missing("memory"))?
            .clone();
        env.as_mut(store).memory = Some(memory);
        let start = instance
            .exports
            .get_function("_start")
            .map_err(|_| missing("_start"))?;
        start.call(store, &[]).map(|_| ())
    }
}

/// Tables that a module may have and still be instantiated before anybody has said how much its runs may use.
const RECORDED_TABLE_ELEMENTS: u32 = 100_000;

/// Instantiate the module once, running nothing of it, and keep what its segments are.
fn image(engine: &wasmer::Engine, module: &Module, budget: &Arc<Budget>) -> Option<Image> {
    let about = module.info();
    // A start function would run here, outside any limit; under a repeatable profile the host calls it.
    if about.start_function.is_some() || about.memories.len() != 1 {
        return None;
    }
    let recording = Arc::new(Recording::begin().ok()?);
    budget.reset(u64::MAX, RECORDED_TABLE_ELEMENTS, false);
    let fresh = Fresh::Recorded(Arc::clone(&recording));
    let mut store = Store::new(engine::beginning(engine, budget, fresh));
    let imports: Option<Vec<Extern>> = module
        .imports()
        .map(|import| match import.ty() {
            ExternType::Function(signature) => {
                let never = |_: &[Value]| Err(RuntimeError::new("nothing runs yet"));
                Some(Function::new(&mut store, signature, never).into())
            }
            _ => None,
        })
        .collect();
    // A segment that does not fit fails here as it will in each run, which then says so.
    Instance::new_by_index(&mut store, module, &imports?).ok()?;
    drop(store);
    Arc::into_inner(recording)?.finish(to_be_written(module))
}

/// What the module says of the pages that its runs write. One that says it wrongly says nothing: it was not built here.
fn to_be_written(module: &Module) -> Vec<Range<u64>> {
    let memory = module.info().memories.iter().next();
    let memory_bytes = memory.map_or(0, |(_, memory)| memory.minimum.bytes().0 as u64);
    module
        .custom_sections(pages::SECTION)
        .next()
        .and_then(|section| pages::parse(&section, memory_bytes).ok())
        .unwrap_or_default()
}

fn outcome(ended: Result<(), RuntimeError>, refused: Option<&'static str>) -> Outcome {
    let error = match ended {
        Ok(()) => return exited(0),
        Err(error) => error,
    };
    let error = match error.downcast::<Unwind>() {
        Ok(Unwind::Exit(0)) => return exited(0),
        Ok(Unwind::Limit(limit)) => return killed(limit.as_str()),
        Ok(Unwind::OutOfFuel) => return killed("fuel"),
        Ok(Unwind::Exit(code)) => return refused.map_or_else(|| exited(code), killed),
        Ok(Unwind::Killed(limit)) => return killed(limit),
        Ok(Unwind::HostCallFault) => {
            return trapped(
                "HostCallFault",
                "agentfactory.call was given a range that is not in the memory",
            );
        }
        Err(error) => error,
    };
    let trap = error.clone().to_trap();
    let name = trap.map_or_else(String::new, |code| format!("{code:?}"));
    if name == STACK_OVERFLOW {
        return killed("stack_bytes");
    }
    if let Some(limit) = refused {
        return killed(limit);
    }
    match trap {
        Some(code) => trapped(&name, code.message()),
        // Only names and numbers of the module itself are in these texts; addresses of the host never are.
        None => trapped("EngineError", &error.message()),
    }
}

fn killed(limit: &'static str) -> Outcome {
    Outcome {
        outcome: "killed",
        limit: Some(limit),
        ..Outcome::default()
    }
}

fn exited(code: u32) -> Outcome {
    let outcome = if code == 0 { "succeeded" } else { "failed" };
    Outcome {
        outcome,
        exit_code: Some(code),
        ..Outcome::default()
    }
}

fn trapped(name: &str, message: &str) -> Outcome {
    let trap = Trap {
        name: name.to_owned(),
        message: message.to_owned(),
    };
    Outcome {
        outcome: "trapped",
        trap: Some(trap),
        ..Outcome::default()
    }
}

/// Input that may come before the guest reads it: all that a run may be given.
const MAX_AHEAD_BYTES: usize = 16 * 1024 * 1024;

struct InputState {
    reader: FrameReader<std::os::fd::OwnedFd>,
    /// Input that came while the guest waited for something else.
    ahead: VecDeque<Vec<u8>>,
    ahead_bytes: usize,
    chunk: Vec<u8>,
    position: usize,
    ended: bool,
}

/// Frames from the parent; while a guest runs, its standard input. Used by the guest thread only, the lock is for the
/// compiler's peace.
#[derive(Clone)]
pub struct Input(Arc<Mutex<InputState>>);

impl Input {
    #[must_use]
    pub fn new(reader: FrameReader<std::os::fd::OwnedFd>) -> Self {
        Self(Arc::new(Mutex::new(InputState {
            reader,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            chunk: Vec::new(),
            position: 0,
            ended: true,
        })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, InputState> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Use the frame reader between runs.
    pub fn with_reader<Value>(
        &self,
        function: impl FnOnce(&mut FrameReader<std::os::fd::OwnedFd>) -> Value,
    ) -> Value {
        function(&mut self.state().reader)
    }

    /// Begin a run: its input is still to come.
    pub fn begin(&self) {
        let mut state = self.state();
        state.chunk.clear();
        (state.position, state.ended) = (0, false);
    }

    /// Pass over what the run did not read, up to the empty frame that ends its input.
    pub fn finish(&self, shared: &Shared) {
        let mut state = self.state();
        while !state.ended {
            state.next_chunk(shared, Late::IsIgnored);
        }
        state.ahead = VecDeque::new();
        state.ahead_bytes = 0;
        // A guest with a large input does not leave the memory it took behind.
        const KEEP_BYTES: usize = 64 * 1024;
        state.chunk.clear();
        state.chunk.shrink_to(KEEP_BYTES);
    }

    /// Wait for the answer to a host call; `None` when it does not come in time.
    pub fn reply(&self, shared: &Shared, deadline: Instant) -> Option<Reply> {
        self.state().next_reply(shared, deadline)
    }

    /// Read at most `buf.len()` bytes; waits for the parent; 0 at the end.
    ///
    /// # Errors
    /// None: a broken socket or protocol ends the process.
    pub fn read(&self, buf: &mut [u8], shared: &Shared) -> Result<usize, Errno> {
        let mut state = self.state();
        while state.position == state.chunk.len() && !state.ended {
            state.next_chunk(shared, Late::IsRefused);
        }
        let available = &state.chunk[state.position..];
        let size = available.len().min(buf.len());
        buf[..size].copy_from_slice(&available[..size]);
        state.position += size;
        Ok(size)
    }
}

/// What a reply is that nobody waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    IsRefused,
    /// Its guest was stopped while it waited.
    IsIgnored,
}

impl InputState {
    /// Wait for the next frame of a reply; input that comes first is kept for the guest to read.
    fn next_reply(&mut self, shared: &Shared, deadline: Instant) -> Option<Reply> {
        loop {
            match self.reader.wait_for_frame(deadline) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => refuse(&mut shared.output(), error.to_string()),
            }
            match self.reader.next_frame() {
                Ok(Some((Kind::HostReply, payload))) => {
                    return Some(host_call::parse_reply(payload, shared));
                }
                Ok(Some((Kind::Stdin, payload)))
                    if self.ahead_bytes + payload.len() <= MAX_AHEAD_BYTES =>
                {
                    self.ahead_bytes += payload.len();
                    self.ahead.push_back(payload.to_vec());
                }
                Ok(Some((kind, _))) => refuse(
                    &mut shared.output(),
                    format!("frame {kind:?} while a guest waits for a reply"),
                ),
                Ok(None) => end(0),
                Err(error) => refuse(&mut shared.output(), error.to_string()),
            }
        }
    }

    fn next_chunk(&mut self, shared: &Shared, late: Late) {
        if let Some(chunk) = self.ahead.pop_front() {
            self.ahead_bytes -= chunk.len();
            self.ended = chunk.is_empty();
            (self.chunk, self.position) = (chunk, 0);
            return;
        }
        let mut output = shared.output();
        // Whoever waits for input may be waiting for an answer to what the guest has just written.
        if !output.is_empty() && output.flush().is_err() {
            end(exit::PROTOCOL);
        }
        drop(output);
        match self.reader.next_frame() {
            Ok(Some((Kind::Stdin, payload))) => {
                self.ended = payload.is_empty();
                self.chunk.clear();
                self.chunk.extend_from_slice(payload);
                self.position = 0;
            }
            Ok(Some((Kind::HostReply, _))) if late == Late::IsIgnored => {}
            Ok(Some((kind, _))) => refuse(
                &mut shared.output(),
                format!("frame {kind:?} while a guest runs"),
            ),
            Ok(None) => end(0),
            Err(error) => refuse(&mut shared.output(), error.to_string()),
        }
    }
}

/// Tell the parent that it broke the protocol, and end.
pub fn refuse(output: &mut Output, message: String) -> ! {
    output.say(
        Kind::Outcome,
        &Outcome::from(Refusal::new("protocol", message)),
    );
    let _ = output.flush();
    end(exit::PROTOCOL)
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;
    use crate::messages::Profile;

    /// A memory of two pages, and the section as it was written.
    fn compiled(section: &[u8]) -> Module {
        let mut bytes = b"\0asm\x01\0\0\0\x05\x03\x01\0\x02".to_vec();
        let size = u8::try_from(1 + pages::SECTION.len() + section.len()).expect("a short section");
        bytes.extend([
            0,
            size,
            u8::try_from(pages::SECTION.len()).expect("a short name"),
        ]);
        bytes.extend(pages::SECTION.bytes());
        bytes.extend(section);
        let compiler = engine::compiler(Profile::Default, NonZero::new(1).expect("one"));
        let made = Module::new(&compiler, &bytes).expect("a module");
        let artifact = made.serialize().expect("an artifact");
        // SAFETY: the bytes come out of the engine.
        unsafe { Module::deserialize(&engine::headless(&Arc::default()), artifact) }
            .expect("a module")
    }

    #[test]
    fn an_artifact_keeps_the_pages_that_its_module_names() {
        let module = compiled(&[1, 0, 0, 0, 31, 0, 0, 0]);
        assert_eq!(to_be_written(&module), [4096..8192, 126_976..131_072]);
    }

    #[test]
    fn a_section_that_nobody_checked_is_passed_over_when_it_is_wrong() {
        for wrong in [
            &[32, 0, 0, 0][..],
            &[2, 0, 0, 0, 1, 0, 0, 0],
            &[1, 0, 0],
            &[255; 4],
        ] {
            assert_eq!(to_be_written(&compiled(wrong)), []);
        }
    }
}
