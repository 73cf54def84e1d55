//! The engine: how wasmer is configured, and the identity that binds an artifact to this configuration.

use std::fmt::Write as _;
use std::num::NonZero;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmer::sys::{
    CpuFeature, Cranelift, CraneliftOptLevel, EngineBuilder, Features, NativeEngineExt,
};

use crate::limits::{Budget, CappedTunables, WASM_STACK_BYTES};
use crate::messages::EngineInfo;

const NAME: &str = "wasmer-cranelift";
/// The engine's version; the lock file pins it, and a test compares the two.
pub const VERSION: &str = "7.4.2";
/// Raise when anything changes that makes older artifacts wrong and is not in [`describe`].
const CONFIG_REVISION: u32 = 1;

/// The features a guest may use: those of `agentfactory_module::features`, in the engine's words.
fn features() -> Features {
    let mut features = Features::none();
    features
        .reference_types(true)
        .simd(true)
        .bulk_memory(true)
        .multi_value(true)
        .extended_const(true);
    features
}

/// Everything that decides which machine code a module becomes, except the CPU. Digested into artifacts.
fn describe() -> String {
    format!(
        "revision={CONFIG_REVISION};compiler=cranelift;opt=speed;nan=native;pic=no;memory=static;\
         wasm_stack_bytes={WASM_STACK_BYTES};metering=none;\
         features=bulk_memory,extended_const,multi_value,reference_types,simd;target={}-{}",
        std::env::consts::ARCH,
        std::env::consts::OS,
    )
}

/// The identity of this engine on this machine.
#[must_use]
pub fn info() -> EngineInfo {
    let mut cpu: Vec<String> = CpuFeature::for_host()
        .iter()
        .map(|feature| feature.to_string())
        .collect();
    cpu.sort();
    EngineInfo {
        name: NAME.to_owned(),
        version: VERSION.to_owned(),
        config_digest: sha256(describe().as_bytes()),
        cpu_features: cpu.join(","),
    }
}

/// An engine without a compiler, for running: every memory and table of its guests counts against `budget`.
#[must_use]
pub fn headless(budget: &Arc<Budget>) -> wasmer::Engine {
    let mut engine: wasmer::Engine = EngineBuilder::headless().into();
    engine.set_tunables(CappedTunables::new(Arc::clone(budget)));
    engine
}

/// An engine that compiles and never runs.
#[must_use]
pub fn compiler(threads: NonZero<usize>) -> wasmer::Engine {
    let mut config = Cranelift::new();
    config
        .opt_level(CraneliftOptLevel::Speed)
        .num_threads(threads);
    EngineBuilder::new(config)
        .set_features(Some(features()))
        .into()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_in_the_lock_file() {
        let lock = include_str!("../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"wasmer\"\nversion = \"{VERSION}\"")));
    }

    #[test]
    fn the_identity_names_everything_that_decides_the_machine_code() {
        let info = info();
        assert!(info.config_digest.starts_with("sha256:") && info.config_digest.len() == 71);
        assert!(info.cpu_features.split(',').is_sorted());
    }
}
