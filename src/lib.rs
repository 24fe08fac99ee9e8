//! virga keeps cloud images in sync, verified, and makes machines of them.
//!
//! Four floors; imports only go down (`tests/architecture.rs` holds this):
//!
//! ```text
//! cli/    arguments, printing, progress bars, exit codes
//! ops/    one file a promise: puts parts together
//! parts   stream/ fetch/ pool/ disk/ seed/ guest/ rootfs/ template/ ssh/ session/ driver/: strangers to each other
//! base/   shared types, path names, running programs, files, locks, waiting, undo
//! ```

pub mod base;
pub mod cli;
pub mod config;
pub mod disk;
pub mod driver;
pub mod fetch;
pub mod guest;
pub mod ops;
pub mod pool;
pub mod rootfs;
pub mod seed;
pub mod session;
pub mod ssh;
pub mod stream;
pub mod template;
