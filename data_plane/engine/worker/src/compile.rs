//! Compile mode: read one module, check it, compile it, write the artifact, answer, end. A module made to explode the
//! compiler takes this process with it and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::time::Instant;

use wasmer::Module;

use crate::frames::{FrameReader, Kind};
use crate::guest::refuse;
use crate::jail::{self, Jail};
use crate::messages::{CompileRequest, Compiled, Outcome, Refusal};
use crate::output::Output;
use crate::{artifact, engine};

/// Compiler threads: more of them cost memory without shortening small modules.
const MAX_COMPILER_THREADS: usize = 4;

/// Serve one compilation on `socket`.
pub fn serve(socket: OwnedFd, jail: Jail) {
    let reading = socket
        .try_clone()
        .expect("a second descriptor of the socket");
    let mut output = Output::new(socket);
    let mut reader = FrameReader::new(reading);
    let request: CompileRequest = match reader.next_frame() {
        Ok(None | Some((Kind::Stop, _))) => return,
        Ok(Some((Kind::Load, payload))) => match serde_json::from_slice(payload) {
            Ok(request) => request,
            Err(error) => refuse(&mut output, format!("Load: {error}")),
        },
        Ok(Some((kind, _))) => refuse(&mut output, format!("frame {kind:?} where Load was due")),
        Err(error) => refuse(&mut output, error.to_string()),
    };
    let Ok([module, target]) = reader
        .take_descriptors(2)
        .map(|taken| <[OwnedFd; 2]>::try_from(taken).expect("two"))
    else {
        refuse(
            &mut output,
            "Load came without its two descriptors".to_owned(),
        )
    };
    let outcome = match compile(&request, File::from(module), File::from(target), jail) {
        Ok(compiled) => Outcome {
            outcome: "succeeded",
            compiled: Some(compiled),
            ..Outcome::default()
        },
        Err(refusal) => refusal.into(),
    };
    output.say(Kind::Outcome, &outcome);
    let _ = output.flush();
}

fn compile(
    request: &CompileRequest,
    module: File,
    target: File,
    mut jail: Jail,
) -> Result<Compiled, Refusal> {
    jail.restrict(&[]);
    jail::limit_compilation(
        request.memory_bytes,
        request.cpu_ms.div_ceil(1000),
        request.wall_ms,
        request.artifact_bytes,
    )
    .and_then(|()| jail.lock())
    .map_err(|message| Refusal::new("jail", message))?;
    let bytes = read(module, request.module_bytes)?;
    let started = Instant::now();
    let max = usize::try_from(request.module_bytes).unwrap_or(usize::MAX);
    agentfactory_module::check(&bytes, max)
        .map_err(|error| Refusal::new("invalid_module", error.to_string()))?;
    let threads = std::thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MAX_COMPILER_THREADS);
    let compiler = engine::compiler(
        request.profile,
        NonZero::new(threads).expect("at least one"),
    );
    let compiled = Module::new(&compiler, &bytes)
        .map_err(|error| Refusal::new("invalid_module", error.to_string()))?;
    crate::wasi::resolve(&compiled).map_err(|message| Refusal::new("invalid_module", message))?;
    let payload = compiled
        .serialize()
        .map_err(|error| Refusal::new("compiler", error.to_string()))?;
    let info = engine::info(request.profile);
    let header = artifact::header(&info, payload.len());
    let artifact_bytes = (header.len() + payload.len()) as u64;
    if artifact_bytes > request.artifact_bytes {
        let message = format!(
            "artifact has {artifact_bytes} bytes, the bound is {}",
            request.artifact_bytes
        );
        return Err(Refusal::new("artifact_too_large", message));
    }
    write(target, &header, &payload)?;
    let compile_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Compiled {
        engine: info,
        artifact_bytes,
        compile_us,
    })
}

fn read(module: File, bound: u64) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    module
        .take(bound.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Refusal::new("io", format!("module cannot be read: {error}")))?;
    if bytes.len() as u64 > bound {
        return Err(Refusal::new(
            "invalid_module",
            format!("module has more than {bound} bytes"),
        ));
    }
    Ok(bytes)
}

fn write(mut target: File, header: &[u8], payload: &[u8]) -> Result<(), Refusal> {
    target
        .write_all(header)
        .and_then(|()| target.write_all(payload))
        .map_err(|error| {
            let reason = if error.kind() == std::io::ErrorKind::StorageFull {
                "disk_full"
            } else {
                "io"
            };
            Refusal::new(reason, format!("artifact cannot be written: {error}"))
        })
}
