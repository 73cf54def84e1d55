//! Binds the WASI core and the host call to wasmer: one host function per row of the core's table. Owns no behaviour.

use std::sync::Arc;

use agentfactory_wasi::{CALLS, Errno, Fault, LimitName, Stdio, ValType, Wasi};
use wasmer::{
    ExternType, Function, FunctionEnv, FunctionEnvMut, FunctionType, Memory, Module, RuntimeError,
    Store, Type,
};

use crate::guest::Input;
use crate::host_call::HostCalls;
use crate::output::Stream;
use crate::watchdog::Shared;

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
}

/// Unwinds the guest: it ended by itself, passed a limit, or named memory that it does not have.
#[derive(Debug)]
pub enum Unwind {
    Exit(u32),
    Limit(LimitName),
    /// A limit that the WASI core does not know.
    Killed(&'static str),
    HostCallFault,
}

impl std::fmt::Display for Unwind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(formatter, "exit {code}"),
            Self::Limit(limit) => write!(formatter, "limit {}", limit.as_str()),
            Self::Killed(limit) => write!(formatter, "limit {limit}"),
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
    with_memory(&mut env, |wasi, host_calls, memory| {
        host_calls.call(wasi, memory, request, response)
    })
    .map_err(|unwind| RuntimeError::user(Box::new(unwind)))
}

fn with_memory<Value>(
    env: &mut FunctionEnvMut<'_, Context>,
    function: impl FnOnce(&mut Wasi<GuestStdio>, &mut HostCalls, &mut [u8]) -> Value,
) -> Value {
    let (context, store) = env.data_and_store_mut();
    match &context.memory {
        None => function(&mut context.wasi, &mut context.host_calls, &mut []),
        Some(memory) => {
            let view = memory.view(&store);
            let size = usize::try_from(view.data_size()).expect("32-bit memories");
            // SAFETY: the view spans the guest's memory, which is neither moved nor shrunk by growing (it is static),
            // and the only guest thread is inside this call, so nobody else reads or writes it meanwhile.
            let bytes = unsafe { std::slice::from_raw_parts_mut(view.data_ptr(), size) };
            function(&mut context.wasi, &mut context.host_calls, bytes)
        }
    }
}

fn call(
    env: &mut FunctionEnvMut<'_, Context>,
    function: impl FnOnce(&mut Wasi<GuestStdio>, &mut [u8]) -> Result<(), Fault>,
) -> Result<u32, RuntimeError> {
    let result = with_memory(env, |wasi, _, memory| function(wasi, memory));
    match result {
        Ok(()) => Ok(0),
        Err(Fault::Errno(errno)) => Ok(errno.code()),
        Err(Fault::Exit(code)) => Err(RuntimeError::user(Box::new(Unwind::Exit(code)))),
        Err(Fault::Limit(limit)) => Err(RuntimeError::user(Box::new(Unwind::Limit(limit)))),
    }
}

macro_rules! function {
    (errno, $name:ident($($param:ident: $kind:ident),*)) => {
        #[allow(clippy::too_many_arguments, reason = "preview 1 gives some calls nine")]
        fn $name(mut env: FunctionEnvMut<'_, Context>, $($param: $kind),*) -> Result<u32, RuntimeError> {
            call(&mut env, |wasi, memory| wasi.$name(memory, $($param),*))
        }
    };
    (never, $name:ident($($param:ident: $kind:ident),*)) => {
        fn $name(mut env: FunctionEnvMut<'_, Context>, $($param: $kind),*) -> Result<(), RuntimeError> {
            call(&mut env, |wasi, memory| wasi.$name(memory, $($param),*)).map(|_| ())
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
