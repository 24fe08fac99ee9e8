//! The extended attributes that a root file system keeps.

use super::unpack::Owners;

/// The capabilities of a program (capabilities(7)).
const CAPABILITY: &str = "security.capability";
/// Sizes of that attribute: of its second version, and of the third, which ends with the namespace's root.
const VERSION_2: (u32, usize) = (0x0200_0000, 20);
const VERSION_3: (u32, usize) = (0x0300_0000, 24);
const VERSION_MASK: u32 = 0xff00_0000;

/// Which of an entry's attributes are set, and to what: capabilities, and what
/// users note. All others would speak to the host: labels of its security
/// modules, and the marks by which overlays hide and redirect.
pub(super) fn kept(xattrs: Vec<(String, Vec<u8>)>, owners: Owners) -> Vec<(String, Vec<u8>)> {
    let keep = |(name, value): (String, Vec<u8>)| match name.as_str() {
        CAPABILITY => Some((capability(&value, owners)?, name)).map(|(value, name)| (name, value)),
        _ if name.starts_with("user.") && !name.starts_with("user.overlay.") => Some((name, value)),
        _ => None,
    };
    xattrs.into_iter().filter_map(keep).collect()
}

/// In a container whose root is not the host's, a capability counts only when
/// it names that root (version 3); elsewhere it stays as it is.
fn capability(value: &[u8], owners: Owners) -> Option<Vec<u8>> {
    let word = |at: usize| value.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let magic = word(0)?;
    let inner = match (magic & VERSION_MASK, value.len()) {
        VERSION_2 => 0,
        VERSION_3 => word(20)?,
        _ => return None,
    };
    match owners {
        Owners::Caller => None,
        Owners::Kept => Some(value.to_owned()),
        Owners::Shifted { .. } => {
            let root = owners.of(inner)?;
            let mut moved = ((magic & !VERSION_MASK) | VERSION_3.0).to_le_bytes().to_vec();
            moved.extend_from_slice(&value[4..20]);
            moved.extend_from_slice(&root.to_le_bytes());
            Some(moved)
        }
    }
}
