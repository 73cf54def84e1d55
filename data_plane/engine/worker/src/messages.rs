//! The JSON payloads of load, ready, run and outcome. Unknown fields are refused; every size has a bound.

use agentfactory_wasi::Usage;
use serde::{Deserialize, Serialize};

use crate::jail::Layer;

/// Bytes that a worker process may hold as writable data, its own included, where `load` names no bound.
pub const DEFAULT_DATA_BYTES: u64 = 5 * 1024 * 1024 * 1024;
/// Arguments and environment entries of one run.
pub const MAX_ARGUMENTS: usize = 1024;
/// Directories a run may see.
pub const MAX_PREOPENS: usize = 16;

/// First frame in run mode; the artifact's descriptor comes with it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// What the parent expects this engine to be; absent means "whatever the artifact names".
    pub engine: Option<EngineInfo>,
    #[serde(default)]
    pub process: ProcessLimits,
    /// Directories that runs may see, as far as the kernel is asked; their descriptors come after the artifact's.
    #[serde(default)]
    pub roots: Vec<LoadedRoot>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadedRoot {
    pub writable: bool,
}

/// Limits of the process for its whole life, behind those of each run.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessLimits {
    pub data_bytes: u64,
    pub file_bytes: u64,
    pub cpu_seconds: u64,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self {
            data_bytes: DEFAULT_DATA_BYTES,
            file_bytes: 1 << 30,
            cpu_seconds: 7 * 24 * 3600,
        }
    }
}

/// First frame in compile mode; the module's and the artifact's descriptors come with it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompileRequest {
    pub profile: Profile,
    pub module_bytes: u64,
    pub artifact_bytes: u64,
    pub memory_bytes: u64,
    pub cpu_ms: u64,
    pub wall_ms: u64,
}

/// What runs of an artifact promise. Decides how it is compiled, so an artifact has one for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The fastest; real clocks and randomness.
    Default,
    /// The same run twice gives the same bytes and the same fuel, on machines of one architecture and one engine.
    Deterministic,
    /// Deterministic, and with canonical NaN, so that an engine or an architecture does not show in them.
    Portable,
}

impl Profile {
    pub const ALL: [Self; 3] = [Self::Default, Self::Deterministic, Self::Portable];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Deterministic => "deterministic",
            Self::Portable => "portable",
        }
    }

    /// Whether the same run twice must be the same: then fuel is counted, and nothing of the machine is shown.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        !matches!(self, Self::Default)
    }
}

/// The engine, as artifacts and receipts name it. All fields must be equal for an artifact to be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineInfo {
    pub profile: Profile,
    pub name: String,
    pub version: String,
    pub config_digest: String,
    pub cpu_features: String,
}

#[derive(Debug, Serialize)]
pub struct Ready<'a> {
    pub engine: &'a EngineInfo,
    /// The walls around this process, see `jail`.
    pub jail: &'a [Layer],
}

/// One run; the descriptors of `preopens` come with it, in their order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Arguments and environment are bytes in WASI; JSON carries them as text, so they are UTF-8.
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<(String, String)>,
    pub limits: RunLimits,
    /// 32 bytes as 64 hexadecimal digits.
    pub seed: Option<String>,
    /// Nanoseconds since 1970 at which the guest's clocks start.
    pub clock: Option<u64>,
    #[serde(default)]
    pub preopens: Vec<Preopen>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunLimits {
    pub wall_ms: u64,
    pub cpu_ms: u64,
    pub memory_bytes: u64,
    pub output_bytes: u64,
    pub log_bytes: u64,
    pub open_files: u32,
    pub table_elements: u32,
    pub random_bytes: u64,
    pub log_lines: u64,
    pub scratch_bytes: u64,
    pub scratch_inodes: u64,
    /// Of engines that count it.
    pub fuel: u64,
    pub host_calls: u32,
    pub host_call_bytes: u64,
    pub host_call_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preopen {
    pub guest_path: String,
    pub writable: bool,
}

/// How a run, a load or a compilation ended.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    pub outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trap: Option<Trap>,
    /// Of a rejection: a machine-readable word and a line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compiled: Option<Compiled>,
}

/// Nothing ran: the worker refused. A machine-readable word and a line for people.
#[derive(Debug)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self {
            outcome: "rejected",
            reason: Some(refusal.reason),
            message: Some(refusal.message),
            ..Self::default()
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Trap {
    pub name: String,
    pub message: String,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Resources {
    pub wall_us: u64,
    pub cpu_us: u64,
    pub peak_memory_bytes: u64,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    pub peak_open_files: u32,
    pub random_bytes: u64,
    pub table_elements: u32,
    pub log_lines: u64,
    pub scratch_bytes: u64,
    pub scratch_inodes: u64,
    pub fuel: u64,
    pub host_calls: u32,
    pub host_call_bytes: u64,
    pub host_call_us: u64,
}

impl Resources {
    /// Add what the guest's own state knows.
    pub fn add(&mut self, usage: &Usage) {
        self.peak_open_files = usage.peak_open_files;
        self.random_bytes = usage.random_bytes;
        self.log_lines = usage.log_lines;
        self.scratch_bytes = usage.scratch_bytes;
        self.scratch_inodes = usage.scratch_inodes;
    }
}

#[derive(Debug, Serialize)]
pub struct Compiled {
    pub engine: EngineInfo,
    pub artifact_bytes: u64,
    pub compile_us: u64,
}
