#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;
use crate::base::{Kind, Result};

mod metadata;

/// An archive made by hand: libraries refuse to write what is hostile.
#[derive(Clone, Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn raw(mut self, kind: EntryType, name: &[u8], link: &[u8], content: &[u8], change: impl Fn(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn add(self, kind: EntryType, name: &str, link: &str, content: &str) -> Self {
        self.raw(kind, name.as_bytes(), link.as_bytes(), content.as_bytes(), |_| {})
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(EntryType::Regular, name, "", content)
    }

    fn dir(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", "")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, name, to, "")
    }

    fn hardlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Link, name, to, "")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..6).map(|digits| rest + digits).find(|length| length.to_string().len() == length - rest);
            text.extend(format!("{} {key}=", length.unwrap()).into_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.raw(EntryType::XHeader, b"pax", b"", &text, |_| {})
    }

    fn bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A folder for the unpacked tree, within one whose every file is known.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("root")).unwrap();
        std::fs::write(folder.path().join("victim"), "safe").unwrap();
        Place { folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn unpack(&self, archive: Archive) -> Result<Unpacked> {
        self.unpack_with(archive, &CALLER)
    }

    fn unpack_with(&self, archive: Archive, options: &Options) -> Result<Unpacked> {
        let done = unpack(&self.file(&archive.bytes()), &self.root(), options);
        self.is_untouched();
        done
    }

    /// Outside of the root all is as it was.
    fn is_untouched(&self) {
        let mut names: Vec<_> =
            std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["archive", "root", "victim"]);
        let victim = self.folder.path().join("victim");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe");
        assert_eq!((victim.metadata().unwrap().nlink(), victim.metadata().unwrap().mode() & 0o777), (1, 0o644));
    }
}

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };
const CALLER: Options = Options { owners: Owners::Caller, devices: false, limits: LIMITS };
const KEPT: Options = Options { owners: Owners::Kept, ..CALLER };

#[track_caller]
fn refused(archive: Archive, part: &str) {
    let error = Place::new().unpack(archive).unwrap_err();
    let said = format!("{error}: {}", error.causes().join(": "));
    assert_eq!(error.kind(), Kind::Refused, "{said}");
    assert!(said.contains(part), "{said}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn unpacks_what_is_there() {
    let place = Place::new();
    let long = "d/".repeat(60) + "end";
    let archive = Archive::default()
        .raw(EntryType::Directory, b"./", b"", b"", |header| header.set_mode(0o711))
        .dir("./usr/")
        .raw(EntryType::Regular, b"./usr/tool", b"", b"run", |header| header.set_mode(0o4755))
        .symlink("./bin", "usr")
        .symlink("./out", "../../etc/shadow")
        .symlink("./abs", "/etc/shadow")
        .hardlink("./usr/same", "./usr/tool")
        .hardlink("./linked", "out")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1600000000.5")])
        .file("short", "deep")
        .raw(EntryType::Directory, b"./closed", b"", b"", |header| header.set_mode(0o500))
        .file("./closed/in", "x")
        .add(EntryType::Fifo, "./fifo", "", "")
        .add(EntryType::Char, "./dev/null", "", "")
        .file("./name-\u{e9}", "");
    let unpacked = place.unpack(archive).unwrap();
    assert_eq!((unpacked.bytes, unpacked.passed_over), (8, 1));
    let at = |path: &str| place.root().join(path);
    let tool = at("usr/tool").metadata().unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.nlink(), tool.mtime()), (0o755, 2, 1_700_000_000));
    assert_eq!(std::fs::read_link(at("bin")).unwrap(), Path::new("usr"));
    assert_eq!(std::fs::read_link(at("abs")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!(std::fs::read_link(at("linked")).unwrap(), Path::new("../../etc/shadow"));
    assert_eq!(std::fs::read_to_string(at(&long)).unwrap(), "deep");
    assert_eq!(at(&long).metadata().unwrap().mtime(), 1_600_000_000);
    assert_eq!(at("closed").metadata().unwrap().mode() & 0o7777, 0o500);
    assert_eq!(at("").metadata().unwrap().mode() & 0o7777, 0o711);
    assert_eq!(at("usr").metadata().unwrap().mtime(), 1_700_000_000);
    assert!(!at("dev").exists());
    std::fs::set_permissions(at("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn owners_set_id_bits_and_capabilities_are_kept_and_shifted() {
    if !is_root() {
        return;
    }
    let version_2 = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let archive = Archive::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &version_2),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("uid", b"1000"),
        ])
        .raw(EntryType::Regular, b"ping", b"", b"", |header| header.set_mode(0o6755))
        .raw(EntryType::Symlink, b"link", b"ping", b"", |header| header.set_gid(7));
    let capability = |place: &Place| {
        let mut value = [0; 64];
        let read = rustix::fs::lgetxattr(place.root().join("ping"), "security.capability", &mut value[..]).unwrap();
        value[..read].to_vec()
    };
    let place = Place::new();
    place.unpack_with(archive.clone(), &KEPT).unwrap();
    let ping = place.root().join("ping").metadata().unwrap();
    assert_eq!((ping.uid(), ping.gid(), ping.mode() & 0o7777), (1000, 0, 0o6755));
    assert_eq!(place.root().join("link").symlink_metadata().unwrap().gid(), 7);
    assert_eq!(capability(&place), version_2);
    let mut names = [0; 256];
    let listed = rustix::fs::llistxattr(place.root().join("ping"), &mut names[..]).unwrap();
    assert_eq!(&names[..listed], b"security.capability\0");

    let place = Place::new();
    let shifted = Options { owners: Owners::Shifted { base: 1_000_000, count: 65_536 }, ..CALLER };
    place.unpack_with(archive.clone(), &shifted).unwrap();
    let ping = place.root().join("ping").metadata().unwrap();
    assert_eq!((ping.uid(), ping.gid(), ping.mode() & 0o7777), (1_001_000, 1_000_000, 0o6755));
    let root = place.root().metadata().unwrap();
    assert_eq!((root.uid(), root.mode() & 0o7777), (1_000_000, 0o755), "the archive does not mention it");
    let version_3 = [&[1, 0, 0, 3][..], &version_2[4..], &1_000_000u32.to_le_bytes()].concat();
    assert_eq!(capability(&place), version_3);

    let narrow = Options { owners: Owners::Shifted { base: 1_000_000, count: 1000 }, ..CALLER };
    assert_eq!(Place::new().unpack_with(archive, &narrow).unwrap_err().kind(), Kind::Refused);
}

