//! Which WebAssembly modules are agents, and what they say about themselves. Reads bytes; never compiles or runs them.
#![forbid(unsafe_code)]

pub mod pages;

use std::fmt;

use wasmparser::{
    CompositeInnerType, ExternalKind, Parser, Payload, TypeRef, ValType, Validator, WasmFeatures,
};

/// Import modules an agent may use. Everything else is refused before anything is compiled.
pub const ALLOWED_IMPORT_MODULES: [&str; 2] = ["wasi_snapshot_preview1", "agentfactory"];
/// Largest module, in bytes, where the caller names no smaller bound (design.md, "Bounds").
pub const MAX_MODULE_BYTES: usize = 64 * 1024 * 1024;
/// Largest number of imports: preview 1 has 46 functions and the host call one.
pub const MAX_IMPORTS: usize = 256;
/// Largest number of own functions.
pub const MAX_FUNCTIONS: usize = 100_000;
/// Largest number of locals of one function, its parameters aside. The compiler's memory grows with locals times blocks.
pub const MAX_LOCALS: usize = 10_000;
/// Largest number of own globals.
pub const MAX_GLOBALS: usize = 10_000;
/// Largest number of own tables.
pub const MAX_TABLES: usize = 16;

const ENTRY_POINT: &str = "_start";
const MEMORY: &str = "memory";

/// Names of the features that a module may use; anything else is refused by validation.
///
/// Threads, 64-bit memories and exceptions are off: no second thread shares a guest's memory, no memory passes
/// 4 GiB, and the engine's unwinder is not reachable by a guest.
#[must_use]
pub fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::SIMD
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::FLOATS
        | WasmFeatures::GC_TYPES
}

/// Why a module is not an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidModule(pub String);

impl fmt::Display for InvalidModule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for InvalidModule {}

/// A reason is one line, whatever the parser's own messages look like.
fn invalid(text: impl AsRef<str>) -> InvalidModule {
    InvalidModule(
        text.as_ref()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
    )
}

/// One import: its module, its name, and its type as text (`func (i32, i32) -> (i32)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    pub module: String,
    pub name: String,
    pub kind: String,
}

/// One export and what it is: func, table, memory, global or tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub name: String,
    pub kind: String,
}

/// Declared size of a linear memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub minimum_bytes: u64,
    pub maximum_bytes: Option<u64>,
}

/// What a valid module says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    pub module_bytes: usize,
    pub code_bytes: usize,
    pub data_bytes: usize,
    pub imports: Vec<Import>,
    pub exports: Vec<Export>,
    pub memories: Vec<Memory>,
    pub functions: usize,
    pub tables: usize,
    pub globals: usize,
    pub types: usize,
    /// Of the function that has most.
    pub locals: usize,
    /// Every custom section [`pages::SECTION`].
    pub pages: Vec<Vec<u8>>,
}

/// Validate the bytes as WebAssembly within [`features`] and describe them.
///
/// # Errors
/// The bytes pass `max_bytes`, or are not a valid core module; the message says what and at which offset.
pub fn inspect(bytes: &[u8], max_bytes: usize) -> Result<ModuleInfo, InvalidModule> {
    if bytes.len() > max_bytes {
        return Err(invalid(format!(
            "module has {} bytes, the bound is {max_bytes}",
            bytes.len()
        )));
    }
    let mut validator = Validator::new_with_features(features());
    validator
        .validate_all(bytes)
        .map_err(|error| invalid(error.to_string()))?;
    let mut info = ModuleInfo {
        module_bytes: bytes.len(),
        ..ModuleInfo::default()
    };
    let mut signatures = Signatures::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| invalid(error.to_string()))?;
        read_payload(&mut info, &mut signatures, payload)
            .map_err(|error| invalid(error.to_string()))?;
    }
    Ok(info)
}

/// Refuse a module that is no agent: it imports only from [`ALLOWED_IMPORT_MODULES`] functions, and exports
/// `_start` (a function without parameters and results) and `memory`.
///
/// # Errors
/// Names the first rule that is broken.
pub fn check(bytes: &[u8], max_bytes: usize) -> Result<ModuleInfo, InvalidModule> {
    let info = inspect(bytes, max_bytes)?;
    if info.imports.len() > MAX_IMPORTS {
        return Err(invalid(format!(
            "module has {} imports, the bound is {MAX_IMPORTS}",
            info.imports.len()
        )));
    }
    for (name, count, bound) in [
        ("functions", info.functions, MAX_FUNCTIONS),
        ("locals", info.locals, MAX_LOCALS),
        ("globals", info.globals, MAX_GLOBALS),
        ("tables", info.tables, MAX_TABLES),
    ] {
        if count > bound {
            return Err(invalid(format!(
                "module has {count} {name}, the limit {name} is {bound}"
            )));
        }
    }
    for import in &info.imports {
        if !ALLOWED_IMPORT_MODULES.contains(&import.module.as_str()) {
            return Err(invalid(format!(
                "import {}.{} is not offered; an agent may import from {}",
                short(&import.module),
                short(&import.name),
                ALLOWED_IMPORT_MODULES.join(" and ")
            )));
        }
        if !import.kind.starts_with("func ") {
            return Err(invalid(format!(
                "import {}.{} is a {}; only functions are offered",
                import.module,
                short(&import.name),
                import.kind
            )));
        }
    }
    require_export(&info, ENTRY_POINT, "func () -> ()")?;
    require_export(&info, MEMORY, "memory")?;
    check_pages(&info)?;
    Ok(info)
}

