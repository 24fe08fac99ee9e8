//! SSH: keys for both sides, what the guest may be recognised by, sessions
//! through the system's `ssh`, and waiting until a guest is ready.
//!
//! - [`keys`]: host keys made here and injected, and virga's own user key.
//! - [`authorized`]: which keys may log in.
//! - [`known_hosts`]: the pinned host keys, as the `ssh` program reads them.
//! - [`probe`]: does an SSH server answer?
//! - [`session`]: running something in a guest.
//! - [`clock`]: telling a guest the time.
//! - [`cloud_init`]: what cloud-init says of itself.
//! - [`ready`]: all of it in order, under one deadline.

pub mod authorized;
pub mod clock;
pub mod cloud_init;
pub mod keys;
pub mod known_hosts;
pub mod probe;
pub mod ready;
pub mod session;

mod agent;
mod relay;
#[cfg(test)]
mod testing;
