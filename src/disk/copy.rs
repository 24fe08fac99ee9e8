//! A disk once more: shared with the first one where the file system can, and with its holes.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::base::cmd::Cmd;
use crate::base::{Error, Kind, Result, fs};

/// For a copy that does not grow: what is not there has to be found first, in a file with large holes.
const SILENCE: Duration = Duration::from_secs(600);

/// Makes the new file `to` with the content of `from`, which nobody may be writing to. On a file system with
/// reflinks it takes no room until one of the two is written to. Not synced to disk.
///
/// # Errors
/// [`Kind::Exists`] when `to` is there already; what `cp` said. Nothing is left of it then.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Err(Error::new(Kind::Exists, format!("'{}' is there already", to.display())));
    }
    let copy = Cmd::new("cp").args(["--reflink=auto", "--sparse=always", "--"]).arg(from).arg(to);
    let grown = to.to_owned();
    let copied = copy.while_changes(SILENCE, move || grown.metadata().map_or(0, |meta| meta.blocks())).run();
    if let Err(error) = copied {
        // The error at hand matters more than one from removing what is left.
        let _ = fs::remove_file(to);
        return Err(error);
    }
    fs::set_mode(to, 0o600)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_holes_and_stays_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("-from"), folder.path().join("to"));
        let file = fs::create_new(&from, 0o600).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"here", 32 << 20).unwrap();
        copy(&from, &to).unwrap();
        file.write_all_at(b"more", 0).unwrap();
        let meta = to.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (64 << 20, 0o600));
        assert!(meta.blocks() * 512 < 1 << 20);
        let bytes = fs::read(&to, 1 << 30).unwrap();
        assert!(bytes[..4] == [0; 4] && &bytes[32 << 20..][..4] == b"here");
        assert_eq!(copy(&from, &to).unwrap_err().kind(), Kind::Exists);
        copy(&folder.path().join("none"), &folder.path().join("x")).unwrap_err();
        assert!(!folder.path().join("x").exists());
    }
}
