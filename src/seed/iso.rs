//! Writes ISO 9660 images with Rock Ridge and Joliet names: one flat root
//! folder, byte for byte the same for the same files.
//!
//! ECMA-119 (ISO 9660), SUSP 1.10 and RRIP 1991A (IEEE P1281, P1282), and the
//! Joliet specification. Field positions below are ECMA-119's, minus one.

use crate::base::name::quoted;
use crate::base::{ByteSize, Error, Result};

/// The label by which cloud-init's NoCloud source finds its image.
pub const LABEL: &str = "cidata";

/// Most bytes of all files together.
pub const MAX_CONTENT: usize = 64 << 20;

const SECTOR: usize = 2048;
/// The image's length is a multiple of this: whole pages and read-ahead windows for the guest's kernel.
const ROUND: usize = 32 << 10;
/// Joliet's limit, below Rock Ridge's.
const MAX_NAME: usize = 64;
/// 1980-01-01 00:00:00 UTC (9.1.5): a real date for readers that insist, and always the same.
const DATE: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];

const PRIMARY: usize = 16;
const JOLIET: usize = 17;
const TERMINATOR: usize = 18;
/// Four path tables: primary and Joliet, each little- and big-endian.
const PATH_TABLES: usize = 19;
/// The rest of the root folder's Rock Ridge fields, too long for its record.
const CONTINUATION: usize = 23;
const FIRST_DIRECTORY: usize = 24;
/// A path table with the root alone.
const PATH_TABLE_SIZE: usize = 10;

/// An image labelled `cidata` that holds `files` (name, content) in its root.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) for a name that is not 1 to 64 of `A-Z a-z 0-9 . _ -`, is given
/// twice or is `.` or `..`, and for more than 64 MiB of content.
pub fn write_iso(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    check(files)?;
    let mut short = short_names(files);
    let mut long: Vec<(usize, Vec<u8>)> =
        files.iter().map(|(name, _)| name.encode_utf16().flat_map(u16::to_be_bytes).collect()).enumerate().collect();
    // 9.3: records are in the order of their identifiers, so each tree has its own order.
    short.sort_by(|a, b| a.1.cmp(&b.1));
    long.sort_by(|a, b| a.1.cmp(&b.1));

    // Records do not depend on where the files are in length, so a first pass with zeros gives the sizes.
    let nowhere = vec![0; files.len()];
    let primary_size = directory(0, 0, &rock_ridge(files, &short, &nowhere), true).len();
    let joliet_size = directory(0, 0, &joliet(files, &long, &nowhere), false).len();
    let joliet_at = FIRST_DIRECTORY + primary_size / SECTOR;
    let mut next = joliet_at + joliet_size / SECTOR;
    let mut places = Vec::with_capacity(files.len());
    for (_, content) in files {
        places.push(next);
        next += content.len().div_ceil(SECTOR);
    }

    let mut image = vec![0; (next * SECTOR).next_multiple_of(ROUND)];
    let sectors = image.len() / SECTOR;
    let mut put = |sector: usize, bytes: &[u8]| {
        image[sector * SECTOR..sector * SECTOR + bytes.len()].copy_from_slice(bytes);
    };
    put(PRIMARY, &volume_descriptor(false, sectors, PATH_TABLES, FIRST_DIRECTORY, primary_size));
    put(JOLIET, &volume_descriptor(true, sectors, PATH_TABLES + 2, joliet_at, joliet_size));
    put(TERMINATOR, b"\xffCD001\x01");
    for (table, directory) in [(PATH_TABLES, FIRST_DIRECTORY), (PATH_TABLES + 2, joliet_at)] {
        put(table, &path_table(le32(directory), le16(1)));
        put(table + 1, &path_table(be32(directory), be16(1)));
    }
    put(CONTINUATION, &extension_reference());
    put(FIRST_DIRECTORY, &directory(FIRST_DIRECTORY, primary_size, &rock_ridge(files, &short, &places), true));
    put(joliet_at, &directory(joliet_at, joliet_size, &joliet(files, &long, &places), false));
    for ((_, content), place) in files.iter().zip(&places) {
        put(*place, content);
    }
    Ok(image)
}

