//! Disk images: what is let in ([`intake`]) and what is made of it ([`overlay`]).
//!
//! Nothing here knows of guests or cloud-init.

mod copy;
mod grow;
pub mod intake;
pub mod overlay;

pub use copy::copy;
pub use grow::{check_size, grow};
pub use intake::{ImageFacts, inspect, inspect_further};
pub use overlay::{Backing, create_empty, create_overlay};

/// Largest virtual disk that is accepted or made. Far above any cloud image,
/// far below where arithmetic on sizes and tables becomes delicate.
pub const MAX_VIRTUAL_SIZE: u64 = 16 << 40;

/// Disk sizes are whole sectors of this many bytes.
pub const SECTOR: u64 = 512;
