//! `qemu-img` makes the images and is the judge of those that are let in.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::base::Kind;
use crate::base::cmd::Cmd;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs qemu-img or qemu-io, which must be installed (package qemu-utils).
fn tool(program: &str, args: &[&str], file: &Path) -> String {
    let output = Cmd::new(program).args(args).arg(file).run();
    output.unwrap_or_else(|error| panic!("{program} {args:?}: {error} {:?}", error.causes())).text()
}

/// A 64 MiB image with data at its beginning, in the middle and at its end.
fn image(folder: &TempDir, create: &[&str]) -> PathBuf {
    let path = folder.path().join("image.qcow2");
    let args = [&["create", "-q", "-f", "qcow2"], create].concat();
    let output = Cmd::new("qemu-img").args(args).arg(&path).arg("64M").run();
    output.unwrap_or_else(|error| panic!("qemu-img create {create:?}: {:?}", error.causes()));
    for at in ["0", "20M", "67104768"] {
        tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 7 {at} 4k")], &path);
    }
    path
}

fn patched(folder: &TempDir, patch: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let path = image(folder, &[]);
    let mut bytes = fs::read(&path, 1 << 30).unwrap();
    patch(&mut bytes);
    fs::write_atomic(&path, &bytes, 0o600).unwrap();
    path
}

fn refusal(path: &Path, claimed: Option<DiskFormat>) -> String {
    let error = inspect(path, claimed).expect_err("must be refused");
    assert_eq!(error.kind(), Kind::Refused, "{error} {:?}", error.causes());
    error.causes().join("; ")
}

#[rstest]
#[case::plain(&[])]
#[case::version_2(&["-o", "compat=0.10"])]
#[case::zstd(&["-o", "compression_type=zstd"])]
#[case::extended_l2(&["-o", "extended_l2=on"])]
#[case::smallest_clusters(&["-o", "cluster_size=512"])]
#[case::largest_clusters(&["-o", "cluster_size=2M"])]
#[case::wide_refcounts(&["-o", "refcount_bits=64"])]
#[case::lazy_refcounts(&["-o", "lazy_refcounts=on"])]
#[case::preallocated_tables(&["-o", "preallocation=metadata"])]
#[case::preallocated(&["-o", "preallocation=falloc"])]
fn images_that_qemu_makes_are_accepted(#[case] create: &[&str]) {
    let folder = folder();
    let path = image(&folder, create);
    let facts = inspect(&path, Some(DiskFormat::Qcow2)).unwrap_or_else(|error| panic!("{:?}", error.causes()));
    assert_eq!(facts.virtual_size, 64 << 20);
    assert_eq!(facts.file_size, path.metadata().unwrap().len());
    // Grown and discarded: the layouts that a plain create does not show.
    tool("qemu-io", &["-f", "qcow2", "-c", "write -z 20M 1M", "-c", "discard 0 1M"], &path);
    let output = Cmd::new("qemu-img").args(["resize", "-q", "-f", "qcow2"]).arg(&path).arg("3G").run();
    output.unwrap_or_else(|error| panic!("{:?}", error.causes()));
    assert_eq!(inspect(&path, None).unwrap().virtual_size, 3 << 30);
}

#[rstest]
#[case::compressed(&["-c"])]
#[case::compressed_zstd(&["-c", "-o", "compression_type=zstd"])]
#[case::compressed_small(&["-c", "-o", "cluster_size=4096"])]
fn converted_images_are_accepted(#[case] convert: &[&str]) {
    let folder = folder();
    let from = image(&folder, &[]);
    let to = folder.path().join("converted.qcow2");
    let args = [&["convert", "-f", "qcow2", "-O", "qcow2"], convert].concat();
    Cmd::new("qemu-img").args(args).args([&from, &to]).run().unwrap();
    assert_eq!(inspect(&to, None).unwrap().virtual_size, 64 << 20);
}