/// The files of an image that [`write_iso`] wrote, by its Joliet names; `None` for anything else.
#[must_use]
pub fn read_iso(image: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let number = |bytes: &[u8], at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    let descriptor = image.get(JOLIET * SECTOR..)?.get(..SECTOR)?;
    if !descriptor.starts_with(b"\x02CD001") {
        return None;
    }
    let content = |record: &[u8]| {
        let (at, size) = (number(record, 2)?.checked_mul(SECTOR)?, number(record, 10)?);
        image.get(at..at.checked_add(size)?)
    };
    // 8.5: the root's own record.
    let root = content(&descriptor[156..190])?;
    let mut files = Vec::new();
    // 6.8.1.1: what is left of a sector after its last record is zero.
    for sector in root.chunks(SECTOR) {
        let mut rest = sector;
        while let Some(&length @ 34..) = rest.first() {
            let record = rest.get(..usize::from(length))?;
            let name = record.get(33..33 + usize::from(record[32]))?;
            // Itself and its parent have names of one byte.
            if name.len() > 1 {
                let units: Vec<u16> = name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
                files.push((String::from_utf16(&units).ok()?, content(record)?.to_vec()));
            }
            rest = &rest[usize::from(length)..];
        }
    }
    Some(files)
}

fn check(files: &[(&str, &[u8])]) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let mut seen = std::collections::HashSet::new();
    for (name, _) in files {
        let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain) && !matches!(*name, "." | "..");
        if !fits {
            return Err(Error::usage(format!("{} cannot be a file name in a seed image", quoted(name)))
                .hint("names have 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'"));
        }
        if !seen.insert(*name) {
            return Err(Error::usage(format!("the seed image would hold two files named {}", quoted(name))));
        }
    }
    let total: usize = files.iter().map(|(_, content)| content.len()).sum();
    if total > MAX_CONTENT {
        let (total, limit) = (ByteSize(total as u64), ByteSize(MAX_CONTENT as u64));
        return Err(Error::usage(format!("a seed of {total} is above the limit of {limit}"))
            .hint("let the guest fetch large files itself"));
    }
    Ok(())
}

/// A unique 8.3 name for each file (7.5, level 1), for readers without Rock Ridge and Joliet.
fn short_names(files: &[(&str, &[u8])]) -> Vec<(usize, Vec<u8>)> {
    let mut taken = std::collections::HashSet::new();
    let mut shorten = |name: &str| {
        let clean = |text: &str, length: usize| -> String {
            text.chars()
                .take(length)
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect()
        };
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let (stem, extension) = (clean(stem, 8), clean(extension, 3));
        let mut short = format!("{stem}.{extension};1");
        let mut number = 0_usize;
        while !taken.insert(short.clone()) {
            number += 1;
            let digits = number.to_string();
            let kept: String = stem.chars().take(8_usize.saturating_sub(digits.len())).collect();
            short = format!("{kept}{digits}.{extension};1");
        }
        short.into_bytes()
    };
    files.iter().map(|(name, _)| shorten(name)).enumerate().collect()
}

fn rock_ridge(files: &[(&str, &[u8])], names: &[(usize, Vec<u8>)], places: &[usize]) -> Vec<Vec<u8>> {
    let entry = |(file, short): &(usize, Vec<u8>)| {
        let (name, content) = files[*file];
        // Only root reads the seed: it holds private keys.
        let mut fields = posix(0o100_400, 1);
        fields.extend([b'N', b'M', field_length(5 + name.len()), 1, 0]);
        fields.extend(name.as_bytes());
        record(places[*file], content.len(), 0, short, &fields)
    };
    names.iter().map(entry).collect()
}

fn joliet(files: &[(&str, &[u8])], names: &[(usize, Vec<u8>)], places: &[usize]) -> Vec<Vec<u8>> {
    names.iter().map(|(file, name)| record(places[*file], files[*file].1.len(), 0, name, &[])).collect()
}