/// A worker passes over a section that it cannot use; whoever signs one shall not have to wonder why.
fn check_pages(info: &ModuleInfo) -> Result<(), InvalidModule> {
    let memory_bytes = info
        .memories
        .first()
        .map_or(0, |memory| memory.minimum_bytes);
    match info.pages.as_slice() {
        [] => Ok(()),
        [section] => pages::parse(section, memory_bytes)
            .map(|_| ())
            .map_err(invalid),
        _ => Err(invalid(format!(
            "section {} is there twice",
            pages::SECTION
        ))),
    }
}

fn require_export(info: &ModuleInfo, name: &str, kind: &str) -> Result<(), InvalidModule> {
    match info.exports.iter().find(|export| export.name == name) {
        None => Err(invalid(format!(
            "export {name} is missing; an agent is a WASI command that exports it"
        ))),
        Some(export) if export.kind != kind => Err(invalid(format!(
            "export {name} is a {}, not a {kind}",
            export.kind
        ))),
        Some(_) => Ok(()),
    }
}

/// Names come from the module: cut them, so that a message stays a line.
fn short(name: &str) -> String {
    const MAX_NAME_CHARS: usize = 64;
    let mut text: String = name
        .chars()
        .take(MAX_NAME_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(MAX_NAME_CHARS).is_some() {
        text.push('…');
    }
    text
}

/// Function signatures by type index, and type indices by function index.
#[derive(Default)]
struct Signatures {
    types: Vec<String>,
    functions: Vec<u32>,
}

impl Signatures {
    fn of_type(&self, index: u32) -> String {
        self.types
            .get(index as usize)
            .cloned()
            .unwrap_or_else(|| "func".to_owned())
    }

    fn of_function(&self, index: u32) -> String {
        self.functions
            .get(index as usize)
            .map_or_else(|| "func".to_owned(), |kind| self.of_type(*kind))
    }
}

fn read_payload(
    info: &mut ModuleInfo,
    known: &mut Signatures,
    payload: Payload<'_>,
) -> wasmparser::Result<()> {
    match payload {
        Payload::TypeSection(reader) => {
            for group in reader {
                for sub_type in group?.types() {
                    known.types.push(match &sub_type.composite_type.inner {
                        CompositeInnerType::Func(function) => {
                            format!(
                                "func ({}) -> ({})",
                                list(function.params()),
                                list(function.results())
                            )
                        }
                        _ => "type".to_owned(),
                    });
                }
            }
            info.types = known.types.len();
        }
        Payload::ImportSection(reader) => {
            for import in reader.into_imports() {
                let import = import?;
                let kind = match import.ty {
                    TypeRef::Func(index) | TypeRef::FuncExact(index) => {
                        known.functions.push(index);
                        known.of_type(index)
                    }
                    TypeRef::Table(_) => "table".to_owned(),
                    TypeRef::Memory(memory) => {
                        info.memories.push(memory_of(&memory));
                        "memory".to_owned()
                    }
                    TypeRef::Global(_) => "global".to_owned(),
                    TypeRef::Tag(_) => "tag".to_owned(),
                };
                info.imports.push(Import {
                    module: import.module.to_owned(),
                    name: import.name.to_owned(),
                    kind,
                });
            }
        }
        Payload::FunctionSection(reader) => {
            for index in reader {
                known.functions.push(index?);
                info.functions += 1;
            }
        }
        Payload::TableSection(reader) => info.tables = reader.count() as usize,
        Payload::GlobalSection(reader) => info.globals = reader.count() as usize,
        Payload::MemorySection(reader) => {
            for memory in reader {
                info.memories.push(memory_of(&memory?));
            }
        }
        Payload::ExportSection(reader) => {
            for export in reader {
                let export = export?;
                let kind = match export.kind {
                    ExternalKind::Func | ExternalKind::FuncExact => known.of_function(export.index),
                    ExternalKind::Table => "table".to_owned(),
                    ExternalKind::Memory => "memory".to_owned(),
                    ExternalKind::Global => "global".to_owned(),
                    ExternalKind::Tag => "tag".to_owned(),
                };
                info.exports.push(Export {
                    name: export.name.to_owned(),
                    kind,
                });
            }
        }
        // One more than there may be shows that there are too many.
        Payload::CustomSection(section)
            if section.name() == pages::SECTION && info.pages.len() < 2 =>
        {
            info.pages.push(section.data().to_vec());
        }
        Payload::CodeSectionStart { size, .. } => info.code_bytes = size as usize,
        Payload::CodeSectionEntry(body) => {
            let mut locals = 0_usize;
            for group in body.get_locals_reader()? {
                locals = locals.saturating_add(group?.0 as usize);
            }
            info.locals = info.locals.max(locals);
        }
        Payload::DataSection(reader) => {
            info.data_bytes = (reader.range().end - reader.range().start) as usize
        }
        _ => {}
    }
    Ok(())
}

fn memory_of(memory: &wasmparser::MemoryType) -> Memory {
    const PAGE_BYTES: u64 = 65_536;
    Memory {
        minimum_bytes: memory.initial.saturating_mul(PAGE_BYTES),
        maximum_bytes: memory.maximum.map(|pages| pages.saturating_mul(PAGE_BYTES)),
    }
}

fn list(types: &[ValType]) -> String {
    types
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
