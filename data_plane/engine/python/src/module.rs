//! `inspect_module` and `validate_module`: what a module says about itself, and whether it is an agent.

use agentfactory_module as core;
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    agentfactory_engine,
    InvalidModuleError,
    PyValueError,
    "The bytes are no WebAssembly module, or no agent; the message says why."
);

/// One import: its module, its name, and its type as text.
#[pyclass(frozen, get_all, skip_from_py_object)]
#[derive(Clone)]
struct ModuleImport {
    module: String,
    name: String,
    kind: String,
}

/// One export and its type as text.
#[pyclass(frozen, get_all, skip_from_py_object)]
#[derive(Clone)]
struct ModuleExport {
    name: String,
    kind: String,
}

/// Declared size of a linear memory, in bytes; no maximum means 4 GiB.
#[pyclass(frozen, get_all, skip_from_py_object)]
#[derive(Clone)]
struct ModuleMemory {
    minimum_bytes: u64,
    maximum_bytes: Option<u64>,
}

/// What a valid module says about itself.
#[pyclass(frozen, get_all, skip_from_py_object)]
struct ModuleInfo {
    module_bytes: usize,
    code_bytes: usize,
    data_bytes: usize,
    imports: Vec<ModuleImport>,
    exports: Vec<ModuleExport>,
    memories: Vec<ModuleMemory>,
    functions: usize,
    tables: usize,
    globals: usize,
    types: usize,
}

impl From<core::ModuleInfo> for ModuleInfo {
    fn from(info: core::ModuleInfo) -> Self {
        let imports = info.imports.into_iter();
        let exports = info.exports.into_iter();
        let memories = info.memories.into_iter();
        Self {
            module_bytes: info.module_bytes,
            code_bytes: info.code_bytes,
            data_bytes: info.data_bytes,
            imports: imports
                .map(|import| ModuleImport {
                    module: import.module,
                    name: import.name,
                    kind: import.kind,
                })
                .collect(),
            exports: exports
                .map(|export| ModuleExport {
                    name: export.name,
                    kind: export.kind,
                })
                .collect(),
            memories: memories
                .map(|memory| ModuleMemory {
                    minimum_bytes: memory.minimum_bytes,
                    maximum_bytes: memory.maximum_bytes,
                })
                .collect(),
            functions: info.functions,
            tables: info.tables,
            globals: info.globals,
            types: info.types,
        }
    }
}

fn refused(error: core::InvalidModule) -> PyErr {
    InvalidModuleError::new_err(error.0)
}

/// Validate the bytes as WebAssembly and describe them; imports and exports are not judged.
#[pyfunction]
#[pyo3(signature = (module, *, max_bytes = core::MAX_MODULE_BYTES))]
fn inspect_module(python: Python<'_>, module: &[u8], max_bytes: usize) -> PyResult<ModuleInfo> {
    python
        .detach(|| core::inspect(module, max_bytes))
        .map(ModuleInfo::from)
        .map_err(refused)
}

/// Validate the bytes as an agent and describe them.
#[pyfunction]
#[pyo3(signature = (module, *, max_bytes = core::MAX_MODULE_BYTES))]
fn validate_module(python: Python<'_>, module: &[u8], max_bytes: usize) -> PyResult<ModuleInfo> {
    python
        .detach(|| core::check(module, max_bytes))
        .map(ModuleInfo::from)
        .map_err(refused)
}

pub fn add_to(python: Python<'_>, this: &Bound<'_, PyModule>) -> PyResult<()> {
    this.add(
        "InvalidModuleError",
        python.get_type::<InvalidModuleError>(),
    )?;
    this.add_class::<ModuleImport>()?;
    this.add_class::<ModuleExport>()?;
    this.add_class::<ModuleMemory>()?;
    this.add_class::<ModuleInfo>()?;
    this.add_function(wrap_pyfunction!(inspect_module, this)?)?;
    this.add_function(wrap_pyfunction!(validate_module, this)?)
}
