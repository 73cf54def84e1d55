//! Binds the WASI core and the host call to wasmer: one host function per row of the core's table. Owns no behaviour.

use std::sync::Arc;

use agentfactory_wasi::{CALLS, Errno, Fault, LimitName, Stdio, ValType, Wasi};
use wasmer::{
    AsStoreMut, ExternType, Function, FunctionEnv, FunctionEnvMut, FunctionType, Global, Memory,
    Module, RuntimeError, Store, Type, Value,
};

use crate::fuel;
use crate::guest::Input;
use crate::host_call::HostCalls;
use crate::output::Stream;
use crate::watchdog::{Shared, end, exit};

/// The guest's standard streams: frames of the parent.
pub struct GuestStdio {
    pub input: Input,
    pub shared: Arc<Shared>,
}

impl GuestStdio {
    fn write(&self, stream: Stream, data: &[u8]) -> Result<usize, Errno> {
        self.shared
            .output()
            .write(stream, data)
            .map_err(|_| Errno::Pipe)?;
        Ok(data.len())
    }
}

impl Stdio for GuestStdio {
    fn read_stdin(&mut self, buf: &mut [u8]) -> Result<usize, Errno> {
        self.input.read(buf, &self.shared)
    }

    fn write_stdout(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.write(Stream::Stdout, data)
    }

    fn write_stderr(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.write(Stream::Stderr, data)
    }
}

/// What host functions see.
pub struct Context {
    pub wasi: Wasi<GuestStdio>,
    pub host_calls: HostCalls,
    /// Absent while the module's own start function runs: then every pointer is refused.
    pub memory: Option<Memory>,
    /// What is left; absent under a profile that does not count it.
    pub fuel: Option<Global>,
}

/// Takes `amount` from what is left; the guest must not go on after an error.
///
/// # Errors
/// There was not that much.
fn charge(
    remaining: Option<&Global>,
    store: &mut impl AsStoreMut,
    amount: u64,
) -> Result<(), RuntimeError> {
    let Some(remaining) = remaining else {
        return Ok(());
    };
    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
    let left = remaining
        .get(store)
        .i64()
        .map_or(i64::MIN, |left| left.saturating_sub(amount));
    remaining.set(store, Value::I64(left))?;
    if left < 0 {
        return Err(RuntimeError::user(Box::new(Unwind::OutOfFuel)));
    }
    Ok(())
}

/// Unwinds the guest: it ended by itself, passed a limit, or named memory that it does not have.
#[derive(Debug)]
pub enum Unwind {
    Exit(u32),
    Limit(LimitName),
    /// A limit that the WASI core does not know.
    Killed(&'static str),
    OutOfFuel,
    HostCallFault,
}

impl std::fmt::Display for Unwind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(formatter, "exit {code}"),
            Self::Limit(limit) => write!(formatter, "limit {}", limit.as_str()),
            Self::Killed(limit) => write!(formatter, "limit {limit}"),
            Self::OutOfFuel => write!(formatter, "limit fuel"),
            Self::HostCallFault => write!(formatter, "a host call outside the memory"),
        }
    }
}

impl std::error::Error for Unwind {}

/// Makes one host function in a store.
pub type Maker = Box<dyn Fn(&mut Store, &FunctionEnv<Context>) -> Function + Send>;

/// The host functions that `module` imports, in its order.
///
/// # Errors
/// Names an import that is not offered, or not with that type.
pub fn resolve(module: &Module) -> Result<Vec<Maker>, String> {
    module
        .imports()
        .map(
            |import| match (import.module(), import.name(), import.ty()) {
                (agentfactory_wasi::MODULE, name, ExternType::Function(wanted)) => {
                    let row = CALLS.iter().find(|row| row.name == name);
                    let (row, make) = row
                        .zip(maker(name))
                        .ok_or_else(|| format!("import {name} is not in WASI preview 1"))?;
                    let offered = FunctionType::new(types(row.params), types(row.results));
                    if offered == *wanted {
                        Ok(make)
                    } else {
                        Err(format!("import {name} is {wanted}, not {offered}"))
                    }
                }
                ("agentfactory", "call", ExternType::Function(wanted)) => {
                    let offered = FunctionType::new([Type::I32; 4], [Type::I32]);
                    if offered == *wanted {
                        Ok(calling_the_host())
                    } else {
                        Err(format!(
                            "import agentfactory.call is {wanted}, not {offered}"
                        ))
                    }
                }
                (module, name, _) => Err(format!("import {module}.{name} is not offered")),
            },
        )
        .collect()
}

fn types(types: &[ValType]) -> Vec<Type> {
    types
        .iter()
        .map(|kind| match kind {
            ValType::I32 => Type::I32,
            ValType::I64 => Type::I64,
        })
        .collect()
}