/// The root folder at sector `at`: itself, its parent (also itself), its files.
fn directory(at: usize, size: usize, files: &[Vec<u8>], rock_ridge: bool) -> Vec<u8> {
    let (mut this, mut parent) = (Vec::new(), Vec::new());
    if rock_ridge {
        // SUSP 5.3 and 5.1: the sign that fields follow at all, and where the rest of them is.
        this.extend([b'S', b'P', 7, 1, 0xbe, 0xef, 0]);
        this.extend(posix(0o040_500, 2));
        this.extend([b'C', b'E', 28, 1]);
        this.extend([both32(CONTINUATION), both32(0), both32(extension_reference().len())].concat());
        parent = posix(0o040_500, 2);
    }
    let mut bytes = record(at, size, 2, &[0], &this);
    bytes.extend(record(at, size, 2, &[1], &parent));
    for file in files {
        // 6.8.1.1: a record does not cross a sector's end.
        if bytes.len() / SECTOR != (bytes.len() + file.len() - 1) / SECTOR {
            bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        }
        bytes.extend(file);
    }
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    bytes
}

/// A directory record (9.1) with its system use fields.
fn record(at: usize, size: usize, flags: u8, name: &[u8], system_use: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend([both32(at), both32(size)].concat());
    bytes.extend(DATE);
    bytes.extend([flags, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(field_length(name.len()));
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes.extend(system_use);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes[0] = field_length(bytes.len());
    bytes
}

/// RRIP 4.1.1: mode, links, owner root.
fn posix(mode: usize, links: usize) -> Vec<u8> {
    let mut bytes = vec![b'P', b'X', 36, 1];
    bytes.extend([both32(mode), both32(links), both32(0), both32(0)].concat());
    bytes
}

/// SUSP 5.5: says that the fields are Rock Ridge's; the texts are given by RRIP 4.3.
fn extension_reference() -> Vec<u8> {
    const ID: &[u8] = b"RRIP_1991A";
    const TEXT: &[u8] = b"THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS";
    const SOURCE: &[u8] = b"PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN \
        PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION.";
    let lengths = [ID, TEXT, SOURCE].map(|part| field_length(part.len()));
    let head = [b'E', b'R', field_length(8 + ID.len() + TEXT.len() + SOURCE.len()), 1];
    [&head[..], &lengths, &[1], ID, TEXT, SOURCE].concat()
}

/// 8.4, and 8.5 with Joliet's escape sequence for UCS-2 level 3.
fn volume_descriptor(joliet: bool, sectors: usize, path_table: usize, root: usize, root_size: usize) -> Vec<u8> {
    let text = |ascii: &str, length: usize| -> Vec<u8> {
        if joliet {
            let units = ascii.encode_utf16().chain(std::iter::repeat(u16::from(b' ')));
            let mut bytes: Vec<u8> = units.take(length / 2).flat_map(u16::to_be_bytes).collect();
            bytes.resize(length, 0);
            bytes
        } else {
            ascii.bytes().chain(std::iter::repeat(b' ')).take(length).collect()
        }
    };
    let mut bytes = vec![if joliet { 2 } else { 1 }];
    bytes.extend(b"CD001\x01\0");
    bytes.extend(text("", 32));
    bytes.extend(text(LABEL, 32));
    bytes.extend([0; 8]);
    bytes.extend(both32(sectors));
    let mut escape = [0; 32];
    if joliet {
        escape[..3].copy_from_slice(b"%/E");
    }
    bytes.extend(escape);
    bytes.extend([both16(1), both16(1), both16(SECTOR)].concat());
    bytes.extend(both32(PATH_TABLE_SIZE));
    bytes.extend([le32(path_table), [0; 4], be32(path_table + 1), [0; 4]].concat());
    bytes.extend(record(root, root_size, 2, &[0], &[]));
    for length in [128, 128, 128, 128, 37, 37, 37] {
        bytes.extend(text("", length));
    }
    // 8.4.26.1: sixteen digits 0 and a zero byte mean "not stated".
    for _ in 0..4 {
        bytes.extend(b"0000000000000000\0");
    }
    bytes.push(1);
    bytes.resize(SECTOR, 0);
    bytes
}

/// 9.4: the root is its own parent.
fn path_table(location: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0][..], &location, &parent, &[0, 0]].concat()
}

/// For lengths that the checks above keep below 256.
fn field_length(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

/// For numbers that the content limit keeps below 2³².
fn le32(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

fn be32(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()
}

fn le16(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes()
}

fn be16(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes()
}

/// 7.3.3: little-endian, then big-endian.
fn both32(value: usize) -> Vec<u8> {
    [le32(value), be32(value)].concat()
}

fn both16(value: usize) -> Vec<u8> {
    [le16(value), be16(value)].concat()
}

#[cfg(test)]
mod tests;
