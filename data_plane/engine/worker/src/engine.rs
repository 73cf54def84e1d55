//! The engine: how wasmer is configured, and the identity that binds an artifact to this configuration.

use std::fmt::Write as _;
use std::num::NonZero;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmer::sys::{
    CompilerConfig, CpuFeature, Cranelift, CraneliftOptLevel, EngineBuilder, Features,
    NativeEngineExt, Target, Triple,
};

use crate::fuel::{self, Fuel};
use crate::limits::{Budget, CappedTunables, Fresh, WASM_STACK_BYTES};
use crate::messages::{EngineInfo, Profile};

const NAME: &str = "wasmer-cranelift";
/// The engine's version; the lock file pins it, and a test compares the two.
pub const VERSION: &str = "7.4.2";
/// Raise when anything changes that makes older artifacts wrong and is not in [`describe`].
const CONFIG_REVISION: u32 = 2;

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
fn describe(profile: Profile) -> String {
    let nan = if profile == Profile::Portable {
        "canonical"
    } else {
        "native"
    };
    let metering = if profile.is_repeatable() {
        fuel::COSTS
    } else {
        "none"
    };
    format!(
        "revision={CONFIG_REVISION};profile={};compiler=cranelift;opt=speed;nan={nan};pic=no;memory=static;\
         wasm_stack_bytes={WASM_STACK_BYTES};metering={metering};\
         features=bulk_memory,extended_const,multi_value,reference_types,simd;target={}-{}",
        profile.as_str(),
        std::env::consts::ARCH,
        std::env::consts::OS,
    )
}

/// The CPU that code is made for: this one, or of a repeatable profile no more of it than x86-64-v2 has, so that machines
/// of one architecture run the same code. Which operand's NaN survives is the machine code's choice.
fn target(profile: Profile) -> Target {
    let host = CpuFeature::for_host();
    let common = CpuFeature::SSE2
        | CpuFeature::SSE3
        | CpuFeature::SSSE3
        | CpuFeature::SSE41
        | CpuFeature::SSE42
        | CpuFeature::POPCNT
        | CpuFeature::NEON;
    let features = if profile.is_repeatable() {
        host & common
    } else {
        host
    };
    Target::new(Triple::host(), features)
}

/// The identity of this engine under a profile on this machine.
#[must_use]
pub fn info(profile: Profile) -> EngineInfo {
    let mut cpu: Vec<String> = target(profile)
        .cpu_features()
        .iter()
        .map(|feature| feature.to_string())
        .collect();
    cpu.sort();
    EngineInfo {
        profile,
        name: NAME.to_owned(),
        version: VERSION.to_owned(),
        config_digest: sha256(describe(profile).as_bytes()),
        cpu_features: cpu.join(","),
    }
}

/// An engine without a compiler, for running: every memory and table of its guests counts against `budget`.
#[must_use]
pub fn headless(budget: &Arc<Budget>) -> wasmer::Engine {
    beginning(&EngineBuilder::headless().into(), budget, Fresh::default())
}

/// The same engine, in which a module's own memory begins as `fresh` says.
#[must_use]
pub fn beginning(engine: &wasmer::Engine, budget: &Arc<Budget>, fresh: Fresh) -> wasmer::Engine {
    let mut engine = engine.clone();
    engine.set_tunables(CappedTunables::new(Arc::clone(budget), fresh));
    engine
}

/// An engine that compiles one module and never runs.
#[must_use]
pub fn compiler(profile: Profile, threads: NonZero<usize>) -> wasmer::Engine {
    let mut config = Cranelift::new();
    config
        .opt_level(CraneliftOptLevel::Speed)
        .num_threads(threads)
        .canonicalize_nans(profile == Profile::Portable);
    if profile.is_repeatable() {
        config.push_middleware(Fuel::new());
    }
    EngineBuilder::new(config)
        .set_features(Some(features()))
        .set_target(Some(target(profile)))
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
        for profile in Profile::ALL {
            let info = info(profile);
            assert!(info.config_digest.starts_with("sha256:") && info.config_digest.len() == 71);
            assert!(info.cpu_features.split(',').is_sorted());
        }
    }

    #[test]
    fn profiles_never_take_each_others_artifacts() {
        let [fastest, deterministic, portable] =
            Profile::ALL.map(|profile| info(profile).config_digest);
        assert!(fastest != deterministic && fastest != portable && deterministic != portable);
    }

    #[test]
    fn repeatable_profiles_ask_for_no_cpu_that_only_some_machines_have() {
        for profile in [Profile::Deterministic, Profile::Portable] {
            assert!(!info(profile).cpu_features.contains("avx"));
        }
    }

    #[test]
    fn no_profile_has_threads_or_relaxed_simd() {
        let features = features();
        assert!(!features.threads && !features.relaxed_simd && !features.memory64);
    }
}
