//! Our own reader of qcow2 headers and tables: bounded, and stricter than
//! QEMU, which opens all that the format can say.
//!
//! Format: `docs/interop/qcow2.rst` in QEMU's source. Limits marked so are QEMU's own,
//! so that what is accepted here also opens there.

use std::fs::File;

use super::{check_virtual_size, read_at_most};
use crate::base::name::quoted;
use crate::base::{Error, Result};

pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// As much of the file as the header and its extensions may take.
pub(super) const HEAD_LIMIT: usize = 64 << 10;

/// QEMU's limit of the L1 table.
const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU's limit of the refcount table.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// Sub-clusters: QEMU reads them since 5.2, older than any that virga runs on,
/// and they bring no new way out of the file; so they are let in.
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_LUKS: u32 = 0x0537_be77;

/// Bits 9 to 55 of an L1 or L2 entry: where the cluster is.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L2_ZERO: u64 = 1;
const L2_COMPRESSED: u64 = 1 << 62;

/// The fields that the checks need. Absent ones of version 2 have their implied values.
struct Header {
    cluster_bits: u32,
    size: u64,
    l1_entries: u64,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u64,
    extended_l2: bool,
    length: usize,
}

/// Checks a qcow2 image of which `head` is the beginning; returns its virtual size.
pub(super) fn check(file: &File, head: &[u8], file_size: u64) -> Result<u64> {
    let header = parse(head)?;
    check_extensions(head, &header)?;
    check_tables(&header, file_size)?;
    check_refcounts(file, &header, file_size)?;
    check_clusters(file, &header, file_size)?;
    Ok(header.size)
}

fn parse(head: &[u8]) -> Result<Header> {
    let field = |at| be32(head, at).ok_or_else(truncated);
    let wide = |at| be64(head, at).ok_or_else(truncated);
    let version = field(4)?;
    if version != 2 && version != 3 {
        return Err(Error::refused(format!("its qcow2 version is {version}; versions 2 and 3 are known"))
            .hint("convert it: qemu-img convert -O qcow2 IN OUT"));
    }
    refuse_backing(head)?;
    let cluster_bits = field(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Error::refused(format!("its cluster size of 2^{cluster_bits} bytes is outside 512 B to 2 MiB")));
    }
    if field(32)? != 0 {
        return Err(encrypted());
    }
    let snapshots = field(60)?;
    if snapshots != 0 {
        return Err(Error::refused(format!("it holds {snapshots} internal snapshots"))
            .hint("remove them: qemu-img snapshot -d NAME IMAGE, or write a clean copy: qemu-img convert -O qcow2"));
    }
    // QEMU checks the offset even where no table is.
    let snapshot_table = wide(64)?;
    if !snapshot_table.is_multiple_of(1 << cluster_bits) || i64::try_from(snapshot_table).is_err() {
        return Err(Error::refused("its snapshot table is at an impossible offset"));
    }
    let size = wide(24)?;
    check_virtual_size(size)?;
    let mut header = Header {
        cluster_bits,
        size,
        l1_entries: field(36)?.into(),
        l1_offset: wide(40)?,
        refcount_offset: wide(48)?,
        refcount_clusters: field(56)?.into(),
        extended_l2: false,
        length: 72,
    };
    if version == 3 {
        parse_version_3(head, &mut header)?;
    }
    Ok(header)
}

fn parse_version_3(head: &[u8], header: &mut Header) -> Result<()> {
    let incompatible = be64(head, 72).ok_or_else(truncated)?;
    check_incompatible(incompatible)?;
    let refcount_order = be32(head, 96).ok_or_else(truncated)?;
    if refcount_order > 6 {
        return Err(Error::refused(format!("its refcounts of 2^{refcount_order} bits are wider than 64 bits")));
    }
    let length = be32(head, 100).ok_or_else(truncated)? as usize;
    if length < 104 || !length.is_multiple_of(8) || length > 1 << header.cluster_bits || length > HEAD_LIMIT {
        return Err(Error::refused(format!("its header claims a length of {length} bytes")));
    }
    // The byte exists only in headers longer than 104 bytes; absent means zlib.
    let compression = if length > 104 { *head.get(104).ok_or_else(truncated)? } else { 0 };
    let flagged = incompatible & INCOMPATIBLE_COMPRESSION != 0;
    if compression > 1 || flagged != (compression != 0) {
        return Err(Error::refused(format!("its compression type {compression} is unknown or contradicts its flags")));
    }
    header.extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
    // 32 sub-clusters of at least one sector each: QEMU's limit.
    if header.extended_l2 && header.cluster_bits < 14 {
        return Err(Error::refused("its clusters are too small for extended L2 entries"));
    }
    header.length = length;
    Ok(())
}

