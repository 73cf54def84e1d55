//! `agentfactory-random-guests FIRST COUNT FOLDER`: writes the random modules FIRST to FIRST + COUNT - 1 as FOLDER/N.wasm.
//! The same number is the same module. Each is an agent: it exports `memory` and `_start`, imports from WASI at most, and
//! writes its memory to standard output when its random part has come to an end, so that a difference shows.

use std::error::Error;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use wasm_encoder::reencode::{self, Reencode, utils};
use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection,
    MemArg, MemorySection, MemoryType, TypeSection, ValType,
};
use wasm_smith::{Config, Module};

/// What a guest may import, by its parameters; each returns one i32.
const IMPORTS: [(&str, &[ValType]); 7] = {
    const I32: ValType = ValType::I32;
    [
        ("fd_write", &[I32, I32, I32, I32]),
        ("clock_time_get", &[I32, ValType::I64, I32]),
        ("random_get", &[I32, I32]),
        ("fd_read", &[I32, I32, I32, I32]),
        ("environ_get", &[I32, I32]),
        ("poll_oneoff", &[I32, I32, I32, I32]),
        ("fd_filestat_get", &[I32, I32]),
    ]
};
/// The first of the imports.
const FD_WRITE: u32 = 0;
const SEED_BYTES: usize = 8 * 1024;
/// Where the list of what is written stands, behind what is written.
const LIST_AT: i32 = 65_520;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, count, folder] = &arguments[..] else {
        return Err("usage: agentfactory-random-guests FIRST COUNT FOLDER".into());
    };
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
    for number in first..first.saturating_add(count) {
        std::fs::write(
            Path::new(folder).join(format!("{number}.wasm")),
            guest(number)?,
        )?;
    }
    Ok(())
}

fn guest(number: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let bytes = random_bytes(number);
    let mut source = Unstructured::new(&bytes);
    let mut config = Config::arbitrary(&mut source)?;
    config.module_shape = Some(shape());
    // What no agent may use.
    config.threads_enabled = false;
    config.relaxed_simd_enabled = false;
    config.memory64_enabled = false;
    config.exceptions_enabled = false;
    config.gc_enabled = false;
    config.tail_call_enabled = false;
    config.custom_page_sizes_enabled = false;
    config.custom_descriptors_enabled = false;
    config.wide_arithmetic_enabled = false;
    config.shared_everything_threads_enabled = false;
    config.extended_const_enabled = false;
    config.max_memories = 1;
    config.allow_invalid_funcs = false;
    // What makes the more interesting ones.
    config.simd_enabled = true;
    config.bulk_memory_enabled = true;
    config.reference_types_enabled = true;
    config.canonicalize_nans = false;
    config.disallow_traps = !number.is_multiple_of(4);
    config.max_instructions = 500;
    config.max_funcs = 20;
    config.max_table_elements = 10_000;
    Ok(with_output(&Module::new(config, &mut source)?.to_bytes())?)
}

/// A module with the imports and exports that every guest has.
fn shape() -> Vec<u8> {
    let (mut types, mut imports) = (TypeSection::new(), ImportSection::new());
    for (index, (name, parameters)) in (0..).zip(IMPORTS) {
        types
            .ty()
            .function(parameters.iter().copied(), [ValType::I32]);
        imports.import("wasi_snapshot_preview1", name, EntityType::Function(index));
    }
    let imported = imports.len();
    types.ty().function([], []);
    let mut functions = FunctionSection::new();
    functions.function(imported);
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 1,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    let mut exports = ExportSection::new();
    exports.export("memory", ExportKind::Memory, 0);
    exports.export("_start", ExportKind::Func, imported);
    let mut code = CodeSection::new();
    let mut body = Function::new([]);
    body.instructions().end();
    code.function(&body);
    let mut module = wasm_encoder::Module::new();
    module
        .section(&types)
        .section(&imports)
        .section(&functions)
        .section(&memories)
        .section(&exports)
        .section(&code);
    module.finish()
}

/// splitmix64: the same on every machine.
fn random_bytes(number: u64) -> Vec<u8> {
    let mut state = number;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = state;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    (0..SEED_BYTES / 8)
        .flat_map(|_| next().to_le_bytes())
        .collect()
}

/// Puts another `_start` around the module's own, which writes the memory after it.
fn with_output(module: &[u8]) -> Result<Vec<u8>, reencode::Error> {
    let mut wrapper = Wrapper::default();
    let mut imported = 0;
    let mut types = Vec::new();
    for payload in wasmparser::Parser::new(0).parse_all(module) {
        match payload? {
            wasmparser::Payload::ImportSection(reader) => {
                for import in reader.into_imports() {
                    imported += u32::from(matches!(import?.ty, wasmparser::TypeRef::Func(_)));
                }
            }
            wasmparser::Payload::FunctionSection(reader) => {
                types = reader.into_iter().collect::<Result<Vec<u32>, _>>()?;
            }
            wasmparser::Payload::ExportSection(reader) => {
                for export in reader {
                    let export = export?;
                    if export.name == "_start" {
                        wrapper.inner = export.index;
                    }
                }
            }
            _ => {}
        }
    }
    wrapper.kind = types[(wrapper.inner - imported) as usize];
    wrapper.outer = imported + u32::try_from(types.len()).expect("few functions");
    let mut made = wasm_encoder::Module::new();
    wrapper.parse_core_module(&mut made, wasmparser::Parser::new(0), module)?;
    Ok(made.finish())
}

/// Indices of functions: the module's own entry point and the new one, and the type of both.
#[derive(Default)]
struct Wrapper {
    inner: u32,
    outer: u32,
    kind: u32,
}

impl Reencode for Wrapper {
    type Error = std::convert::Infallible;

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        utils::parse_function_section(self, functions, section)?;
        functions.function(self.kind);
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        for export in section {
            let export = export?;
            if export.name == "_start" {
                exports.export("_start", ExportKind::Func, self.outer);
            } else {
                utils::parse_export(self, exports, export)?;
            }
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        utils::parse_code_section(self, code, section)?;
        let place = |offset| MemArg {
            offset,
            align: 2,
            memory_index: 0,
        };
        let mut function = Function::new([]);
        function
            .instructions()
            .call(self.inner)
            .i32_const(LIST_AT)
            .i32_const(0)
            .i32_store(place(0))
            .i32_const(LIST_AT)
            .i32_const(LIST_AT)
            .i32_store(place(4))
            .i32_const(1)
            .i32_const(LIST_AT)
            .i32_const(1)
            .i32_const(LIST_AT + 8)
            .call(FD_WRITE)
            .drop()
            .end();
        code.function(&function);
        Ok(())
    }
}
