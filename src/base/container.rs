//! What makes a guest a container: a root file system in place of a disk, and
//! a host's kernel that it shares.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{BackendName, ByteSize, Digest};

/// The part of a plan that only containers have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The packed root file system.
    pub root: PathBuf,
    /// How it is packed; stated, never probed.
    pub packing: Packing,
    /// The image's metadata archive, for drivers whose backend wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PathBuf>,
    /// The SHA-256 of metadata and root, one after the other: how LXD and Incus call the image.
    pub fingerprint: Digest,
    /// Folders of the host's that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<Folder>,
    /// What is wished of the container itself.
    #[serde(flatten)]
    pub wish: ContainerWish,
}

/// A folder of the host's in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Where it is here: absolute, UTF-8, without control characters.
    pub host: PathBuf,
    /// Where it is there: absolute, no `..`, not the root.
    pub guest: String,
    /// Whether the container may only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// What a user can wish of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerWish {
    /// The most that its root file system may hold; `None`: as much as there is room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Whether its root is the host's root: who breaks out owns the host.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Whether containers may run in it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nesting: bool,
    /// The backend's profiles that it takes, in this order; empty: the usual one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<BackendName>,
    /// The member of a cluster that it is placed on; `None`: the cluster decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<BackendName>,
}

/// How a root file system is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// A squashfs image.
    Squashfs,
    /// A tar archive, compressed by xz.
    TarXz,
}

impl Packing {
    /// What streams call such a file, the one first that is taken first.
    pub const FTYPES: [(&str, Packing); 2] = [("squashfs", Packing::Squashfs), ("root.tar.xz", Packing::TarXz)];

    /// From a stream's file type; `None` for what is no root file system.
    #[must_use]
    pub fn of_ftype(ftype: &str) -> Option<Self> {
        Self::FTYPES.iter().find(|(name, _)| *name == ftype).map(|(_, packing)| *packing)
    }
}
