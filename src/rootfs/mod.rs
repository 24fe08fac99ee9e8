//! Root file systems of containers, and the metadata archives that belong to them.
//!
//! A container image is two files: a root (`root.tar.xz` or `squashfs`) and a
//! small archive with `metadata.yaml`, which says what the root is, and the
//! templates that make files of a new container from its configuration.
//!
//! Both are untrusted input. Names and sizes are settled by a reader of our own
//! (`entry`) before anything is written; what is written goes through one
//! place (`tree`), which the kernel keeps beneath the target folder. A
//! squashfs is read by a program, but only turned into the same stream of
//! entries: it never gets to write anything.

mod capability;
mod entry;
mod inspect;
mod lay;
mod make;
mod metadata;
mod path;
mod repack;
mod stream;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;

pub use inspect::{RootFacts, inspect, recognise};
pub use lay::Within;
pub use make::{NewMetadata, make};
pub use metadata::{Metadata, Template, When, incus_arch, stream_arch};
pub use repack::{Repacked, repack};
pub use stream::{Format, Limits};
pub use unpack::{Options, Owners, Unpacked, unpack, unpack_stream};