#[test]
fn hostile_names_are_refused() {
    for name in ["/etc/passwd", "../victim", "./../victim", "a/../../victim", "a/.."] {
        refused(Archive::default().file(name, "x"), if name.starts_with('/') { "absolute" } else { "upwards" });
        refused(Archive::default().dir(name), "the archive has the name");
        refused(Archive::default().pax(&[("path", name.as_bytes())]).file("a", ""), "the archive has the name");
        let long = [name.as_bytes(), b"\0"].concat();
        refused(Archive::default().raw(EntryType::GNULongName, b"l", b"", &long, |_| {}).file("a", ""), "the name");
        refused(Archive::default().file("a", "").hardlink("b", name), "leads out");
        refused(Archive::default().file("a", "").pax(&[("linkpath", name.as_bytes())]).hardlink("b", "a"), "leads out");
    }
    refused(Archive::default().file("", ""), "empty");
    refused(Archive::default().file("./", "x"), "has content, but is no file");
    refused(Archive::default().symlink(".", "x"), "root is no folder");
    refused(Archive::default().pax(&[("path", "x".repeat(300).as_bytes())]).file("a", ""), "cannot be a file's name");
    refused(Archive::default().pax(&[("path", "a/".repeat(300).as_bytes())]).dir("a"), "too deep");
    refused(Archive::default().pax(&[("path", b"a\0b")]).file("a", ""), "cannot be a file's name");
}

#[test]
fn nothing_goes_through_a_link_of_the_archives_own() {
    for target in ["..", "/tmp", "../victim", "usr", "."] {
        let link = || Archive::default().dir("usr").file("usr/f", "").symlink("out", target);
        refused(link().file("out/victim", "x"), "no folder of it");
        refused(link().dir("out/d"), "no folder of it");
        refused(link().file("out", "x"), "twice");
        refused(link().dir("out"), "twice");
        refused(link().symlink("out/x", "y"), "no folder of it");
        refused(link().hardlink("x", "out/victim"), "no file of it");
        refused(link().hardlink("out/x", "usr/f"), "no folder of it");
    }
    // A link to a link does not lead to the file behind it either.
    let place = Place::new();
    let both = Archive::default().symlink("a", "../victim").hardlink("b", "a");
    place.unpack(both.clone()).unwrap();
    refused(both.file("b", "x"), "twice");
    refused(Archive::default().file("a", "").file("a/b", ""), "no folder of it");
    refused(Archive::default().file("a", "").file("./a", ""), "twice");
    refused(Archive::default().hardlink("a", "nowhere"), "no file of it");
    refused(Archive::default().dir("d").hardlink("a", "d"), "no file of it");
    refused(Archive::default().hardlink("a", "."), "no file of it");
}

