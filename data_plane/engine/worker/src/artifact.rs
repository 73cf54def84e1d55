//! The artifact file: a header that binds machine code to one engine, then wasmer's serialized module.
//!
//! Deserializing is unsafe (the bytes become code) and wasmer does not validate their layout, so nobody may load an
//! artifact that was not authenticated first. That is the node's part (a MAC over the whole file); the header is the
//! second wall: it keeps an authentic artifact of another engine or CPU from running here.
//!
//! Layout: 8 bytes magic, u32 little-endian length of the JSON header, the header, zeros up to a multiple of 64, payload.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::engine;
use crate::messages::EngineInfo;

const MAGIC: &[u8; 8] = b"AFARTIF2";
const PREFIX_BYTES: usize = MAGIC.len() + 4;
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// wasmer reads its metadata in place and wants it aligned.
const PAYLOAD_ALIGNMENT: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    engine: EngineInfo,
    payload_bytes: u64,
}

/// Why an artifact is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum ArtifactError {
    /// Damaged, cut, or no artifact at all.
    Invalid(String),
    /// Made by another engine, with another configuration, or for another CPU.
    OtherEngine(String),
}

/// The bytes that go before `payload_bytes` bytes of serialized module.
#[must_use]
pub fn header(engine: &EngineInfo, payload_bytes: usize) -> Vec<u8> {
    let header = Header {
        engine: engine.clone(),
        payload_bytes: payload_bytes as u64,
    };
    let json = serde_json::to_vec(&header).expect("plain strings and numbers serialize");
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + json.len() + PAYLOAD_ALIGNMENT);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(
        &u32::try_from(json.len())
            .expect("a short header")
            .to_le_bytes(),
    );
    bytes.extend_from_slice(&json);
    bytes.resize(bytes.len().next_multiple_of(PAYLOAD_ALIGNMENT), 0);
    bytes
}

/// Map the artifact and return its payload and the engine that made it, which is exactly ours under the artifact's profile.
///
/// # Errors
/// See [`ArtifactError`].
pub fn open(descriptor: OwnedFd) -> Result<(EngineInfo, Bytes), ArtifactError> {
    let file = std::fs::File::from(descriptor);
    // SAFETY: the parent hands over a file that it authenticated and that nobody writes any more; it is mapped
    // privately and read-only.
    let map = unsafe { Mmap::map(&file) }
        .map_err(|error| ArtifactError::Invalid(format!("not a file: {error}")))?;
    let bytes = Bytes::from_owner(map);
    let (made_by, start) = read_header(&bytes)?;
    Ok((made_by, bytes.slice(start..)))
}

fn read_header(bytes: &[u8]) -> Result<(EngineInfo, usize), ArtifactError> {
    let invalid = |text: &str| ArtifactError::Invalid(text.to_owned());
    let prefix = bytes
        .get(..PREFIX_BYTES)
        .ok_or_else(|| invalid("shorter than an artifact's header"))?;
    if &prefix[..MAGIC.len()] != MAGIC {
        return Err(invalid("does not begin as an artifact does"));
    }
    let size = u32::from_le_bytes(prefix[MAGIC.len()..].try_into().expect("four bytes")) as usize;
    if size > MAX_HEADER_BYTES {
        return Err(ArtifactError::Invalid(format!(
            "header of {size} bytes, the bound is {MAX_HEADER_BYTES}"
        )));
    }
    let json = bytes
        .get(PREFIX_BYTES..PREFIX_BYTES + size)
        .ok_or_else(|| invalid("ends inside its header"))?;
    let header: Header = serde_json::from_slice(json)
        .map_err(|error| ArtifactError::Invalid(format!("header: {error}")))?;
    if let Some(difference) = difference(&header.engine, &engine::info(header.engine.profile)) {
        return Err(ArtifactError::OtherEngine(difference));
    }
    let start = (PREFIX_BYTES + size).next_multiple_of(PAYLOAD_ALIGNMENT);
    if bytes.len().checked_sub(start).map(|size| size as u64) != Some(header.payload_bytes) {
        return Err(invalid("its length is not the one its header names"));
    }
    Ok((header.engine, start))
}

/// The first field in which an artifact's or a parent's engine differs from this one.
#[must_use]
pub fn difference(theirs: &EngineInfo, ours: &EngineInfo) -> Option<String> {
    let (their_profile, our_profile) = (theirs.profile.as_str(), ours.profile.as_str());
    [
        ("engine", theirs.name.as_str(), ours.name.as_str()),
        ("engine version", &theirs.version, &ours.version),
        ("profile", their_profile, our_profile),
        (
            "engine configuration",
            &theirs.config_digest,
            &ours.config_digest,
        ),
        ("cpu features", &theirs.cpu_features, &ours.cpu_features),
    ]
    .into_iter()
    .find(|(_, theirs, ours)| theirs != ours)
    .map(|(what, theirs, ours)| {
        format!("{what} is {theirs:?}, not {ours:?}; compile the module anew")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Profile;

    fn artifact(engine: &EngineInfo) -> Vec<u8> {
        let mut bytes = header(engine, 3);
        bytes.extend_from_slice(b"abc");
        bytes
    }

    #[test]
    fn the_payload_of_every_profile_is_found_and_aligned() {
        for profile in Profile::ALL {
            let engine = engine::info(profile);
            let bytes = artifact(&engine);
            let (made_by, start) = read_header(&bytes).expect("own artifact");
            assert_eq!(
                (made_by, &bytes[start..], start % PAYLOAD_ALIGNMENT),
                (engine, b"abc".as_slice(), 0)
            );
        }
    }

    #[test]
    fn another_version_profile_configuration_or_cpu_is_refused() {
        let changes: [fn(&mut EngineInfo); 5] = [
            |engine| engine.name.push('x'),
            |engine| engine.version = "7.4.1".to_owned(),
            |engine| engine.profile = Profile::Portable,
            |engine| engine.config_digest.push('0'),
            |engine| engine.cpu_features.push_str(",avx999"),
        ];
        for change in changes {
            let mut other = engine::info(Profile::Deterministic);
            change(&mut other);
            let error = read_header(&artifact(&other)).expect_err("must be refused");
            assert!(matches!(error, ArtifactError::OtherEngine(_)), "{error:?}");
        }
    }

    #[test]
    fn no_cut_and_no_changed_header_byte_is_taken() {
        let bytes = artifact(&engine::info(Profile::Default));
        for size in 0..bytes.len() {
            assert!(read_header(&bytes[..size]).is_err(), "cut at {size}");
        }
        let header_end =
            PREFIX_BYTES + u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        for at in 0..header_end {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(read_header(&changed).is_err(), "byte {at} changed");
        }
    }
}
