//! Every path name that virga uses, in one place. `docs/state.md` draws it.

use std::path::{Path, PathBuf};

use super::{Digest, Error, GuestName, Result, TemplateId};

/// The version of the state folder's shape that this build reads and writes.
pub const STATE_VERSION: u32 = 1;

/// Longest path of a unix socket on Linux, without the closing zero (`unix(7)`).
pub const SOCKET_PATH_MAX: usize = 107;

/// Where things are. Pure path arithmetic: nothing here touches the disk.
#[derive(Clone, Debug)]
pub struct Layout {
    home: PathBuf,
    runtime: PathBuf,
}

impl Layout {
    /// A layout over the state folder `home` and the folder for sockets
    /// `runtime`. Both must be absolute: QEMU changes its directory.
    ///
    /// # Errors
    /// [`super::Kind::Usage`] for a relative path, or one with a newline.
    pub fn new(home: PathBuf, runtime: PathBuf) -> Result<Self> {
        for path in [&home, &runtime] {
            if !path.is_absolute() {
                return Err(Error::usage(format!("the state folder '{}' is not an absolute path", path.display())));
            }
            if path.as_os_str().as_encoded_bytes().iter().any(u8::is_ascii_control) || path.to_str().is_none() {
                return Err(Error::usage(format!("the state folder {path:?} has control or non-UTF-8 characters")));
            }
        }
        Ok(Layout { home, runtime })
    }

    /// The state folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Holds [`STATE_VERSION`] as text.
    #[must_use]
    pub fn version(&self) -> PathBuf {
        self.home.join("version")
    }

    /// The key pair that virga made for a user who has none.
    #[must_use]
    pub fn own_key(&self) -> PathBuf {
        self.home.join("ssh").join("id_ed25519")
    }

    /// The pool's folder.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.home.join("pool")
    }

    /// The pool's lock: shared by everyone, exclusive for prune.
    #[must_use]
    pub fn pool_lock(&self) -> PathBuf {
        self.pool().join("lock")
    }

    /// The folder of verified blobs.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.pool().join("blobs").join("sha256")
    }

    /// A blob, by its SHA-256.
    ///
    /// # Panics
    /// When the digest is of another algorithm: a programming error.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        assert_eq!(digest.algorithm(), super::DigestAlgorithm::Sha256, "blobs are named by SHA-256");
        self.blobs().join(digest.hex())
    }

    /// The folder of downloads under way.
    #[must_use]
    pub fn partials(&self) -> PathBuf {
        self.pool().join("partial")
    }

    /// The bytes of a download under way, named by the announced digest.
    #[must_use]
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.hex())
    }

    /// Blobs whose content turned out to have rotted.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        self.pool().join("quarantine")
    }

    /// The folder of all sources' states.
    #[must_use]
    pub fn streams(&self) -> PathBuf {
        self.pool().join("streams")
    }

    /// The state of a source: records of its images, and its last verified
    /// metadata. `source` must be a [source name](crate::stream::source): plain characters only.
    #[must_use]
    pub fn stream(&self, source: &str) -> PathBuf {
        self.streams().join(source)
    }

    /// The folder of all guests.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.home.join("guests")
    }

    /// One guest's folder.
    #[must_use]
    pub fn guest(&self, name: &GuestName) -> PathBuf {
        self.guests().join(name.as_str())
    }

    /// The files of one guest.
    #[must_use]
    pub fn guest_files(&self, name: &GuestName) -> GuestFiles {
        GuestFiles { folder: self.guest(name) }
    }

    /// The folder of saved machines for warm starts.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.home.join("templates")
    }

    /// The files of one template.
    #[must_use]
    pub fn template_files(&self, id: &TemplateId) -> TemplateFiles {
        TemplateFiles { folder: self.templates().join(id.as_str()) }
    }

    /// Held by whoever makes this template.
    #[must_use]
    pub fn template_lock(&self, id: &TemplateId) -> PathBuf {
        self.templates().join(format!("{id}.lock"))
    }

    /// The folder for sockets and pid files of the guest with this instance
    /// id; not under [`home`](Self::home) because socket paths are short.
    #[must_use]
    pub fn runtime(&self, id: &str) -> PathBuf {
        self.runtime.join(id)
    }

    /// The parent of every [`runtime`](Self::runtime) folder.
    #[must_use]
    pub fn runtime_root(&self) -> &Path {
        &self.runtime
    }
}

/// The path names inside one guest's folder.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    folder: PathBuf,
}

impl GuestFiles {
    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The guest's record: plan, phase, identity.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.folder.join("guest.json")
    }

    /// Held by whoever changes the guest.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// The overlay over the image's blob.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.qcow2")
    }

    /// An extra, empty disk; `number` counts from 0.
    #[must_use]
    pub fn ephemeral_disk(&self, number: usize) -> PathBuf {
        self.folder.join(format!("ephemeral-{number}.qcow2"))
    }

    /// The cloud-init seed image.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.folder.join("seed.img")
    }

    /// The host keys to expect, in OpenSSH's `known_hosts` form.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// Files that are to become a template's, folder and all.
    #[must_use]
    pub fn template(&self) -> TemplateFiles {
        TemplateFiles { folder: self.folder.join("template") }
    }

    /// Where `save` puts a running guest, memory and all.
    #[must_use]
    pub fn saved(&self) -> PathBuf {
        self.folder.join("saved")
    }

    /// What the guest wrote on its serial console.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// What the backend's program wrote on its standard error.
    #[must_use]
    pub fn backend_log(&self) -> PathBuf {
        self.folder.join("backend.log")
    }
}

/// The path names inside one template's folder.
#[derive(Clone, Debug)]
pub struct TemplateFiles {
    folder: PathBuf,
}

impl TemplateFiles {
    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The template's record: its key, and what its files are.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.folder.join("template.json")
    }

    /// The layer between the image's blob and a clone's overlay.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.qcow2")
    }

    /// The memory, byte for byte, with holes where it is zero.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }

    /// The state of processors and devices.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }
}

/// The path names inside one guest's folder for sockets.
#[derive(Clone, Debug)]
pub struct RuntimeFiles {
    folder: PathBuf,
}

impl RuntimeFiles {
    /// Over the folder that [`Layout::runtime`] named.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        RuntimeFiles { folder: folder.to_owned() }
    }

    /// The backend process writes its number here.
    #[must_use]
    pub fn pid(&self) -> PathBuf {
        self.folder.join("pid")
    }

    /// The socket of QEMU's control protocol.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// The socket of the serial console: one client at a time.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// The socket of the channel over which a resumed guest is made one of its own.
    #[must_use]
    pub fn renewal(&self) -> PathBuf {
        self.folder.join("renewal")
    }

    /// Holds the path of the guest's own folder as text: says whose folder this is.
    #[must_use]
    pub fn label(&self) -> PathBuf {
        self.folder.join("guest")
    }
}
