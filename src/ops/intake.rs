//! One item's way into the pool: what is there already is found, the rest
//! fetched, looked at, and given its final name.

use std::time::Duration;

use jiff::Timestamp;

use super::catalog::{self, Offer};
use super::sync::Action;
use crate::base::name::quoted;
use crate::base::plan::DiskFormat;
use crate::base::poll::{Deadline, Silence};
use crate::base::progress::Reporter;
use crate::base::{Address, Digest, DigestAlgorithm, Error, ImageId, Result, interrupt};
use crate::disk;
use crate::fetch::{Expected, Fetcher};
use crate::pool::{Chain, DiskFacts, Generation, ImageRecord, Partial, Pool};
use crate::stream::incus;

/// How often to look whether another sync is through with a file.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Another sync that gets nothing for so long is not waited for: its own patience with a silent server, all retries
/// taken together, is less than four minutes, and looking into what it got takes seconds.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// Two syncs of one small file need not be told of.
const TELL: Duration = Duration::from_secs(2);

/// An item to be had: it has a path, a size and a digest.
pub(super) struct Wanted {
    pub id: ImageId,
    pub size: u64,
    source: String,
    keys: std::collections::BTreeMap<String, String>,
    digest: Digest,
    sha256: Option<Digest>,
    places: Vec<Address>,
    chain: Chain,
}

impl Wanted {
    /// # Errors
    /// [`crate::base::Kind::Refused`] for an item without a file.
    pub(super) fn new(source: &str, offer: Offer, places: Vec<Address>) -> Result<Self> {
        let Offer { item, chain } = offer;
        let (Some(size), Some(digest)) = (item.size, item.digest.clone()) else {
            return Err(Error::refused(format!("the item {} has no file", quoted(item.name()))));
        };
        let id = ImageId::of(source, item.content_id(), item.product(), item.version(), item.name());
        Ok(Wanted { id, size, source: source.to_owned(), keys: item.keys, digest, sha256: item.sha256, places, chain })
    }

    pub(super) fn key(&self, key: &str) -> &str {
        self.keys.get(key).map(String::as_str).unwrap_or_default()
    }

    /// What it is called in messages.
    pub(super) fn label(&self) -> String {
        format!("{} {} {}", self.key("product_name"), self.key("version_name"), self.key("item_name"))
    }

    fn record(&self, blob: &Digest, disk: Option<DiskFacts>) -> ImageRecord {
        ImageRecord {
            id: self.id.clone(),
            source: self.source.clone(),
            keys: self.keys.clone(),
            announced: self.digest.clone(),
            blob: blob.clone(),
            size: self.size,
            disk,
            synced_at: Timestamp::now(),
            retired_at: None,
            trust: Some(self.chain.trust()),
            chain: self.chain.clone(),
        }
    }

    /// Whether it is a disk image, which is looked into before it gets a final name.
    fn is_disk(&self) -> bool {
        let ftype = self.key("ftype");
        !self.key("disk_format").is_empty()
            || [".img", ".qcow2", ".raw"].iter().any(|end| ftype.ends_with(end))
            || ["qcow2", "raw"].contains(&ftype)
    }

    /// What the stream's file type says of the format; the bytes must agree.
    fn claimed(&self) -> Option<DiskFormat> {
        match self.key("ftype") {
            "qcow2" | "disk-kvm.img" => Some(DiskFormat::Qcow2),
            "raw" => Some(DiskFormat::Raw),
            _ => None,
        }
    }
}

/// An item that is in the pool now.
pub(super) struct Taken {
    pub action: Action,
    pub record: ImageRecord,
}

/// Takes items into the pool. Writes no record.
pub(super) struct Intake<'a> {
    pub pool: &'a Pool,
    pub reporter: &'a dyn Reporter,
    pub fetcher: &'a Fetcher,
    /// The source's state when the sync began.
    pub known: &'a Generation,
}

