//! Making a disk larger: by QEMU's own program, which knows every table that has to grow with it.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{MAX_VIRTUAL_SIZE, SECTOR};
use crate::base::cmd::Cmd;
use crate::base::plan::DiskFormat;
use crate::base::{ByteSize, Error, Result, fs};

/// Where a qcow2 header has the size of the disk (QEMU's `docs/interop/qcow2.txt`, "Header").
const SIZE_AT: u64 = 24;

/// Makes the disk of a guest that does not run at least `size` bytes large. One that is already is left alone.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) for a size above 16 TiB or not in whole sectors; what
/// `qemu-img` said, as when somebody has the disk open.
pub fn grow(path: &Path, format: DiskFormat, size: ByteSize) -> Result<()> {
    check_size(size)?;
    if size_of(path, format)? >= size {
        return Ok(());
    }
    // Never probed: what the guest wrote may look like another format.
    Cmd::new("qemu-img").args(["resize", "-q", "-f", format.name(), "--"]).arg(path).arg(size.0.to_string()).run()?;
    fs::open(path)?.sync_all().map_err(|error| fs::explain(error, "writing", path))
}

/// Whether a disk can have this size.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) when not.
pub fn check_size(size: ByteSize) -> Result<()> {
    if size.0 <= MAX_VIRTUAL_SIZE && size.0.is_multiple_of(SECTOR) && size.0 > 0 {
        return Ok(());
    }
    Err(Error::usage(format!("a disk cannot have {} bytes", size.0))
        .hint(format!("disks have whole sectors of 512 bytes and at most {}", ByteSize(MAX_VIRTUAL_SIZE))))
}

/// The size of a disk of ours, as the guest sees it.
fn size_of(path: &Path, format: DiskFormat) -> Result<ByteSize> {
    let file = fs::open(path)?;
    let failed = |error| fs::explain(error, "reading", path);
    if format == DiskFormat::Raw {
        return Ok(ByteSize(file.metadata().map_err(failed)?.len()));
    }
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, SIZE_AT).map_err(failed)?;
    Ok(ByteSize(u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Backing, create_empty, create_overlay};

    fn info(path: &Path) -> serde_json::Value {
        let said = Cmd::new("qemu-img").args(["info", "-f", "qcow2", "--output=json"]).arg(path).run().unwrap();
        serde_json::from_slice(&said.stdout).unwrap()
    }

    #[test]
    fn an_overlay_grows_and_keeps_its_base() {
        let folder = tempfile::tempdir().unwrap();
        let (base, disk) = (folder.path().join("base"), folder.path().join("-o,size=1"));
        create_empty(&base, ByteSize(64 << 20)).unwrap();
        let backing = Backing { path: base.clone(), format: DiskFormat::Qcow2, virtual_size: 64 << 20 };
        create_overlay(&disk, &backing, ByteSize(64 << 20)).unwrap();
        // Across what one table covers, and the same again.
        for size in [1 << 30, 1 << 30, 5 << 40] {
            grow(&disk, DiskFormat::Qcow2, ByteSize(size)).unwrap();
            assert_eq!(info(&disk)["virtual-size"], size);
            Cmd::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&disk).run().unwrap();
        }
        assert_eq!(info(&disk)["backing-filename"], base.to_str().unwrap());
        assert_eq!(info(&disk)["backing-filename-format"], "qcow2");
        grow(&disk, DiskFormat::Qcow2, ByteSize(1 << 20)).unwrap();
        assert_eq!(info(&disk)["virtual-size"], 5_u64 << 40, "nothing shrinks");
        for bad in [MAX_VIRTUAL_SIZE + SECTOR, (1 << 30) + 1] {
            assert_eq!(grow(&disk, DiskFormat::Qcow2, ByteSize(bad)).unwrap_err().kind(), crate::base::Kind::Usage);
        }
    }
}
