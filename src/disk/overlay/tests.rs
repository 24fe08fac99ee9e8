//! `qemu-img` and `qemu-io` judge what is written here.

use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::base::Kind;
use crate::base::cmd::Cmd;

fn qemu_img(args: &[&str], files: &[&Path]) -> String {
    let output = Cmd::new("qemu-img").args(args).args(files).run();
    output.unwrap_or_else(|error| panic!("qemu-img {args:?}: {error} {:?}", error.causes())).text()
}

fn info(path: &Path) -> serde_json::Value {
    serde_json::from_str(&qemu_img(&["info", "--output=json", "-f", "qcow2"], &[path])).unwrap()
}

/// A backing image of 1 GiB with some data in it.
fn backing(folder: &TempDir, format: DiskFormat) -> Backing {
    let path = folder.path().join("blob");
    qemu_img(&["create", "-q", "-f", format.name()], &[&path, Path::new("1G")]);
    let write = Cmd::new("qemu-io").args(["-f", format.name(), "-c", "write -P 9 300M 1M"]).arg(&path);
    write.run().unwrap();
    Backing { path, format, virtual_size: 1 << 30 }
}

#[rstest]
#[case(DiskFormat::Qcow2, ByteSize(1 << 30))]
#[case(DiskFormat::Qcow2, ByteSize(8 << 30))]
#[case(DiskFormat::Raw, ByteSize(8 << 30))]
#[case(DiskFormat::Qcow2, ByteSize((1 << 30) + 512))]
#[case(DiskFormat::Qcow2, ByteSize(MAX_VIRTUAL_SIZE))]
fn overlays_are_sound(#[case] format: DiskFormat, #[case] size: ByteSize) {
    let folder = tempfile::tempdir().unwrap();
    let backing = backing(&folder, format);
    let path = folder.path().join("disk.qcow2");
    create_overlay(&path, &backing, size).unwrap();

    let info = info(&path);
    assert_eq!(info["virtual-size"], size.0);
    assert_eq!(info["backing-filename"], backing.path.to_str().unwrap());
    assert_eq!(info["backing-filename-format"], format.name());
    assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
    assert!(qemu_img(&["check", "-f", "qcow2"], &[&path]).contains("No errors"));

    let write = ["-f", "qcow2", "-c", "read -P 9 300M 1M", "-c", "write -P 5 700M 64k"];
    let output = Cmd::new("qemu-io").args(write).arg(&path).run().unwrap().text();
    assert!(!output.contains("failed"), "{output}");
    assert!(qemu_img(&["check", "-f", "qcow2"], &[&path]).contains("No errors"));
    let read = Cmd::new("qemu-io").args(["-f", format.name(), "-c", "read -P 0 700M 64k"]).arg(&backing.path);
    assert!(!read.run().unwrap().text().contains("failed"), "the backing file was written to");
}

#[test]
fn a_fresh_overlay_reads_as_its_backing_file() {
    let folder = tempfile::tempdir().unwrap();
    let backing = backing(&folder, DiskFormat::Qcow2);
    let path = folder.path().join("disk.qcow2");
    create_overlay(&path, &backing, ByteSize(1 << 30)).unwrap();
    let compared = qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2"], &[&path, &backing.path]);
    assert!(compared.contains("identical"), "{compared}");
}

#[test]
fn a_full_overlay_stays_sound() {
    // 70,000 clusters: more than one refcount block holds, so the table that was laid out here must grow.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    create_empty(&path, ByteSize(6 << 30)).unwrap();
    let args = ["-f", "qcow2", "-c", "write -z 0 1M"];
    Cmd::new("qemu-io").args(args).arg(&path).run().unwrap();
    qemu_img(&["resize", "-q", "-f", "qcow2", "--preallocation=metadata"], &[&path, Path::new("12G")]);
    assert!(qemu_img(&["check", "-f", "qcow2"], &[&path]).contains("No errors"));
}

#[test]
fn empty_disks_have_no_backing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ephemeral.qcow2");
    create_empty(&path, ByteSize(2 << 30)).unwrap();
    assert!(info(&path).get("backing-filename").is_none());
    assert!(qemu_img(&["check", "-f", "qcow2"], &[&path]).contains("No errors"));
    assert_eq!(super::super::inspect(&path, Some(DiskFormat::Qcow2)).unwrap().virtual_size, 2 << 30);
}

#[test]
fn new_files_are_private_and_never_replace_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    create_empty(&path, ByteSize(1 << 20)).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(create_empty(&path, ByteSize(1 << 20)).unwrap_err().kind(), Kind::Exists);
    assert!(path.exists(), "the file that was there is kept");
}

#[test]
fn impossible_requests_make_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let good = Backing { path: "/blob".into(), format: DiskFormat::Qcow2, virtual_size: 3 << 29 };
    let with_path = |text: &str| Backing { path: text.into(), ..good.clone() };
    let longest = format!("/{}", "x".repeat(1022));
    let too_long = format!("/{}", "x".repeat(1023));
    create_overlay(&folder.path().join("longest"), &with_path(&longest), ByteSize(2 << 30)).unwrap();
    for (backing, size) in [
        (good.clone(), 1 << 30),
        (good.clone(), MAX_VIRTUAL_SIZE + 512),
        (good.clone(), (2 << 30) + 1),
        (with_path("blob"), 2 << 30),
        (with_path(&too_long), 2 << 30),
    ] {
        let error = create_overlay(&path, &backing, ByteSize(size)).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(!error.hints().is_empty(), "{error}");
        assert!(!path.exists(), "{error}");
    }
    assert_eq!(create_empty(&path, ByteSize(0)).unwrap_err().kind(), Kind::Usage);
    let small = create_overlay(&path, &good, ByteSize(1 << 30)).unwrap_err();
    assert_eq!(small.hints(), ["ask for at least --disk 1536M"]);
}
