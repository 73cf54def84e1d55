//! The Python module: reads WebAssembly modules and evaluates Rego. It links no compiler and no engine, so that the
//! process holding keys and channels cannot compile or run anything.

mod guards;
mod inspect;
mod module;
mod nesting;
mod policy;

use pyo3::prelude::*;

#[pymodule]
#[pyo3(name = "_native")]
fn native(python: Python<'_>, this: &Bound<'_, PyModule>) -> PyResult<()> {
    module::add_to(python, this)?;
    policy::add_to(python, this)?;
    inspect::add_to(this)
}