#[test]
fn devices_are_made_only_when_asked_for() {
    let node = |name: &str, kind| {
        Archive::default().raw(kind, name.as_bytes(), b"", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
    };
    for kind in [EntryType::Char, EntryType::Block] {
        assert_eq!(Place::new().unpack(node("./dev/null", kind)).unwrap().passed_over, 1);
        for name in ["null", "dev/deep/null", "etc/dev/null", "dev"] {
            refused(node(name, kind), "device node");
        }
    }
    if is_root() {
        let place = Place::new();
        place.unpack_with(node("dev/null", EntryType::Char), &Options { devices: true, ..KEPT }).unwrap();
        let null = place.root().join("dev/null").metadata().unwrap();
        assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o644));
    }
}

#[test]
fn unknown_kinds_and_damage_are_refused() {
    for kind in [EntryType::GNUSparse, EntryType::new(b'V'), EntryType::new(b'D'), EntryType::new(b'M')] {
        refused(Archive::default().add(kind, "a", "", ""), "is of type");
    }
    refused(Archive::default().pax(&[("GNU.sparse.major", b"1")]).file("a", ""), "sparse");
    refused(Archive::default().raw(EntryType::XHeader, b"p", b"", b"99 path=a\n", |_| {}), "makes no sense");
    refused(Archive::default().pax(&[("uid", b"-1")]).file("a", ""), "makes no sense");
    refused(Archive::default().pax(&[("uid", b"4294967295")]).file("a", ""), "no owner");
    let mut flipped = Archive::default().file("a", "");
    flipped.0[0] ^= 1;
    refused(flipped, "checksum");
    let place = Place::new();
    let whole = Archive::default().file("a", "content").bytes();
    for cut in [512, 515, 600, 1024, 1030] {
        let error = unpack(&place.file(&whole[..cut]), &place.root(), &CALLER).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{cut}");
        std::fs::remove_file(place.root().join("a")).unwrap();
    }
    let file = place.file(&Archive::default().file("a", "").bytes());
    std::fs::write(place.root().join("old"), "").unwrap();
    assert_eq!(unpack(&file, &place.root(), &CALLER).unwrap_err().kind(), Kind::Exists);
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_are_refused_before_they_fill_anything() {
    let few = Options { limits: Limits { entries: 100, ..LIMITS }, ..CALLER };
    let zeros = "\0".repeat(2 << 20);
    let written = |place: &Place| -> u64 {
        std::fs::read_dir(place.root()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let one = Archive::default().file("zeros", &zeros).bytes();
    let announced = Archive::default().raw(EntryType::Regular, b"a", b"", b"", |header| header.set_size(1 << 50));
    let pax = Archive::default().pax(&[("size", b"18446744073709551615")]).file("a", "");
    let many = (0..101).fold(Archive::default(), |archive, n| archive.dir(&format!("{n}")));
    let name = Archive::default().raw(EntryType::GNULongName, b"l", b"", zeros.as_bytes(), |_| {});
    let headers = (0..101).fold(Archive::default(), |archive, _| archive.pax(&[("comment", b"x")]));
    // Folders that no entry mentions count as well.
    let deep = |n: usize| format!("{n}/").repeat(40) + "end";
    let implied = (0..3).fold(Archive::default(), |all, n| all.pax(&[("path", deep(n).as_bytes())]).file("a", ""));
    let mut trailer = Archive::default().file("a", "").bytes();
    trailer.resize(8 << 20, 0);
    let bombs =
        [one, announced.bytes(), pax.bytes(), many.bytes(), name.bytes(), headers.bytes(), implied.bytes(), trailer];
    for (n, bomb) in bombs.iter().enumerate() {
        for packed in [bomb.clone(), xz(bomb), gz(bomb)] {
            let place = Place::new();
            let error = unpack(&place.file(&packed), &place.root(), &few).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{n}: {error}");
            assert!(written(&place) <= 8 << 20 && place.folder.path().join("victim").exists());
        }
    }
}

#[test]
fn packed_archives_are_recognised_and_checked_whole() {
    let place = Place::new();
    let bytes = Archive::default().dir("usr").file("usr/a", "content").bytes();
    let facts = |bytes: &[u8]| inspect(&place.file(bytes), LIMITS);
    for (packed, format) in [(bytes.clone(), Format::Tar), (xz(&bytes), Format::TarXz), (gz(&bytes), Format::TarGz)] {
        assert_eq!(recognise(&place.file(&packed)).unwrap(), Some(format));
        assert_eq!(facts(&packed).unwrap(), RootFacts { format, newest: 1_700_000_000 });
        let error = facts(&packed[..packed.len() - 5]);
        assert!(format == Format::Tar || error.unwrap_err().kind() == Kind::Refused, "{format:?}");
    }
    let mut damaged = xz(&bytes);
    let at = damaged.len() - 40;
    damaged[at] ^= 1;
    assert_eq!(facts(&damaged).unwrap_err().kind(), Kind::Refused);
    for other in [&b"QFI\xfb"[..], &xz(b"no tar"), b""] {
        assert_eq!(recognise(&place.file(other)).unwrap(), None);
    }
    let said = |archive: Archive| facts(&archive.bytes()).unwrap_err().causes().join(": ");
    assert!(said(Archive::default().file("readme", "")).contains("no root file system"));
    assert!(said(Archive::default().dir("usr").file("metadata.yaml", "")).contains("metadata archive"));
    assert!(said(Archive::default().dir("usr").file("../a", "")).contains("upwards"));
}

#[test]
fn a_squashfs_is_unpacked_as_a_tar_is() {
    let place = Place::new();
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("usr")).unwrap();
    std::fs::write(tree.path().join("usr/file"), "content").unwrap();
    std::os::unix::fs::symlink("../../etc", tree.path().join("out")).unwrap();
    std::fs::set_permissions(tree.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let image = place.folder.path().join("archive");
    let paths = [tree.path(), &image].map(|path| path.to_str().unwrap().to_owned());
    let make = crate::base::cmd::Cmd::new("mksquashfs").args(&paths).args(["-noappend", "-no-progress", "-all-root"]);
    make.args(["-mkfs-time", "1700000001"]).run().unwrap();
    assert_eq!(recognise(&image).unwrap(), Some(Format::Squashfs));
    let facts = inspect(&image, LIMITS).unwrap();
    assert_eq!(facts, RootFacts { format: Format::Squashfs, newest: 1_700_000_001 });
    let unpacked = unpack(&image, &place.root(), &CALLER).unwrap();
    assert_eq!(unpacked.bytes, 7);
    assert_eq!(std::fs::read_to_string(place.root().join("usr/file")).unwrap(), "content");
    assert_eq!(std::fs::read_link(place.root().join("out")).unwrap(), Path::new("../../etc"));
    assert_eq!(place.root().metadata().unwrap().mode() & 0o7777, 0o711);
    // Cut short: the program that reads it says so.
    let bytes = std::fs::read(&image).unwrap();
    let place = Place::new();
    let cut = place.file(&bytes[..200]);
    assert_eq!(inspect(&cut, LIMITS).unwrap_err().kind(), Kind::Refused);
    assert_eq!(unpack(&cut, &place.root(), &CALLER).unwrap_err().kind(), Kind::Refused);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the entries are called and lead to, all of it stays beneath the root.
    #[test]
    fn random_names_never_escape(entries in prop::collection::vec(
        ("([./a-c]|\\.\\.|/){0,8}", "([./a-c]|\\.\\.|/|victim){0,6}", 0..4u8), 1..12))
    {
        let place = Place::new();
        let mut archive = Archive::default();
        for (name, link, kind) in &entries {
            let kind = match kind {
                0 => EntryType::Regular,
                1 => EntryType::Directory,
                2 => EntryType::Symlink,
                _ => EntryType::Link,
            };
            archive = archive.add(kind, name, link, if kind == EntryType::Regular { "changed" } else { "" });
        }
        // `unpack` looks outside.
        if let Err(error) = place.unpack(archive) {
            prop_assert_eq!(error.kind(), Kind::Refused, "{}", error.causes().join(": "));
        }
    }

    /// Nor does anything in a damaged archive end the program.
    #[test]
    fn random_damage_is_survived(at in 0usize..4096, byte: u8, cut in 0usize..4096) {
        let place = Place::new();
        let mut bytes = Archive::default().dir("d").file("d/f", "text").symlink("l", "d").hardlink("h", "d/f").bytes();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(cut % (length + 1));
        let _ = unpack(&place.file(&bytes), &place.root(), &CALLER);
        let _ = inspect(&place.file(&bytes), LIMITS);
        place.is_untouched();
    }
}