fn check_incompatible(bits: u64) -> Result<()> {
    const KNOWN: u64 = INCOMPATIBLE_DIRTY
        | INCOMPATIBLE_CORRUPT
        | INCOMPATIBLE_DATA_FILE
        | INCOMPATIBLE_COMPRESSION
        | INCOMPATIBLE_EXTENDED_L2;
    const REPAIR: &str = "repair it with 'qemu-img check -r all IMAGE', or get it again";
    if bits & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(data_file(""));
    }
    if bits & INCOMPATIBLE_CORRUPT != 0 {
        return Err(Error::refused("it is marked as corrupt").hint(REPAIR));
    }
    // Harmless to read, but QEMU would want to repair it, and a blob is never written.
    if bits & INCOMPATIBLE_DIRTY != 0 {
        return Err(Error::refused("it is marked as in use: whoever wrote it did not close it").hint(REPAIR));
    }
    if bits & !KNOWN != 0 {
        return Err(Error::refused(format!("it needs qcow2 features that virga does not know ({:#x})", bits & !KNOWN)));
    }
    Ok(())
}

fn refuse_backing(head: &[u8]) -> Result<()> {
    let offset = be64(head, 8).ok_or_else(truncated)?;
    let length = be32(head, 16).ok_or_else(truncated)? as usize;
    if offset == 0 && length == 0 {
        return Ok(());
    }
    let name = usize::try_from(offset).ok().and_then(|start| {
        let bytes = head.get(start..start.checked_add(length.min(1023))?)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    });
    let shown = name.map_or_else(String::new, |name| format!(" {}", quoted(&name)));
    Err(Error::refused(format!("it depends on a backing file{shown}, which would be read on this machine"))
        .hint("if you trust it, write a copy that stands alone: qemu-img convert -O qcow2 IN OUT"))
}

/// Walks the header extensions: each has a type, a length, and data padded to 8 bytes.
fn check_extensions(head: &[u8], header: &Header) -> Result<()> {
    let end = (1 << header.cluster_bits).min(HEAD_LIMIT);
    let mut at = header.length;
    while at < end {
        // QEMU stops without complaint where less than an extension's head is left.
        if end - at < 8 {
            return Ok(());
        }
        let kind = be32(head, at).ok_or_else(truncated)?;
        let length = be32(head, at + 4).ok_or_else(truncated)? as usize;
        let data = head.get(at + 8..at + 8 + length).filter(|_| at + 8 + length <= end);
        match (kind, data) {
            (EXTENSION_END, Some(_)) => return Ok(()),
            (EXTENSION_DATA_FILE, data) => {
                return Err(data_file(&data.map(String::from_utf8_lossy).unwrap_or_default()));
            }
            (EXTENSION_LUKS, _) => return Err(encrypted()),
            (EXTENSION_BACKING_FORMAT, _) => {
                return Err(Error::refused("it states the format of a backing file that it does not name"));
            }
            // Only running machines need them; QEMU would parse their tables at every start.
            (EXTENSION_BITMAPS, _) => {
                return Err(Error::refused("it holds dirty bitmaps")
                    .hint("remove them: qemu-img convert -O qcow2 IN OUT writes a copy without"));
            }
            (_, None) => return Err(Error::refused(format!("its header extension {kind:#x} runs past the header"))),
            // Others (feature names, later inventions) may be ignored by definition.
            (_, Some(_)) => at += 8 + length.next_multiple_of(8),
        }
    }
    if end < 1 << header.cluster_bits {
        return Err(Error::refused("its header extensions take more than 64 KiB"));
    }
    Ok(())
}

fn check_tables(header: &Header, file_size: u64) -> Result<()> {
    let cluster = 1_u64 << header.cluster_bits;
    let needed = header.size.div_ceil(covered_by_l2(header));
    let have = header.l1_entries;
    if have < needed {
        return Err(Error::refused(format!("its first-level table has {have} entries where {needed} are needed")));
    }
    if have > MAX_L1_BYTES / 8 {
        return Err(Error::refused(format!("its first-level table claims {have} entries, above QEMU's limit")));
    }
    if header.refcount_clusters == 0 || header.refcount_clusters * cluster > MAX_REFCOUNT_TABLE_BYTES {
        let clusters = header.refcount_clusters;
        return Err(Error::refused(format!("its refcount table claims {clusters} clusters")));
    }
    check_range("first-level table", header.l1_offset, header.l1_entries * 8, cluster, file_size)?;
    check_range("refcount table", header.refcount_offset, header.refcount_clusters * cluster, cluster, file_size)
}