#[test]
fn files_that_name_other_files_are_refused() {
    let folder = folder();
    let base = image(&folder, &[]);
    let path = folder.path().join("overlay.qcow2");
    let create = Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
    create.arg(&base).arg(&path).run().unwrap();
    assert!(refusal(&path, None).contains("backing file '/"), "the name is shown");

    let path = folder.path().join("external.qcow2");
    let option = format!("data_file={}", folder.path().join("data.raw").display());
    Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", &option]).arg(&path).arg("1M").run().unwrap();
    assert!(refusal(&path, None).contains("another file"));
}

#[test]
fn encrypted_and_snapshotted_images_are_refused() {
    let folder = folder();
    let path = folder.path().join("luks.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    Cmd::new("qemu-img").args(args).args(["-o", options]).arg(&path).arg("1M").run().unwrap();
    assert!(refusal(&path, None).contains("encrypted"));

    let path = image(&folder, &[]);
    tool("qemu-img", &["snapshot", "-c", "s"], &path);
    assert!(refusal(&path, None).contains("1 internal snapshots"));
    tool("qemu-img", &["snapshot", "-d", "s"], &path);
    inspect(&path, None).unwrap();
}

#[test]
fn dirty_bitmaps_are_refused() {
    let folder = folder();
    let path = image(&folder, &[]);
    Cmd::new("qemu-img").args(["bitmap", "--add", "-f", "qcow2"]).arg(&path).arg("b").run().unwrap();
    assert!(refusal(&path, None).contains("bitmaps"));
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[rstest]
#[case::version(4, &[0, 0, 0, 9], "version is 9")]
#[case::backing_offset(8, &[0, 0, 0, 0, 0, 0, 0xff, 0xf8], "backing file")]
#[case::backing_length_only(16, &[0, 0, 0, 4], "backing file")]
#[case::tiny_clusters(20, &[0, 0, 0, 8], "cluster size")]
#[case::huge_clusters(20, &[0, 0, 0, 22], "cluster size")]
#[case::shift_overflow(20, &[0xff; 4], "cluster size")]
#[case::no_size(24, &[0; 8], "disk size of 0")]
#[case::odd_size(24, &[0, 0, 0, 0, 0, 0, 2, 1], "not a whole number")]
#[case::absurd_size(24, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0], "above the limit of 16 TiB")]
#[case::size_beyond_tables(24, &[0, 0, 0x10, 0, 0, 0, 0, 0], "entries where")]
#[case::crypt(32, &[0, 0, 0, 1], "encrypted")]
#[case::huge_l1(36, &[0xff; 4], "above QEMU's limit")]
#[case::no_l1(36, &[0; 4], "first-level table has 0")]
#[case::l1_unaligned(40, &[0, 0, 0, 0, 0, 3, 0, 8], "impossible offset")]
#[case::l1_in_header(40, &[0; 8], "impossible offset")]
#[case::l1_overflow(40, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], "beyond the end")]
#[case::refcounts_outside(48, &[0, 0, 0, 1, 0, 0, 0, 0], "beyond the end")]
#[case::no_refcounts(56, &[0; 4], "claims 0 clusters")]
#[case::huge_refcounts(56, &[0xff; 4], "refcount table claims")]
#[case::many_snapshots(60, &[0xff; 4], "internal snapshots")]
#[case::snapshot_offset(64, &[0, 0, 0, 0, 0, 0, 1, 0], "snapshot table")]
#[case::dirty(79, &[1], "in use")]
#[case::corrupt(79, &[2], "corrupt")]
#[case::data_file_bit(79, &[4], "another file")]
#[case::zstd_bit_alone(79, &[8], "compression type 0")]
#[case::unknown_bit(72, &[0x80], "does not know")]
#[case::refcount_width(96, &[0, 0, 0, 7], "refcounts")]
#[case::short_header(100, &[0, 0, 0, 96], "header claims")]
#[case::long_header(100, &[0, 1, 0, 8], "header claims")]
#[case::unaligned_header(100, &[0, 0, 0, 113], "header claims")]
#[case::compression_without_bit(104, &[1], "compression type 1")]
#[case::luks_extension(112, &[0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16], "encrypted")]
#[case::data_file_extension(112, b"DATA\0\0\0\x08/etc/pwd", "another file '/etc/pwd'")]
#[case::backing_format(112, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3], "does not name")]
#[case::runaway_extension(112, &[1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff], "runs past")]
fn hostile_headers_are_refused(#[case] at: usize, #[case] value: &[u8], #[case] reason: &str) {
    let folder = folder();
    let path = patched(&folder, |bytes| put(bytes, at, value));
    let shown = refusal(&path, None);
    assert!(shown.contains(reason), "{shown}");
}

#[test]
fn tables_that_point_outside_are_refused() {
    let folder = folder();
    let far = (1_u64 << 40).to_be_bytes();
    let l1_offset = |bytes: &[u8]| usize::try_from(u64::from_be_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    let l1 = patched(&folder, |bytes| {
        let at = l1_offset(bytes);
        put(bytes, at, &far);
    });
    assert!(refusal(&l1, None).contains("second-level table"));
    let l2 = patched(&folder, |bytes| {
        let at = l1_offset(bytes);
        let l2 = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
        put(bytes, usize::try_from(l2).unwrap(), &far);
    });
    assert!(refusal(&l2, None).contains("data would lie beyond"));
    let block = patched(&folder, |bytes| {
        let at = usize::try_from(u64::from_be_bytes(bytes[48..56].try_into().unwrap())).unwrap();
        put(bytes, at, &far);
    });
    assert!(refusal(&block, None).contains("refcount block"));
}

#[test]
fn cut_files_are_refused() {
    let folder = folder();
    let path = image(&folder, &[]);
    let whole = fs::read(&path, 1 << 30).unwrap();
    for length in [4, 71, 100, 4096, 65536, 200_000, whole.len() / 2, whole.len() - 65536] {
        fs::write_atomic(&path, &whole[..length], 0o600).unwrap();
        refusal(&path, None);
    }
    fs::write_atomic(&path, &[], 0o600).unwrap();
    assert!(refusal(&path, None).contains("empty"));
}

#[test]
fn other_formats_are_named() {
    let folder = folder();
    for (format, name) in
        [("vmdk", "VMDK"), ("vpc", "VHD"), ("vhdx", "VHDX"), ("vdi", "VDI"), ("qed", "QED"), ("qcow", "version is 1")]
    {
        let path = folder.path().join(format);
        Cmd::new("qemu-img").args(["create", "-q", "-f", format]).arg(&path).arg("8M").run().unwrap();
        assert!(refusal(&path, None).contains(name), "{format}");
    }
    // As raw as can be, but for the footer.
    let path = folder.path().join("fixed.vhd");
    let create = Cmd::new("qemu-img").args(["create", "-q", "-f", "vpc", "-o", "subformat=fixed"]);
    create.arg(&path).arg("8M").run().unwrap();
    assert!(refusal(&path, None).contains("fixed-size VHD"));
}

#[rstest]
#[case(b"\x1f\x8b\x08", "gzip")]
#[case(b"\xfd7zXZ\0", "xz")]
#[case(b"\x28\xb5\x2f\xfd", "zstd")]
#[case(b"# Disk DescriptorFile\n", "VMDK descriptor")]
#[case(b"LUKS\xba\xbe\0\x02", "LUKS")]
#[case(b"<!DOCTYPE html>", "HTML")]
#[case(b"just text", "partition table")]
fn other_files_are_named_even_with_a_boot_signature(#[case] head: &[u8], #[case] name: &str) {
    let folder = folder();
    let path = folder.path().join("file");
    let mut bytes = vec![0; 4 << 20];
    put(&mut bytes, 0, head);
    if name != "partition table" {
        put(&mut bytes, 510, &[0x55, 0xaa]);
    }
    fs::write_new(&path, &bytes, 0o600).unwrap();
    assert!(refusal(&path, Some(DiskFormat::Raw)).contains(name));
}

#[test]
fn raw_disks_need_a_partition_table_and_whole_sectors() {
    let folder = folder();
    let path = folder.path().join("disk.raw");
    let mut bytes = vec![0; 1 << 20];
    put(&mut bytes, 510, &[0x55, 0xaa]);
    fs::write_atomic(&path, &bytes, 0o600).unwrap();
    let facts = inspect(&path, Some(DiskFormat::Raw)).unwrap();
    assert_eq!(facts, ImageFacts { format: DiskFormat::Raw, virtual_size: 1 << 20, file_size: 1 << 20 });
    bytes.push(0);
    fs::write_atomic(&path, &bytes, 0o600).unwrap();
    assert!(refusal(&path, None).contains("whole number"));
}

#[test]
fn a_claimed_format_must_be_the_real_one() {
    let folder = folder();
    let path = image(&folder, &[]);
    assert!(refusal(&path, Some(DiskFormat::Raw)).contains("said to be raw, but is qcow2"));
    let raw = folder.path().join("raw");
    let mut bytes = vec![0; 1 << 20];
    put(&mut bytes, 510, &[0x55, 0xaa]);
    fs::write_new(&raw, &bytes, 0o600).unwrap();
    assert!(refusal(&raw, Some(DiskFormat::Qcow2)).contains("said to be qcow2, but is raw"));
}

#[test]
fn only_regular_files_are_opened() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    Cmd::new("mkfifo").arg(&fifo).run().unwrap();
    // Opening it would block for ever.
    assert!(refusal(&fifo, None).contains("regular file"));
    assert_eq!(inspect(&folder.path().join("absent"), None).unwrap_err().kind(), Kind::NotFound);
}

/// Images of several layouts to be damaged; made once.
fn victims() -> &'static [Vec<u8>] {
    static VICTIMS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    VICTIMS.get_or_init(|| {
        let layouts: [&[&str]; 5] = [
            &[],
            &["-o", "compat=0.10"],
            &["-o", "cluster_size=512"],
            &["-o", "extended_l2=on,cluster_size=16k"],
            &["-o", "compression_type=zstd"],
        ];
        layouts.map(|create| fs::read(&image(&folder(), create), 1 << 30).unwrap()).to_vec()
    })
}

proptest! {
    // A case that is let in costs a run of qemu-img.
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the damage, there is an answer; and what is let in, QEMU opens
    /// too, and finds no other file in it.
    #[test]
    fn damaged_images_never_slip_through(
        which in 0_usize..5,
        edits in prop::collection::vec((0_usize..224, any::<u8>()), 1..5),
        anywhere in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = victims()[which].clone();
        for (at, value) in edits {
            bytes[at] = value;
        }
        for (at, value) in anywhere {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = folder();
        let path = folder.path().join("image");
        fs::write_new(&path, &bytes, 0o600).unwrap();
        if let Ok(facts) = inspect(&path, None) {
            let args = ["info", "--output=json", "-f", facts.format.name()];
            let info: serde_json::Value = serde_json::from_str(&tool("qemu-img", &args, &path)).unwrap();
            prop_assert_eq!(info["virtual-size"].as_u64(), Some(facts.virtual_size));
            prop_assert!(info.get("backing-filename").is_none() && info.get("encrypted").is_none(), "{}", info);
            prop_assert!(info["format-specific"]["data"].get("data-file").is_none(), "{}", info);
        }
    }

    /// Bytes that only begin like qcow2.
    #[test]
    fn noise_gets_an_answer(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let folder = folder();
        let path = folder.path().join("image");
        fs::write_new(&path, &[&qcow2::MAGIC[..], &[0, 0, 0, 3], &noise].concat(), 0o600).unwrap();
        prop_assert!(inspect(&path, None).is_err());
    }
}
