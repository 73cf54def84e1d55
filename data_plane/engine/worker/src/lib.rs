//! The sandbox worker: runs one guest at a time in a fresh store, or compiles one module, and then ends. It holds no
//! keys, opens no path of the host and decides nothing: authenticity of what it loads is its parent's part.

pub mod artifact;
pub mod bench;
pub mod compile;
pub mod engine;
pub mod frames;
pub mod fuel;
pub mod guest;
pub mod host_call;
pub mod image;
pub mod jail;
pub mod limits;
pub mod messages;
pub mod output;
pub mod run;
pub mod wasi;
pub mod watchdog;
