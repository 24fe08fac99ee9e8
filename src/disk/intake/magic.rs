//! Formats that are not accepted, told apart so that the refusal can help.

/// A format that virga knows but does not take.
pub(super) struct Known {
    /// What it looks like, with article.
    pub what: &'static str,
    /// What the user can do.
    pub hint: &'static str,
}

const CONVERT: &str = "convert it, naming its format: qemu-img convert -f FORMAT -O qcow2 IN OUT";
const UNPACK: &str = "unpack it first and give the file inside";
const NO_DISK: &str = "virga boots disk images: get the cloud image (qcow2 or raw), not the installer or root archive";
const FETCH_AGAIN: &str = "a server or proxy answered with a page instead of the image: check the address";

/// Offset, bytes there, what it is, advice. First match wins.
const SIGNATURES: &[(usize, &[u8], &str, &str)] = &[
    (0, b"KDMV", "a VMDK disk", CONVERT),
    (0, b"COWD", "a VMDK disk", CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor, which names other files", CONVERT),
    (0, b"conectix", "a VHD disk", CONVERT),
    (0, b"vhdxfile", "a VHDX disk", CONVERT),
    (0, b"<<< ", "a VDI disk", CONVERT),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI disk", CONVERT),
    (0, b"QFI\xfb", "a qcow disk of version 1 or of an unknown version", CONVERT),
    (0, b"QED\0", "a QED disk", CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels disk", CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels disk", CONVERT),
    (0, b"Bochs Virtual HD Image", "a Bochs disk", CONVERT),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "a compressed loop (cloop) image", CONVERT),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted disk", "virga has no key for it: use an image that is not encrypted"),
    (0, &[0x1f, 0x8b], "a gzip file", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz file", UNPACK),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd file", UNPACK),
    (0, b"BZh", "a bzip2 file", UNPACK),
    (0, &[0x04, 0x22, 0x4d, 0x18], "an lz4 file", UNPACK),
    (0, b"PK\x03\x04", "a zip file", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z file", UNPACK),
    (257, b"ustar", "a tar archive", NO_DISK),
    (0, b"hsqs", "a squashfs file system", NO_DISK),
    (32769, b"CD001", "an ISO 9660 (CD) image", NO_DISK),
    (0, b"\x7fELF", "a program", NO_DISK),
    (0, b"<!DOCTYPE", "an HTML page", FETCH_AGAIN),
    (0, b"<!doctype", "an HTML page", FETCH_AGAIN),
    (0, b"<html", "an HTML page", FETCH_AGAIN),
    (0, b"<?xml", "an XML document", FETCH_AGAIN),
    (0, b"-----BEGIN PGP", "a signature or key", "give the image itself, not its signature"),
];

/// What `head` (the file's first 64 KiB or less) and `tail` (its last 512 bytes) look like.
pub(super) fn recognise(head: &[u8], tail: &[u8]) -> Option<Known> {
    let at = |bytes: &[u8], offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|b| b.starts_with(magic));
    let signature = SIGNATURES.iter().find(|(offset, magic, ..)| at(head, *offset, magic));
    // A fixed-size VHD is a raw disk with a footer: as raw, its guest would see the footer as disk.
    let footers: [(&[u8], &str); 2] = [(b"conectix", "a fixed-size VHD disk"), (b"koly", "an Apple disk image")];
    let footer = footers.iter().find(|(magic, _)| at(tail, 0, magic));
    match (signature, footer) {
        (Some((.., what, hint)), _) => Some(Known { what, hint }),
        (None, Some((_, what))) => Some(Known { what, hint: CONVERT }),
        (None, None) => None,
    }
}
