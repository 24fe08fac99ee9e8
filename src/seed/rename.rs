//! A seed of ours once more, for a guest that has another name now.

use serde_json::{Value, json};

use super::{iso, yaml};
use crate::base::{Error, GuestName, Result};

/// The image of a seed with the guest's new name as its host name. The instance stays the same, so that nothing of the
/// first boot is done again. `None` when the host name was the user's own choice, which stands.
///
/// # Errors
/// When `image` is not a seed of ours.
pub fn renamed(image: &[u8], from: &GuestName, to: &GuestName) -> Result<Option<Vec<u8>>> {
    let mut files = iso::read_iso(image).ok_or_else(|| Error::failed("the guest's seed cannot be read"))?;
    let meta_data = files.iter_mut().find(|(name, _)| name == "meta-data");
    let Some((_, bytes)) = meta_data else { return Err(Error::failed("the guest's seed has no meta-data")) };
    let Some(changed) = renamed_in(bytes, from, to)? else { return Ok(None) };
    *bytes = changed;
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    iso::write_iso(&files).map(Some)
}

/// As [`renamed`], of the seed's meta-data alone.
///
/// # Errors
/// When it is not ours.
pub fn renamed_in(meta_data: &[u8], from: &GuestName, to: &GuestName) -> Result<Option<Vec<u8>>> {
    let Value::Object(mut document) = yaml::parse(&String::from_utf8_lossy(meta_data), "the seed's meta-data")? else {
        return Err(Error::failed("the meta-data of the guest's seed makes no sense"));
    };
    if document.get("local-hostname") != Some(&json!(from.as_str())) || document.contains_key("hostname") {
        return Ok(None);
    }
    document.insert("local-hostname".into(), json!(to.as_str()));
    yaml::write(&document).map(|text| Some(text.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_alone_changes_and_a_users_own_stands() {
        let name = |text: &str| text.parse::<GuestName>().unwrap();
        let big = vec![b'x'; 5000];
        let seed = |meta: &str| iso::write_iso(&[("meta-data", meta.as_bytes()), ("user-data", &big)]).unwrap();
        let image = seed("instance-id: abc\nlocal-hostname: one\npublic-keys:\n- ssh-ed25519 AAAA\n");
        let after = renamed(&image, &name("one"), &name("two")).unwrap().unwrap();
        let files = iso::read_iso(&after).unwrap();
        let meta = yaml::parse(std::str::from_utf8(&files[0].1).unwrap(), "it").unwrap();
        assert_eq!((&meta["instance-id"], &meta["local-hostname"]), (&json!("abc"), &json!("two")));
        assert_eq!(meta["public-keys"], json!(["ssh-ed25519 AAAA"]));
        assert_eq!(files[1], ("user-data".to_owned(), big.clone()));
        for own in ["instance-id: a\nlocal-hostname: mine\n", "instance-id: a\nhostname: mine\nlocal-hostname: one\n"] {
            assert_eq!(renamed(&seed(own), &name("one"), &name("two")).unwrap(), None, "{own}");
        }
        for bad in [&b"short"[..], &[0; 100_000]] {
            renamed(bad, &name("one"), &name("two")).unwrap_err();
        }
    }
}
