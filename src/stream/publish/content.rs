//! The files of a stream.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::base::name::hex;
use crate::base::{Error, RelPath, Result, fs, interrupt};

/// Bytes handled at a time.
const BLOCK: usize = 1 << 20;

/// A file copied into the stream's folder, not in its place yet; gone when dropped.
pub(super) struct Content {
    temporary: NamedTempFile,
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// Copies `file` to a temporary file in `folder` and hashes the copy.
///
/// No hard link: whoever writes to the original would change what was published.
pub(super) fn take_in(folder: &Path, file: &Path) -> Result<Content> {
    fs::create_dir(folder)?;
    let mut source = fs::open(file)?;
    if !source.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
        return Err(Error::usage(format!("'{}' is not a file with content", file.display())));
    }
    let temporary = tempfile::Builder::new()
        .prefix(fs::TEMPORARY_PREFIX)
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(|error| fs::explain(error, "writing to", folder))?;
    // Shares the blocks on file systems that can (ioctl_ficlone(2)).
    let cloned = rustix::fs::ioctl_ficlone(temporary.as_file(), &source).is_ok();
    let (sha256, size) = if cloned {
        sum(&mut fs::open(temporary.path())?, file, |_| Ok(()))?
    } else {
        sum(&mut source, file, |block| {
            temporary.as_file().write_all(block).map_err(|error| fs::explain(error, "writing to", folder))
        })?
    };
    Ok(Content { temporary, sha256, size })
}

/// The SHA-256 (in hexadecimal) and the length of a file; every block also goes to `each`.
pub(super) fn sum(file: &mut File, path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<(String, u64)> {
    let mut hash = sha2::Sha256::new();
    let mut size = 0;
    let mut block = vec![0; BLOCK];
    loop {
        interrupt::check()?;
        let read = file.read(&mut block).map_err(|error| fs::explain(error, "reading", path))?;
        if read == 0 {
            return Ok((hex(&hash.finalize()), size));
        }
        hash.update(&block[..read]);
        each(&block[..read])?;
        size += read as u64;
    }
}

impl Content {
    /// Where it lies until then.
    pub(super) fn file(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the file in its place, durably; `false` when one lay there, whose
    /// content is the same because the path names it.
    pub(super) fn keep(self, dir: &Path, path: &RelPath) -> Result<bool> {
        let target = dir.join(path.as_str());
        let folder = target.parent().unwrap_or(dir);
        fs::create_dir(folder)?;
        let new = !target.exists();
        self.temporary.as_file().sync_all().map_err(|error| fs::explain(error, "writing", &target))?;
        // Also over one that is there: it may have been damaged.
        self.temporary.persist(&target).map_err(|error| fs::explain(error.error, "writing", &target))?;
        fs::sync_dir(folder)?;
        Ok(new)
    }
}

/// Removes a file of the stream, and the folders that this leaves empty.
pub(super) fn remove(dir: &Path, path: &RelPath) -> Result<()> {
    let file = dir.join(path.as_str());
    fs::remove_file(&file)?;
    // Fails when one is not empty, as it should.
    let _ = file.ancestors().skip(1).take_while(|folder| *folder != dir).try_for_each(std::fs::remove_dir);
    Ok(())
}
