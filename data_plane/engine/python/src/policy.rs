//! `Policy`: Rego modules with their data, evaluated as often as wanted, from as many threads as wanted.
//!
//! Each evaluation works on an interpreter of its own, cloned from one that has parsed and prepared the policy: a shared
//! interpreter keeps state between evaluations, and state of another caller's decision must not reach this one.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

use crate::guards;
use crate::nesting::bounded;

create_exception!(
    agentfactory_engine,
    PolicyError,
    PyValueError,
    "A policy cannot be read or evaluated, or has no answer; never to be taken for an answer."
);

const MAX_SOURCE_BYTES: usize = 1024 * 1024;
const MAX_DATA_BYTES: usize = 64 * 1024 * 1024;
const MAX_INPUT_BYTES: usize = 4 * 1024 * 1024;
const MAX_RULE_BYTES: usize = 1024;
const DEFAULT_TIMEOUT_MS: u64 = 100;
/// Work units between looks at the clock. Each: one unit can be the doubling of a text, and 30 doublings take all memory.
const CHECK_INTERVAL: u32 = 1;

/// Modules of Rego v1 and their data.
#[pyclass(frozen)]
struct Policy {
    prepared: Engine,
}

#[pymethods]
impl Policy {
    /// Parse and prepare the modules: pairs of path and Rego text.
    #[new]
    #[pyo3(signature = (files, data_json = "{}", *, timeout_ms = DEFAULT_TIMEOUT_MS))]
    fn new(
        python: Python<'_>,
        files: Vec<(String, String)>,
        data_json: &str,
        timeout_ms: u64,
    ) -> PyResult<Self> {
        for (path, source) in &files {
            within(path, source, MAX_SOURCE_BYTES)?;
        }
        within("data", data_json, MAX_DATA_BYTES)?;
        python
            .detach(|| unpanicked(|| prepare(files, data_json, timeout_ms)))
            .map(|prepared| Self { prepared })
    }

    /// Evaluate `rule` (`data.<package>.<rule>`) over `input_json` and return its value as JSON.
    fn evaluate(&self, python: Python<'_>, rule: &str, input_json: &str) -> PyResult<String> {
        within("rule", rule, MAX_RULE_BYTES)?;
        within("input", input_json, MAX_INPUT_BYTES)?;
        python.detach(|| {
            unpanicked(|| {
                let mut engine = self.prepared.clone();
                engine.set_input(
                    Value::from_json_str(input_json).map_err(|error| refused("input", &error))?,
                );
                match engine
                    .eval_rule(rule.to_owned())
                    .map_err(|error| refused(rule, &error))?
                {
                    Value::Undefined => Err(PolicyError::new_err(format!(
                        "{rule} is undefined for this input"
                    ))),
                    value => value.to_json_str().map_err(|error| refused(rule, &error)),
                }
            })
        })
    }

    /// Answer a query over `input_json`: a JSON array of the bindings of each of its solutions.
    fn query(&self, python: Python<'_>, query: &str, input_json: Option<&str>) -> PyResult<String> {
        within("query", query, MAX_RULE_BYTES)?;
        python.detach(|| {
            unpanicked(|| {
                let mut engine = self.prepared.clone();
                if let Some(input) = input_json {
                    within("input", input, MAX_INPUT_BYTES)?;
                    engine.set_input(
                        Value::from_json_str(input).map_err(|error| refused("input", &error))?,
                    );
                }
                let results = engine
                    .eval_query(query.to_owned(), false)
                    .map_err(|error| refused("query", &error))?;
                let bindings = results.result.into_iter().map(|one| one.bindings);
                Value::from(bindings.collect::<Vec<_>>())
                    .to_json_str()
                    .map_err(|error| refused("query", &error))
            })
        })
    }
}

/// A panic of regorus is an error like others: the process goes on, and the decision is a denial.
pub fn unpanicked<T>(work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(PolicyError::new_err("the engine failed within itself")))
}

fn prepare(files: Vec<(String, String)>, data_json: &str, timeout_ms: u64) -> PyResult<Engine> {
    let mut engine = Engine::new();
    // A builtin that fails makes the decision fail, it does not make a condition silently undefined.
    engine.set_strict_builtin_errors(true);
    guards::install(&mut engine).map_err(|error| refused("guards", &error))?;
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: Duration::from_millis(timeout_ms),
        check_interval: NonZeroU32::new(CHECK_INTERVAL).expect("not zero"),
    });
    for (path, source) in files {
        bounded(&path, &source).map_err(|error| refused("policy", &error))?;
        engine
            .add_policy(path, source)
            .map_err(|error| refused("policy", &error))?;
    }
    let data = Value::from_json_str(data_json).map_err(|error| refused("data", &error))?;
    engine
        .add_data(data)
        .map_err(|error| refused("data", &error))?;
    // Any query makes the engine resolve and schedule the whole policy, once instead of at each evaluation.
    engine
        .eval_query("true".to_owned(), false)
        .map_err(|error| refused("policy", &error))?;
    Ok(engine)
}

fn within(what: &str, text: &str, bound: usize) -> PyResult<()> {
    if text.len() <= bound {
        return Ok(());
    }
    Err(PolicyError::new_err(format!(
        "{what} has {} bytes, the bound is {bound}",
        text.len()
    )))
}

pub fn refused(what: &str, error: &impl std::fmt::Display) -> PyErr {
    PolicyError::new_err(format!("{what}: {error}"))
}

pub fn add_to(python: Python<'_>, this: &Bound<'_, PyModule>) -> PyResult<()> {
    this.add("PolicyError", python.get_type::<PolicyError>())?;
    this.add_class::<Policy>()
}
