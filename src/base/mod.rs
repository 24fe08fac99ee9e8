//! The ground floor: types that every part shares, path names, and the few
//! primitives (programs, files, locks, polling, undo) that touch the machine.
//!
//! Nothing here imports a part.

pub mod address;
pub mod cmd;
pub mod container;
pub mod crash;
pub mod error;
pub mod fs;
pub mod given;
pub mod harmless;
pub mod interrupt;
pub mod layout;
pub mod lock;
pub mod name;
pub mod nic;
pub mod plan;
pub mod platform;
pub mod poll;
pub mod progress;
pub mod proxy;
pub mod size;
pub mod state;
pub mod tls;
pub mod trust;
pub mod undo;

pub use address::Address;
pub use error::{Context, Error, Kind, Result};
pub use layout::Layout;
pub use name::{
    Arch, BackendName, Digest, DigestAlgorithm, GuestName, GuestPath, ImageId, RelPath, SessionId, SnapshotName,
    TemplateId, UserName,
};
pub use plan::GuestPlan;
pub use size::ByteSize;
pub use trust::Trust;
