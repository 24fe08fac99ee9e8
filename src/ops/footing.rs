//! What a guest's disks are and stand on, looked at before it is started: QEMU says of a file that is gone only that it
//! cannot open it.

use std::path::Path;

use super::Env;
use crate::base::cmd::shell_word;
use crate::base::name::quoted;
use crate::base::{Error, Result};
use crate::driver::Storage;
use crate::guest::Record;
use crate::pool::{ImageRecord, PUBLISHED, Pool};
use crate::stream::source::Sources;

/// Where an index usually is, from its stream's root.
const USUAL: [&str; 2] = ["streams/v1/index.sjson", "streams/v1/index.json"];

/// The keys by which a stream's image is had again, as it was.
const SAME: [&str; 4] = ["product_name", "version_name", "arch", "ftype"];

/// Fails when a disk of the guest's is gone, or what one stands on. Nothing is looked at where the backend has the disks.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] naming what is gone, and how it is had again.
pub(super) fn check(env: Env<'_>, record: &Record) -> Result<()> {
    if env.driver(record.driver).capabilities().storage != Storage::OurPath {
        return Ok(());
    }
    let Some(gone) = gone(record) else { return Ok(()) };
    let layout = &env.settings.layout;
    match &record.origin.blob {
        Some(blob) if gone == layout.blob(blob) => {
            let image = record.origin.image.as_ref().map(|id| Pool::open(layout)?.record(id)).transpose()?.flatten();
            let from = image.as_ref().map(|image| address(env, image));
            Err(no_image(record, image.as_ref().zip(from.as_deref()), gone))
        }
        _ => Err(no_file(record, gone)),
    }
}

/// The first file that is not there. Of one that nobody may look at its backend says more.
fn gone(record: &Record) -> Option<&Path> {
    let disks = record.plan.disks.iter();
    let mut files =
        disks.flat_map(|disk| std::iter::once(&disk.path).chain(disk.chain.iter().map(|layer| &layer.path)));
    files.find(|path| matches!(path.try_exists(), Ok(false))).map(std::path::PathBuf::as_path)
}

/// How `--source` is told where an image came from: a source that was given as a URL has a name for us alone.
fn address(env: Env<'_>, image: &ImageRecord) -> String {
    let known = Sources::load(&env.settings.stream_dirs).is_ok_and(|sources| sources.get(&image.source).is_ok());
    if known {
        return image.source.clone();
    }
    let index = image.chain.index.url.as_str();
    let root = USUAL.iter().find_map(|path| index.strip_suffix(path));
    root.unwrap_or(index).to_owned()
}

fn no_image(record: &Record, image: Option<(&ImageRecord, &str)>, path: &Path) -> Error {
    let (name, keys) = (record.name(), &record.origin.keys);
    let known = ["os", "release", "version_name", "arch", "file"].map(|key| keys.get(key).map_or("", String::as_str));
    let known: Vec<&str> = known.into_iter().filter(|value| !value.is_empty()).collect();
    let title = match (&record.origin.image, known.is_empty()) {
        (Some(id), true) => format!("{id} "),
        (Some(id), false) => format!("{id} ({}) ", quoted(&known.join(" ")).trim_matches('\'')),
        (None, true) => String::new(),
        (None, false) => format!("{} ", quoted(&known.join(" "))),
    };
    let error =
        Error::not_found(format!("the image {title}that guest '{name}' stands on is missing: '{}'", path.display()));
    let gone_for_good = format!("without it the guest has no disk: virga destroy {name}");
    match (image, keys.get("file")) {
        (Some((image, from)), _) if image.source != PUBLISHED => {
            error.hint(format!("fetch it again: {}", sync(image, from)))
        }
        (None, Some(file)) => error.hint(format!(
            "a guest that is made of the same file brings it back: virga create NAME --image {}",
            word(file)
        )),
        _ => error.hint(gone_for_good),
    }
}

/// The command that fetches this very image.
fn sync(image: &ImageRecord, from: &str) -> String {
    let unsigned = if image.trust().must_be_asked_for() { " --unsigned" } else { "" };
    let mut command = format!("virga sync --source {}{unsigned}", word(from));
    for key in SAME.into_iter().filter(|key| !image.key(key).is_empty()) {
        command += &format!(" {}", word(&format!("{key}={}", image.key(key))));
    }
    command
}

/// A word for a shell, in quotes where it needs them.
fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_./:=@%+,-".contains(&b);
    if text.bytes().all(plain) { text.to_owned() } else { shell_word(text) }
}

fn no_file(record: &Record, path: &Path) -> Error {
    let (name, shown) = (record.name(), path.display());
    let disk = record.plan.disks.iter().find(|disk| disk.path == path);
    let error = Error::not_found(match disk {
        Some(_) => format!("a disk of guest '{name}' is missing: '{shown}'"),
        None => format!("what guest '{name}' stands on is missing: '{shown}'"),
    });
    match disk {
        Some(disk) if disk.kept => {
            let title = word(&disk.title());
            error.hint(format!("put it back, or do without it: virga detach {name} {title}"))
        }
        _ => error.hint(format!("put it back from a copy, or remove the guest: virga destroy {name}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::plan::{Disk, DiskFormat, Layer};
    use crate::base::{ByteSize, Kind, Layout, Trust, fs};
    use crate::guest::tests::record as guest;
    use crate::pool::{Chain, Link};

    fn keys() -> BTreeMap<String, String> {
        let keys = [
            ("os", "debian"),
            ("release", "bookworm"),
            ("product_name", "org.debian:12:amd64"),
            ("version_name", "2026 1"),
        ];
        keys.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn what_is_gone_is_named_with_how_it_is_had_again() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("home"), folder.path().join("run")).unwrap();
        let mut record = guest(&layout, "web");
        record.origin.keys = keys();
        record.origin.image = Some("0123456789ab".parse().unwrap());
        let blob = record.origin.blob.clone().unwrap();
        let (own, base) = (folder.path().join("own"), layout.blob(&blob));
        let chain = vec![Layer { path: base.clone(), format: DiskFormat::Raw }];
        record.plan.disks = vec![Disk::own(own.clone(), ByteSize::parse("1G", 1).unwrap(), chain)];

        assert_eq!(gone(&record), Some(own.as_path()));
        let error = no_file(&record, &own);
        assert_eq!((error.kind(), error.hints()[0].contains("virga destroy web")), (Kind::NotFound, true));
        fs::write_new(&own, b"", 0o600).unwrap();
        assert_eq!(gone(&record), Some(base.as_path()));

        let link = || Link { url: "http://h/".into(), sha256: String::new(), signature: None };
        let image = ImageRecord {
            id: "0123456789ab".parse().unwrap(),
            source: "lab".into(),
            keys: keys(),
            announced: blob.clone(),
            blob,
            size: 1,
            disk: None,
            synced_at: jiff::Timestamp::UNIX_EPOCH,
            retired_at: None,
            chain: Chain { index: link(), products: link(), path: "x".into() },
            trust: Some(Trust::Signed),
        };
        let error = no_image(&record, Some((&image, "lab")), &base);
        assert!(error.to_string().starts_with("the image 0123456789ab (debian bookworm 2026 1) that guest"), "{error}");
        let hint = "fetch it again: virga sync --source lab product_name=org.debian:12:amd64 'version_name=2026 1'";
        assert_eq!(error.hints(), [hint]);
        record.origin.image = None;
        record.origin.keys = BTreeMap::from([("file".into(), "/x.img".into())]);
        assert!(no_image(&record, None, &base).hints()[0].ends_with("virga create NAME --image /x.img"));
    }
}
