//! Files of ours in a root file system that strangers wrote.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, mkdirat, openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

use super::Owners;
use crate::base::{Error, Result, fs};

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// What a file is called until it is whole.
const TEMPORARY: &str = ".virga-new";

/// An unpacked root, of a container that does not run.
#[derive(Debug)]
pub struct Within {
    root: OwnedFd,
    owner: Option<(u32, u32)>,
}

impl Within {
    /// Opens it. What is made there belongs to its root.
    ///
    /// # Errors
    /// When it is no folder.
    pub fn open(root: &Path, owners: Owners) -> Result<Self> {
        let fd = openat(CWD, root, FOLDER, Mode::empty());
        let root = fd.map_err(|error| fs::explain(error.into(), "opening the folder", root))?;
        let owner = match owners {
            Owners::Caller => None,
            owners => owners.of(0).map(|id| (id, id)),
        };
        Ok(Within { root, owner })
    }

    /// Writes a file, in place of what has its name, and the folders above it where they are missing. It is whole or as
    /// it was. No link is followed: nothing outside is reached.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when its folder would be reached through a link; when it cannot be written.
    pub fn write(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.lay(path, mode, bytes).map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
                Error::refused(format!("the container's '{path}' leads through something that is no folder of it"))
            }
            error => Error::failed(format!("writing '{path}' into the container")).because(std::io::Error::from(error)),
        })
    }

    fn lay(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), Errno> {
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parent = self.root.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
            parent = self.enter(&parent, folder)?;
        }
        // A killed command's.
        match unlinkat(&parent, TEMPORARY, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.own(&file, mode)?;
        renameat(&parent, TEMPORARY, &parent, name)
    }

    fn enter(&self, parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
        let made = match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
        let folder = openat2(parent, name, FOLDER, Mode::empty(), BENEATH)?;
        if made {
            self.own(&folder, 0o755)?;
        }
        Ok(folder)
    }

    /// The owner first: changing it takes bits of the mode away.
    fn own(&self, file: impl AsFd, mode: u32) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fchmod(&file, Mode::from_raw_mode(mode))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::base::Kind;

    #[test]
    fn files_are_laid_and_replaced_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write_new(&outside.join("file"), b"theirs", 0o600).unwrap();
        let within = Within::open(&root, Owners::Caller).unwrap();
        within.write("var/lib/cloud/meta-data", 0o600, b"one").unwrap();
        within.write("var/lib/cloud/meta-data", 0o640, b"two").unwrap();
        let file = root.join("var/lib/cloud/meta-data");
        assert_eq!(fs::read(&file, 99).unwrap(), b"two");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o640);

        // A link where the file goes is replaced, not written through.
        symlink(outside.join("file"), root.join("hostname")).unwrap();
        within.write("hostname", 0o644, b"name\n").unwrap();
        assert!(root.join("hostname").symlink_metadata().unwrap().is_file());
        // One where a folder goes is refused, wherever it leads.
        symlink(&outside, root.join("etc")).unwrap();
        symlink("var", root.join("usr")).unwrap();
        for path in ["etc/hostname", "usr/hostname", "hostname/below"] {
            assert_eq!(within.write(path, 0o644, b"ours").unwrap_err().kind(), Kind::Refused, "{path}");
        }
        assert_eq!(fs::read(&outside.join("file"), 99).unwrap(), b"theirs");
        assert_eq!(fs::list_dir(&outside).unwrap(), ["file"]);
    }
}