fn calling_the_host() -> Maker {
    Box::new(|store: &mut Store, env: &FunctionEnv<Context>| {
        Function::new_typed_with_env(store, env, host_call)
    })
}

fn host_call(
    mut env: FunctionEnvMut<'_, Context>,
    request: u32,
    request_len: u32,
    response: u32,
    response_cap: u32,
) -> Result<u32, RuntimeError> {
    let (request, response) = ((request, request_len), (response, response_cap));
    let size = charged("call", &mut env, |wasi, host_calls, memory| {
        host_calls.call(wasi, memory, request, response)
    })?
    .map_err(|unwind| RuntimeError::user(Box::new(unwind)))?;
    let (context, mut store) = env.data_and_store_mut();
    let moved = u64::from(request_len) + u64::from(size);
    charge(context.fuel.as_ref(), &mut store, moved)?;
    Ok(size)
}

/// Runs a host function on the guest's memory; fuel is charged for the call and for the work that it did.
fn charged<Value>(
    name: &'static str,
    env: &mut FunctionEnvMut<'_, Context>,
    function: impl FnOnce(&mut Wasi<GuestStdio>, &mut HostCalls, &mut [u8]) -> Value,
) -> Result<Value, RuntimeError> {
    let (context, mut store) = env.data_and_store_mut();
    charge(context.fuel.as_ref(), &mut store, fuel::host_call(name))?;
    let before = context.wasi.work();
    let value = match &context.memory {
        None => function(&mut context.wasi, &mut context.host_calls, &mut []),
        Some(memory) => {
            let view = memory.view(&store);
            let size = usize::try_from(view.data_size()).expect("32-bit memories");
            // SAFETY: the view spans the guest's memory, which is neither moved nor shrunk by growing (it is static),
            // and the only guest thread is inside this call, so nobody else reads or writes it meanwhile.
            let bytes = unsafe { std::slice::from_raw_parts_mut(view.data_ptr(), size) };
            function(&mut context.wasi, &mut context.host_calls, bytes)
        }
    };
    let work = context.wasi.work() - before;
    charge(context.fuel.as_ref(), &mut store, work)?;
    Ok(value)
}

fn call(
    name: &'static str,
    env: &mut FunctionEnvMut<'_, Context>,
    function: impl FnOnce(&mut Wasi<GuestStdio>, &mut [u8]) -> Result<(), Fault>,
) -> Result<u32, RuntimeError> {
    let result = charged(name, env, |wasi, _, memory| function(wasi, memory))?;
    let is_repeatable = env.data().fuel.is_some();
    match result {
        Ok(()) => Ok(0),
        Err(Fault::Errno(errno)) if is_repeatable && is_of_the_machine(errno) => {
            // Another machine would have had room, so this run has no result at all.
            end(exit::ABORTED)
        }
        Err(Fault::Errno(errno)) => Ok(errno.code()),
        Err(Fault::Exit(code)) => Err(RuntimeError::user(Box::new(Unwind::Exit(code)))),
        Err(Fault::Limit(limit)) => Err(RuntimeError::user(Box::new(Unwind::Limit(limit)))),
    }
}

/// Whether a machine answers so for what the guest did not do.
fn is_of_the_machine(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NoSpc | Errno::Dquot | Errno::NoMem | Errno::Nfile | Errno::Io
    )
}

macro_rules! function {
    (errno, $name:ident($($param:ident: $kind:ident),*)) => {
        #[allow(clippy::too_many_arguments, reason = "preview 1 gives some calls nine")]
        fn $name(mut env: FunctionEnvMut<'_, Context>, $($param: $kind),*) -> Result<u32, RuntimeError> {
            call(stringify!($name), &mut env, |wasi, memory| wasi.$name(memory, $($param),*))
        }
    };
    (never, $name:ident($($param:ident: $kind:ident),*)) => {
        fn $name(mut env: FunctionEnvMut<'_, Context>, $($param: $kind),*) -> Result<(), RuntimeError> {
            call(stringify!($name), &mut env, |wasi, memory| wasi.$name(memory, $($param),*)).map(|_| ())
        }
    };
}

macro_rules! makers {
    ($($name:ident($($param:ident: $kind:ident),*) -> $ret:ident, $status:ident$(($errno:ident, $why:literal))?, $summary:literal;)*) => {
        fn maker(import: &str) -> Option<Maker> {
            $(function!($ret, $name($($param: $kind),*));)*
            match import {
                $(stringify!($name) => Some(Box::new(|store: &mut Store, env: &FunctionEnv<Context>| {
                    Function::new_typed_with_env(store, env, $name)
                })),)*
                _ => None,
            }
        }
    };
}

agentfactory_wasi::for_each_call!(makers);