impl Intake<'_> {
    /// Whether an item's bytes are in the pool. Looks only.
    pub(super) fn is_there(&self, image: &Wanted) -> bool {
        self.recorded(image).is_some() || image.sha256.as_ref().is_some_and(|sha256| self.pool.has_blob(sha256))
    }

    /// The record of an image whose announced content is in the pool.
    fn recorded(&self, image: &Wanted) -> Option<&ImageRecord> {
        let record = self.known.images.get(&image.id)?;
        (record.announced == image.digest && self.pool.has_blob(&record.blob)).then_some(record)
    }

    /// Takes one item in: waits while another sync fetches the same bytes.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when it is not what was announced, or an image that QEMU must not see.
    pub(super) async fn take(&self, image: &Wanted) -> Result<Taken> {
        if let Some(record) = self.recorded(image) {
            // The stream may say more or other things of the same bytes by now.
            return Ok(Taken { action: Action::Present, record: image.record(&record.blob, record.disk) });
        }
        let partial = self.partial(image).await?;
        if let Some(blob) = self.same_content(image)? {
            let disk = self.facts(image, &blob).await?;
            return Ok(Taken { action: Action::Present, record: image.record(&blob, disk) });
        }
        let transfer = self.reporter.transfer(&image.label(), Some(image.size));
        let expected = Expected { size: image.size, digest: image.digest.clone() };
        let places = image.places.iter().map(catalog::parse).collect::<Result<Vec<_>>>()?;
        let fetched = self.fetcher.item(&places, &expected, &partial.path, transfer.as_ref()).await?;
        let disk = self.adopt(image, partial, &fetched.sha256).await?;
        Ok(Taken { action: Action::Fetched, record: image.record(&fetched.sha256, disk) })
    }

    /// The right to fetch a file: waits while another sync, or another image of this one, fetches it. How long that
    /// takes is up to the network; one that fetches nothing is not waited for.
    async fn partial(&self, image: &Wanted) -> Result<Partial> {
        let mut silence = Silence::new(SILENCE);
        let mut told = Some(Deadline::after(TELL));
        loop {
            if let Some(partial) = self.pool.try_partial(&image.digest)? {
                return Ok(partial);
            }
            interrupt::check()?;
            let (who, length) = self.pool.fetcher(&image.digest);
            let what = || format!("'{}' is being fetched already ({who})", image.label());
            if silence.lasts(|| length) {
                let limit = humantime::format_duration(SILENCE);
                return Err(Error::timed_out(format!("{}, which has got nothing for {limit}", what()))
                    .hint("end that command and try again: what it has got is kept"));
            }
            if told.is_some_and(|since| since.passed()) {
                told = None;
                self.reporter.note(&format!("{}: waiting for that", what()));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A blob with the announced content: another image's, or one that a
    /// killed sync left behind before it wrote its records.
    fn same_content(&self, image: &Wanted) -> Result<Option<Digest>> {
        if let Some(sha256) = image.sha256.as_ref().filter(|sha256| self.pool.has_blob(sha256)) {
            let whole = crate::base::fs::open(&self.pool.blob_path(sha256))?.metadata();
            return Ok(whole.is_ok_and(|meta| meta.len() == image.size).then(|| sha256.clone()));
        }
        if image.digest.algorithm() == DigestAlgorithm::Sha256 {
            return Ok(None);
        }
        let same = |record: &ImageRecord| record.announced == image.digest && self.pool.has_blob(&record.blob);
        match self.pool.records()?.into_iter().find(same) {
            Some(record) => Ok(Some(record.blob)),
            None => self.pool.find_sha512(image.size, &image.digest),
        }
    }

    async fn facts(&self, image: &Wanted, blob: &Digest) -> Result<Option<DiskFacts>> {
        let (path, claimed) = (self.pool.blob_path(blob), image.claimed());
        if !image.is_disk() {
            return Ok(None);
        }
        blocking(move || disk::inspect(&path, claimed)).await.map(|facts| Some(of(&facts)))
    }

    /// Looks at an item before it has a final name: an image that QEMU must
    /// not see never gets into the pool. Off the network's threads, for it waits for the disk.
    async fn adopt(&self, image: &Wanted, partial: Partial, sha256: &Digest) -> Result<Option<DiskFacts>> {
        let (pool, sha256) = (self.pool.clone(), sha256.clone());
        let (is_disk, claimed) = (image.is_disk(), image.claimed());
        let shown = image.label();
        blocking(move || {
            let inspected = if is_disk { disk::inspect(&partial.path, claimed).map(Some) } else { Ok(None) };
            let facts = inspected.or_else(|error| {
                // Whole, verified and hostile: nothing of it is worth keeping.
                pool.discard(&partial)?;
                Err(Error::new(error.kind(), format!("the image {} is refused", quoted(&shown))).because(error))
            })?;
            pool.adopt(&partial, &sha256)?;
            Ok(facts.map(|facts| of(&facts)))
        })
        .await
    }

    /// Checks the fingerprints over metadata and root together, as LXD and
    /// Incus announce them, where both were taken and one of them is new.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when one is not what was announced.
    pub(super) fn check_pairs(&self, taken: &[Taken]) -> Result<()> {
        let version = |record: &ImageRecord| [record.key("product_name").to_owned(), record.key("version_name").into()];
        for metadata in taken {
            for root in taken.iter().filter(|root| version(&root.record) == version(&metadata.record)) {
                let ftype = root.record.key("ftype");
                let new = [metadata, root].iter().any(|taken| taken.action == Action::Fetched);
                let Some(announced) = incus::fingerprint(&metadata.record.keys, ftype)?.filter(|_| new) else {
                    continue;
                };
                let found = self.pool.hash_joined(&[&metadata.record.blob, &root.record.blob])?;
                if found != announced {
                    let names = format!("{} and {}", quoted(metadata.record.key("ftype")), quoted(ftype));
                    return Err(Error::refused(format!(
                        "{names} of {} do not belong together: announced {announced}, found {found}",
                        quoted(metadata.record.key("product_name"))
                    )));
                }
            }
        }
        Ok(())
    }
}

fn of(facts: &disk::ImageFacts) -> DiskFacts {
    DiskFacts { format: facts.format, virtual_size: facts.virtual_size }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::failed("a worker thread failed").because(error)),
    }
}
