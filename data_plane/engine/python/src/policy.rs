//! `Policy`: Rego modules with their data, evaluated as often as wanted, from as many threads as wanted.
//!
//! Each evaluation works on an interpreter of its own, cloned from one that has parsed and prepared the policy: a shared
//! interpreter keeps state between evaluations, and state of another caller's decision must not reach this one.

use std::num::NonZeroU32;
use std::time::Duration;

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

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
/// Work units between looks at the clock.
const CHECK_INTERVAL: u32 = 256;

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
            .detach(|| prepare(files, data_json, timeout_ms))
            .map(|prepared| Self { prepared })
    }

    /// Evaluate `rule` (`data.<package>.<rule>`) over `input_json` and return its value as JSON.
    fn evaluate(&self, python: Python<'_>, rule: &str, input_json: &str) -> PyResult<String> {
        within("rule", rule, MAX_RULE_BYTES)?;
        within("input", input_json, MAX_INPUT_BYTES)?;
        python.detach(|| {
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
    }
}

fn prepare(files: Vec<(String, String)>, data_json: &str, timeout_ms: u64) -> PyResult<Engine> {
    let mut engine = Engine::new();
    // A builtin that fails makes the decision fail, it does not make a condition silently undefined.
    engine.set_strict_builtin_errors(true);
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: Duration::from_millis(timeout_ms),
        check_interval: NonZeroU32::new(CHECK_INTERVAL).expect("not zero"),
    });
    for (path, source) in files {
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

fn refused(what: &str, error: &impl std::fmt::Display) -> PyErr {
    PolicyError::new_err(format!("{what}: {error}"))
}

pub fn add_to(python: Python<'_>, this: &Bound<'_, PyModule>) -> PyResult<()> {
    this.add("PolicyError", python.get_type::<PolicyError>())?;
    this.add_class::<Policy>()
}
