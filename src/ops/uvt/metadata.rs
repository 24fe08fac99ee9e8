//! uvtool's metadata files: one an image, named like its volume, with the
//! flattened keys of the stream as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE as BASE64;
use serde::Serialize as _;
use serde_json::Value;

use crate::base::lock::{FileLock, Mode};
use crate::base::{Context as _, Error, Result, Trust, fs};
use crate::ops::Env;

/// What the names of images' volumes begin with.
pub(super) const PREFIX: &str = "x-uvt-b64-";

/// Most bytes of a metadata file: a real one has two thousand.
const LIMIT: u64 = 1 << 20;

/// How long to wait for another command of ours that is at the images.
const PATIENCE: Duration = Duration::from_secs(600);

/// The key that says of an image that nobody vouched for it.
pub(super) const TRUST: &str = "trust";

/// The name of an image's volume, and of its metadata file.
pub(super) fn volume_name(product: &str, version: &str) -> String {
    format!("{PREFIX}{}", BASE64.encode(format!("{product} {version}")))
}

/// The product and version that a volume's name says; `None` for a volume that is no image's.
pub(super) fn decoded(volume: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64.decode(volume.strip_prefix(PREFIX)?).ok()?).ok()?;
    let (product, version) = text.rsplit_once(' ')?;
    Some((product.to_owned(), version.to_owned()))
}

/// An image that has a metadata file.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// The name of its volume.
    pub volume: String,
    /// The stream's flattened keys.
    pub keys: BTreeMap<String, String>,
}

impl Image {
    /// Who vouched for it. The original knows no such thing: its own images must be signed unless it is told otherwise.
    pub fn trust(&self) -> Trust {
        if self.key(TRUST) == Trust::Unsigned.word() { Trust::Unsigned } else { Trust::Signed }
    }

    pub fn key(&self, key: &str) -> &str {
        self.keys.get(key).map(String::as_str).unwrap_or_default()
    }
}

/// The folder of metadata files.
pub(super) struct Store {
    home: PathBuf,
}

impl Store {
    pub fn of(env: Env<'_>) -> Self {
        Store { home: env.settings.uvtool.home.clone() }
    }

    pub fn folder(&self) -> PathBuf {
        self.home.join("metadata")
    }

    /// Makes the folder; `false` when it was there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare(&self) -> Result<bool> {
        let folder = self.folder();
        if folder.is_dir() {
            return Ok(false);
        }
        fs::create_dir(&folder)?;
        Ok(true)
    }

    /// The right to change images, or with [`Mode::Shared`] to rely on them. `None` for a user who may not write
    /// there: the original knows no lock at all, so this is no reason to stop.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when another command does not end; [`crate::base::Kind::Interrupted`] on Ctrl-C.
    pub fn lock(&self, env: Env<'_>, mode: Mode) -> Result<Option<FileLock>> {
        let file = self.home.join(".virga-lock");
        if fs::open_or_create(&file).is_err() {
            tracing::debug!(file = %file.display(), "there is no lock to be had");
            return Ok(None);
        }
        if let Some(lock) = FileLock::try_acquire(&file, mode)? {
            return Ok(Some(lock));
        }
        env.reporter.note("another command is at the images of uvtool's pool: waiting for it");
        FileLock::acquire(&file, mode, "uvtool's pool", PATIENCE).map(Some)
    }

    /// The names of all metadata files of images; other files are nobody's business here.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = fs::list_dir(&self.folder())?;
        names.retain(|name| name.starts_with(PREFIX));
        Ok(names)
    }

    /// All images by the names of their files. A file that cannot be read is passed over with a warning.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn images(&self, env: Env<'_>) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for volume in self.names()? {
            match self.read(&volume) {
                Ok(keys) => images.push(Image { volume, keys }),
                Err(error) => {
                    let causes: String = error.causes().iter().map(|cause| format!(": {cause}")).collect();
                    env.reporter.warn(&format!("{error}{causes}"));
                }
            }
        }
        Ok(images)
    }

    fn read(&self, volume: &str) -> Result<BTreeMap<String, String>> {
        let path = self.folder().join(volume);
        let bytes = fs::read(&path, LIMIT)?;
        let values: BTreeMap<String, Value> =
            serde_json::from_slice(&bytes).context(|| format!("reading '{}'", path.display()))?;
        let text = |value: Value| match value {
            Value::String(text) => Some(text),
            Value::Bool(true) => Some("True".into()),
            Value::Bool(false) => Some("False".into()),
            Value::Number(number) => Some(number.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        Ok(values.into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect())
    }

    /// Writes an image's file as Python's `json` does with an indent of four: the original reads it with that.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, image: &Image) -> Result<()> {
        fs::write_atomic(&self.folder().join(&image.volume), document(&image.keys)?.as_bytes(), 0o644)
    }

    /// Removes an image's file; being absent is success.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, volume: &str) -> Result<()> {
        fs::remove_file(&self.folder().join(volume))
    }
}

fn document(keys: &BTreeMap<String, String>) -> Result<String> {
    use std::fmt::Write as _;
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    keys.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))
        .context(|| "encoding JSON".into())?;
    let text = String::from_utf8(bytes).map_err(|error| Error::failed("encoding JSON").because(error))?;
    // All in ASCII, for readers under any locale: what is not is in a string, where it can be escaped.
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    Ok(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_original() {
        let name = "x-uvt-b64-Y29tLnVidW50dS5jbG91ZDpzZXJ2ZXI6MjQuMDQ6YW1kNjQgMjAyNjExMDE=";
        assert_eq!(volume_name("com.ubuntu.cloud:server:24.04:amd64", "20261101"), name);
        assert_eq!(decoded(name).unwrap(), ("com.ubuntu.cloud:server:24.04:amd64".into(), "20261101".into()));
        for other in ["web.qcow", "x-uvt-b64-", "x-uvt-b64-!", "x-uvt-b64-YWJj"] {
            assert!(decoded(other).is_none(), "{other}");
        }
    }

    #[test]
    fn files_are_such_as_python_writes() {
        let keys = [("release", "noble"), ("label", "a\"b é 😀")];
        let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let text = document(&keys).unwrap();
        assert_eq!(text, "{\n    \"label\": \"a\\\"b \\u00e9 \\ud83d\\ude00\",\n    \"release\": \"noble\"\n}");
        let folder = tempfile::tempdir().unwrap();
        let store = Store { home: folder.path().to_owned() };
        assert!(store.prepare().unwrap() && !store.prepare().unwrap());
        store.write(&Image { volume: "x-uvt-b64-a".into(), keys: keys.clone() }).unwrap();
        assert_eq!(store.read("x-uvt-b64-a").unwrap(), keys);
        assert_eq!(store.names().unwrap(), ["x-uvt-b64-a"]);
        store.remove("x-uvt-b64-a").unwrap();
        store.remove("x-uvt-b64-a").unwrap();
    }
}