/// A table lies on a cluster's boundary, behind the header, and wholly inside the file.
fn check_range(what: &str, offset: u64, length: u64, cluster: u64, file_size: u64) -> Result<()> {
    if offset < cluster || !offset.is_multiple_of(cluster) {
        return Err(Error::refused(format!("its {what} is at the impossible offset {offset}")));
    }
    match offset.checked_add(length) {
        Some(end) if end <= file_size => Ok(()),
        _ => Err(beyond(what, file_size)),
    }
}

fn check_refcounts(file: &File, header: &Header, file_size: u64) -> Result<()> {
    let cluster = 1_u64 << header.cluster_bits;
    let table = read_table(file, header.refcount_offset, header.refcount_clusters * cluster)?;
    for block in entries(&table).filter(|block| *block != 0) {
        check_range("refcount block", block, cluster, cluster, file_size)?;
    }
    Ok(())
}

/// Follows the first-level table to every cluster in use, so that a file that
/// was cut short is told from a whole one.
fn check_clusters(file: &File, header: &Header, file_size: u64) -> Result<()> {
    let cluster = 1_u64 << header.cluster_bits;
    let l1 = read_table(file, header.l1_offset, header.l1_entries * 8)?;
    let tables: Vec<u64> = entries(&l1).map(|entry| entry & OFFSET_MASK).filter(|offset| *offset != 0).collect();
    // Tables are never shared without snapshots; this bounds the reads below by the file's size.
    if tables.len() as u64 > file_size / cluster {
        return Err(Error::refused("its first-level table names more tables than the file has room for"));
    }
    let step = if header.extended_l2 { 2 } else { 1 };
    for offset in tables {
        check_range("second-level table", offset, cluster, cluster, file_size)?;
        for entry in entries(&read_table(file, offset, cluster)?).step_by(step) {
            check_entry(entry, header, file_size)?;
        }
    }
    Ok(())
}

fn check_entry(entry: u64, header: &Header, file_size: u64) -> Result<()> {
    let compressed = entry & L2_COMPRESSED != 0;
    // With extended L2 entries, the zero flag is in the bitmap instead.
    let reads_zero = entry & L2_ZERO != 0 && !header.extended_l2;
    let offset = if compressed { entry & ((1 << (62 - (header.cluster_bits - 8))) - 1) } else { entry & OFFSET_MASK };
    if offset == 0 || (reads_zero && !compressed) {
        return Ok(());
    }
    if !compressed && !offset.is_multiple_of(1 << header.cluster_bits) {
        return Err(Error::refused(format!("one of its clusters is at the impossible offset {offset}")));
    }
    // Only the start: writers need not fill the file up to the end of its last cluster.
    if offset >= file_size {
        return Err(beyond("data", file_size));
    }
    Ok(())
}

fn read_table(file: &File, offset: u64, length: u64) -> Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_| truncated())?;
    let table = read_at_most(file, offset, length)?;
    if table.len() == length { Ok(table) } else { Err(truncated()) }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> + '_ {
    table.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Bytes of the disk that one second-level table maps.
fn covered_by_l2(header: &Header) -> u64 {
    let entry_bits = if header.extended_l2 { 4 } else { 3 };
    1 << (2 * header.cluster_bits - entry_bits)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn truncated() -> Error {
    Error::refused("it ends inside its own header or tables")
        .hint("the download was cut short or the file is damaged: get it again")
}

fn beyond(what: &str, file_size: u64) -> Error {
    Error::refused(format!("its {what} would lie beyond the end of the file ({file_size} bytes)"))
        .hint("the download was cut short or the file is damaged: get it again")
}

fn encrypted() -> Error {
    Error::refused("it is encrypted").hint("virga has no key for it: use an image that is not encrypted")
}

fn data_file(name: &str) -> Error {
    let shown = if name.is_empty() { String::new() } else { format!(" {}", quoted(name)) };
    Error::refused(format!("it keeps its data in another file{shown}, which would be read on this machine"))
        .hint("if you trust it, write a copy that stands alone: qemu-img convert -O qcow2 IN OUT")
}
