//! Every path name that virga uses, in one place. `docs/state.md` draws it.

use std::path::{Path, PathBuf};

use super::{Digest, Error, GuestName, Result, SessionId, TemplateId};

/// The version of the state folder's shape that this build reads and writes.
pub const STATE_VERSION: u32 = 1;

/// What the names of [`Layout::template_refusal`] end in.
pub const REFUSED: &str = ".refused";

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

    /// Names this folder to daemons that keep its guests: a random id as text, made when it is first needed.
    #[must_use]
    pub fn state_id(&self) -> PathBuf {
        self.home.join("id")
    }

    /// The folder with a file for each daemon that keeps, or kept, guests of this folder.
    #[must_use]
    pub fn daemons(&self) -> PathBuf {
        self.home.join("daemons")
    }

    /// The key pair that virga made for a user who has none.
    #[must_use]
    pub fn own_key(&self) -> PathBuf {
        self.home.join("ssh").join("id_ed25519")
    }

    /// What the user's own configuration of ssh includes, where they had that installed.
    #[must_use]
    pub fn ssh_include(&self) -> PathBuf {
        self.home.join("ssh").join("include")
    }

    /// What that includes in turn: how running guests are reached, written whenever one is called.
    #[must_use]
    pub fn ssh_blocks(&self) -> PathBuf {
        self.home.join("ssh").join("guests")
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

    /// How new the metadata was that was verified last of a source. A folder of its own: it can be carried from one
    /// machine to the next, without the pool.
    #[must_use]
    pub fn verified(&self, source: &str) -> PathBuf {
        self.home.join("verified").join(format!("{source}.json"))
    }

    /// Held while any of these changes.
    #[must_use]
    pub fn verified_lock(&self) -> PathBuf {
        self.home.join("verified").join("lock")
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
        GuestFiles::in_folder(self.guest(name))
    }

    /// The folder of sessions, to which throwaway guests belong.
    #[must_use]
    pub fn sessions(&self) -> PathBuf {
        self.home.join("sessions")
    }

    /// The files of one session.
    #[must_use]
    pub fn session(&self, id: &SessionId) -> SessionFiles {
        SessionFiles { stem: self.sessions().join(id.as_str()) }
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

    /// Why no template could be made, as a JSON string, so that it is not tried with each guest.
    #[must_use]
    pub fn template_refusal(&self, id: &TemplateId) -> PathBuf {
        self.templates().join(format!("{id}{REFUSED}"))
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
    /// In this folder: that of a guest which is to get its name yet.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Self {
        GuestFiles { folder }
    }

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

    /// What a TPM keeps.
    #[must_use]
    pub fn tpm(&self) -> PathBuf {
        self.folder.join("tpm")
    }

    /// The variables of a UEFI firmware.
    #[must_use]
    pub fn firmware_vars(&self) -> PathBuf {
        self.folder.join("firmware-vars")
    }

    /// The cloud-init seed image.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.folder.join("seed.img")
    }

    /// The folder with the seed's documents, where the driver wants them so.
    #[must_use]
    pub fn seed_folder(&self) -> PathBuf {
        self.folder.join("seed")
    }

    /// Is there while a daemon is being asked to make the guest: one that is killed meanwhile does not take that back.
    #[must_use]
    pub fn asked(&self) -> PathBuf {
        self.folder.join("asked")
    }

    /// A public key that gets in and whose private half is no file here; `number` counts from 0.
    #[must_use]
    pub fn access_key(&self, number: usize) -> PathBuf {
        self.folder.join(format!("keys/{number}.pub"))
    }

    /// Is there while nobody has to wait for a login: somebody was let in since the guest was started.
    #[must_use]
    pub fn entered(&self) -> PathBuf {
        self.folder.join("entered")
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

    /// Where `save` puts a running guest, memory and all. Whole when the record says so.
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

/// The path names of one session.
#[derive(Clone, Debug)]
pub struct SessionFiles {
    stem: PathBuf,
}

impl SessionFiles {
    /// What the names of locks end in.
    pub const LOCK: &str = ".lock";

    /// Held as long as the session's owner lives.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.stem.with_extension("lock")
    }

    /// When it is over.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.stem.with_extension("json")
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

/// The path names of one container of classic LXC. Its folder is not the guest's own: the container's root, an
/// ordinary user of the host, has to get there.
#[derive(Clone, Debug)]
pub struct LxcFiles {
    parent: PathBuf,
    name: GuestName,
}

impl LxcFiles {
    /// In the folder that LXC's programs are given as `--lxcpath`.
    #[must_use]
    pub fn new(parent: &Path, name: &GuestName) -> Self {
        LxcFiles { parent: parent.to_owned(), name: name.clone() }
    }

    /// The folder of all containers of a state folder.
    #[must_use]
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// The container's name.
    #[must_use]
    pub fn name(&self) -> &GuestName {
        &self.name
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.parent.join(self.name.as_str())
    }

    /// Holds the guest's id as text; the first file that is made.
    #[must_use]
    pub fn label(&self) -> PathBuf {
        self.folder().join("guest")
    }

    /// What LXC reads; the last file that is made.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder().join("config")
    }

    /// When it starts with its host; absent: it does not.
    #[must_use]
    pub fn autostart(&self) -> PathBuf {
        self.folder().join("autostart")
    }

    /// The root file system.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder().join("rootfs")
    }

    /// Another one, until it takes the first one's place.
    #[must_use]
    pub fn next_root(&self) -> PathBuf {
        self.folder().join("rootfs.new")
    }

    /// The folder of snapshots: each a folder with a root file system.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.folder().join("snapshots")
    }

    /// A snapshot that is being taken.
    #[must_use]
    pub fn next_snapshot(&self) -> PathBuf {
        self.folder().join("snapshot.new")
    }

    /// The file that LXC locks, and leaves when the container goes.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        let below = self.parent.strip_prefix("/").unwrap_or(&self.parent);
        Path::new("/run/lxc/lock").join(below).join(format!(".{}", self.name))
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

    /// The socket at which QEMU hands over what the guest sends.
    #[must_use]
    pub fn frames(&self) -> PathBuf {
        self.folder.join("frames")
    }

    /// The socket of the guest's TPM.
    #[must_use]
    pub fn tpm(&self) -> PathBuf {
        self.folder.join("tpm")
    }

    /// How fast KVM was found to be: beside the folders of all guests, and gone with them when the host restarts.
    #[must_use]
    pub fn kvm(&self) -> PathBuf {
        self.folder.with_file_name("kvm.json")
    }

    /// Holds the path of the guest's own folder as text: says whose folder this is.
    #[must_use]
    pub fn label(&self) -> PathBuf {
        self.folder.join("guest")
    }
}
