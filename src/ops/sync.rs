//! Fetching images: index → products → items, every byte verified before it
//! has a final name, and the pool's records brought up to what the source
//! offers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Serialize;

use super::{Env, images};
use crate::base::plan::DiskFormat;
use crate::base::{Context as _, Digest, DigestAlgorithm, Error, ImageId, Kind, RelPath, Result, interrupt};
use crate::disk;
use crate::fetch::{Expected, FetchSettings, Fetcher, Metadata, Validators};
use crate::pool::{ImageRecord, Partial, Pool};
use crate::stream::filter::Filters;
use crate::stream::index::{IndexEntry, Trail, parse_index};
use crate::stream::key::Keyring;
use crate::stream::product::{Item, parse_products};
use crate::stream::signed::{self, Signer};
use crate::stream::source::{Source, Sources};

/// Most bytes of one metadata file. Ubuntu's largest has 3 MB.
const METADATA_LIMIT: u64 = 256 << 20;

/// How many items are fetched side by side.
const PARALLEL: usize = 4;

/// How often to look whether another sync is through with a file.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What to fetch and from where.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    /// A source's name or a URL; `None`: as the settings say.
    pub source: Option<String>,
    /// A file with the keys to trust, in place of the source's own.
    pub keyring: Option<PathBuf>,
    /// Take metadata that nobody signed.
    pub unsigned: bool,
    /// Take metadata that is older than what was verified last.
    pub allow_older: bool,
    /// How many versions of each product.
    pub max: usize,
    /// Keep the records of older versions.
    pub keep: bool,
    /// Only look.
    pub dry_run: bool,
    /// Which images.
    pub filters: Vec<String>,
}

/// What was done about one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Its bytes came over the network.
    Fetched,
    /// Its bytes were in the pool.
    Present,
    /// They would be fetched.
    WouldFetch,
}

/// One image that the source offers and the filters chose.
#[derive(Clone, Debug, Serialize)]
pub struct SyncedImage {
    /// Its id in the pool.
    pub id: ImageId,
    /// What was done.
    pub action: Action,
    /// The product's name.
    pub product: String,
    /// The version's name.
    pub version: String,
    /// Bytes of its file.
    pub size: u64,
}

/// What a sync did.
#[derive(Clone, Debug, Serialize)]
pub struct SyncReport {
    /// The source's name.
    pub source: String,
    /// The images that the filters chose.
    pub images: Vec<SyncedImage>,
    /// Records of older versions that were removed.
    pub retired: Vec<ImageId>,
}

/// All sources that can be named.
///
/// # Errors
/// [`Kind::Usage`] for a source file that is wrong.
pub fn sources(env: Env<'_>) -> Result<Vec<Source>> {
    Ok(Sources::load(&env.settings.stream_dirs)?.iter().cloned().collect())
}

/// Fetches what a source offers and the filters choose. Repeatable: what is
/// in the pool is not fetched again, what an interrupted sync began is resumed.
///
/// # Errors
/// [`Kind::Refused`] when anything cannot be verified, [`Kind::NotFound`] when
/// nothing matches, [`Kind::Failed`] when the source cannot be reached.
pub fn sync(env: Env<'_>, request: &SyncRequest) -> Result<SyncReport> {
    let source = source(env, request)?;
    let filters = images::with_default_arch(&request.filters)?;
    let trust = Trust::of(env, &source)?;
    let pool = env.pool()?;
    let _lock = pool.lock_shared()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "starting the downloads".into())?;
    let run = Run {
        env,
        pool: &pool,
        fetcher: Fetcher::new(&FetchSettings::default())?,
        source: &source,
        trust,
        allow_older: request.allow_older,
        seen: Mutex::default(),
    };
    let done = runtime.block_on(run.all(request, &filters));
    // Nothing may hold a command back that was interrupted.
    runtime.shutdown_background();
    done
}

fn source(env: Env<'_>, request: &SyncRequest) -> Result<Source> {
    let name = request.source.as_deref().unwrap_or(&env.settings.defaults.source);
    let mut source = if name.contains("://") {
        Source::from_url(name, request.keyring.as_deref())?
    } else {
        Sources::load(&env.settings.stream_dirs)?.get(name)?.clone()
    };
    if let Some(keyring) = &request.keyring {
        let keyring = std::path::absolute(keyring).context(|| "finding the keyring".into())?;
        (source.keyrings, source.fingerprints) = (vec![keyring], Vec::new());
    }
    if request.unsigned {
        source.signed = false;
    }
    Ok(source)
}

/// The keys that a source's metadata must be signed by.
///
/// # Errors
/// [`Kind::Refused`] when there is no keyring, or none of the pinned keys is in it.
pub fn keyring_of(source: &Source) -> Result<Keyring> {
    let Some(path) = source.keyrings.iter().find(|path| path.exists()) else {
        let tried: Vec<String> = source.keyrings.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::refused(format!("the keyring of '{}' is missing: {}", source.name, tried.join(", ")))
            .hint(source.keyring_hint()));
    };
    let keyring = Keyring::from_file(path).map_err(|error| error.with_kind(Kind::Refused))?;
    if source.fingerprints.is_empty() {
        return Ok(keyring);
    }
    let pins = source.fingerprints.iter().map(|text| text.parse()).collect::<Result<Vec<_>>>()?;
    keyring.pinned(&pins)
}

/// What a document must show before it is read.
enum Trust {
    Keys(Box<Keyring>),
    Nobody,
}

impl Trust {
    fn of(env: Env<'_>, source: &Source) -> Result<Self> {
        if source.signed {
            return Ok(Trust::Keys(Box::new(keyring_of(source)?)));
        }
        env.reporter.warn(&format!(
            "'{}' is taken unsigned: whoever is on the way to {} can replace its images",
            source.name, source.url
        ));
        Ok(Trust::Nobody)
    }

    /// The bytes that may be parsed, and who signed them.
    fn check(&self, document: &[u8], what: &str) -> Result<(Vec<u8>, Option<Signer>)> {
        match self {
            Trust::Keys(keyring) => {
                let verified = signed::verify_inline(document, keyring, Timestamp::now()).map_err(|error| {
                    Error::new(error.kind(), format!("{what} is not verified"))
                        .because(error)
                        .hint("if another key signs this source, pass it with --keyring FILE")
                })?;
                Ok((verified.payload, verified.signers.into_iter().next()))
            }
            Trust::Nobody => Ok((signed::unsigned_text(document)?, None)),
        }
    }
}

/// One sync under way.
struct Run<'a> {
    env: Env<'a>,
    pool: &'a Pool,
    fetcher: Fetcher,
    source: &'a Source,
    trust: Trust,
    allow_older: bool,
    /// Keys of the images in documents where none matched, to tell a slip of the pen from a filter that nothing matches.
    seen: Mutex<BTreeSet<String>>,
}

impl Run<'_> {
    async fn all(&self, request: &SyncRequest, filters: &Filters) -> Result<SyncReport> {
        let filters = filters.clone().and(&self.source.filters);
        let mut wanted = Vec::new();
        for entry in self.entries(&filters).await? {
            wanted.extend(self.items(&entry, &filters, request.max).await?);
        }
        if wanted.is_empty() {
            let seen = self.seen.lock().map(|seen| seen.clone()).unwrap_or_default();
            if let Some(error) = images::unknown_keys(&filters, seen.iter().map(String::as_str)) {
                return Err(error);
            }
            return Err(Error::not_found(format!("'{}' offers no image that matches", self.source.name))
                .hint("fewer filters match more; 'virga sync --dry-run' shows what is offered"));
        }
        let images = if request.dry_run { self.look(&wanted)? } else { self.fetch_all(&wanted).await? };
        let retired = if request.keep { Vec::new() } else { self.retire(&wanted, &filters, request.dry_run)? };
        Ok(SyncReport { source: self.source.name.clone(), images, retired })
    }

    /// A metadata file's verified text: fetched if it changed, else the copy of the last verified one.
    async fn document(&self, path: &RelPath) -> Result<(Vec<u8>, Option<Signer>)> {
        let url = parse(&self.source.url_of(path))?;
        let what = format!("'{url}'");
        let cache = self.pool.stream_cache(&self.source.name)?;
        let known = cache.get(path)?;
        let validators = known
            .as_ref()
            .map(|cached| Validators { etag: cached.etag.clone(), last_modified: cached.last_modified.clone() });
        match self.fetcher.metadata(&url, validators.as_ref(), METADATA_LIMIT).await? {
            Metadata::Fresh { bytes, validators } => {
                let checked = self.trust.check(&bytes, &what)?;
                if let Some(known) = &known {
                    self.refuse_older(&checked.0, &known.bytes, &what)?;
                }
                cache.put(path, &bytes, validators.etag.as_deref(), validators.last_modified.as_deref())?;
                Ok(checked)
            }
            // The copy is verified again: the keys that are trusted may have changed since.
            Metadata::NotModified => self.trust.check(&known.map(|cached| cached.bytes).unwrap_or_default(), &what),
        }
    }

    /// Refuses a document that is older than the one that was verified last: a
    /// mirror that is stuck, or somebody who replays what was signed once.
    fn refuse_older(&self, new: &[u8], known: &[u8], what: &str) -> Result<()> {
        // A copy that the keys of today do not vouch for says nothing.
        let Ok((known, _)) = self.trust.check(known, what) else { return Ok(()) };
        let (Some(then), Some(now)) = (updated(&known), updated(new)) else { return Ok(()) };
        if now >= then || self.allow_older {
            return Ok(());
        }
        Err(Error::refused(format!("{what} is older than the one that was verified last ({now} after {then})"))
            .hint("the mirror may be out of date; try again later, or take it with --allow-older"))
    }

    /// The products documents that the index names and the filters do not rule out.
    async fn entries(&self, filters: &Filters) -> Result<Vec<IndexEntry>> {
        let mut trail = Trail::default();
        let (mut open, mut found) = (vec![self.source.path.clone()], Vec::new());
        while let Some(path) = open.pop() {
            if !trail.enter(&path)? {
                continue;
            }
            let (bytes, _) = self.document(&path).await?;
            let index = parse_index(&bytes, &format!("'{}'", self.source.url_of(&path)))?;
            for entry in index.entries {
                if entry.is_index() {
                    open.push(entry.path);
                } else if entry.is_products() && datatype_matches(filters, entry.datatype.as_deref()) {
                    found.push(entry);
                }
            }
        }
        Ok(found)
    }

    async fn items(&self, entry: &IndexEntry, filters: &Filters, max: usize) -> Result<Vec<Wanted>> {
        let (bytes, signer) = self.document(&entry.path).await?;
        let what = format!("'{}'", self.source.url_of(&entry.path));
        let products = parse_products(&bytes, Some(&entry.content_id), &what)?;
        let signer = signer.map(|signer| signer.fingerprint.to_string());
        let items = products.select(filters, Some(max));
        let wanted: Vec<Wanted> = items
            .filter_map(|item| Wanted::of(&self.source.name, item, signer.clone()).transpose())
            .collect::<Result<_>>()?;
        if wanted.is_empty()
            && let Ok(mut seen) = self.seen.lock()
        {
            let offered = products.select(&self.source.filters, None).filter_map(Result::ok);
            seen.extend(offered.flat_map(|item| item.keys.into_keys()));
        }
        Ok(wanted)
    }

    fn look(&self, wanted: &[Wanted]) -> Result<Vec<SyncedImage>> {
        wanted
            .iter()
            .map(|image| {
                let action = if self.present(image)?.is_some() { Action::Present } else { Action::WouldFetch };
                Ok(image.synced(action))
            })
            .collect()
    }

    /// The record of an image whose announced content is in the pool.
    fn present(&self, image: &Wanted) -> Result<Option<ImageRecord>> {
        let record = self.pool.record(&image.id)?;
        Ok(record.filter(|record| record.announced == image.digest && self.pool.has_blob(&record.blob)))
    }

    /// A blob that has the announced content although no record names it: a
    /// sync was killed between the two.
    fn left_behind(&self, image: &Wanted) -> Option<Digest> {
        let named = image.digest.algorithm() == DigestAlgorithm::Sha256 && self.pool.has_blob(&image.digest);
        named.then(|| image.digest.clone())
    }

    /// The right to fetch a file: waits while another sync, or another image of this one, fetches it.
    async fn partial(&self, digest: &Digest) -> Result<Partial> {
        loop {
            if let Some(partial) = self.pool.try_partial(digest)? {
                return Ok(partial);
            }
            interrupt::check()?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Another image's record of the same content: then nothing need be fetched.
    fn twin(&self, image: &Wanted) -> Result<Option<ImageRecord>> {
        let same = |record: &ImageRecord| record.announced == image.digest && record.size == image.size;
        Ok(self.pool.records()?.into_iter().find(|record| same(record) && self.pool.has_blob(&record.blob)))
    }

    async fn fetch_all(&self, wanted: &[Wanted]) -> Result<Vec<SyncedImage>> {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        let fetches = wanted.iter().map(|image| async move { Ok(image.synced(self.fetch(image).await?)) });
        futures_util::stream::iter(fetches).buffered(PARALLEL).try_collect().await
    }

    async fn fetch(&self, image: &Wanted) -> Result<Action> {
        if let Some(mut record) = self.present(image)? {
            // The stream may say more or other things of the same bytes by now.
            if record.keys != image.keys || record.signer != image.signer {
                (record.keys, record.signer) = (image.keys.clone(), image.signer.clone());
                self.pool.put_record(&record)?;
            }
            return Ok(Action::Present);
        }
        // Held until the record is written: who waited for it finds the image there.
        let partial = self.partial(&image.digest).await?;
        if self.present(image)?.is_some() {
            return Ok(Action::Present);
        }
        if let Some(twin) = self.twin(image)? {
            self.pool.put_record(&image.record(&self.source.name, &twin.blob, twin.format, twin.virtual_size))?;
            return Ok(Action::Present);
        }
        if let Some(blob) = self.left_behind(image) {
            let facts = disk::inspect(&self.pool.blob_path(&blob), claimed(image))?;
            self.pool.put_record(&image.record(&self.source.name, &blob, facts.format, facts.virtual_size))?;
            return Ok(Action::Present);
        }
        let label = format!("{} {}", image.key("product_name"), image.key("version_name"));
        let transfer = self.env.reporter.transfer(&label, Some(image.size));
        let url = parse(&self.source.url_of(&image.path))?;
        let expected = Expected { size: image.size, digest: image.digest.clone() };
        let fetched = self.fetcher.item(&url, &expected, &partial.path, transfer.as_ref()).await?;
        // Looked at before it has a final name: an image that QEMU must not see never gets into the pool.
        let facts = disk::inspect(&partial.path, claimed(image)).or_else(|error| {
            // Whole, verified and hostile: nothing of it is worth keeping.
            self.pool.discard(&partial)?;
            Err(Error::new(error.kind(), format!("the image '{url}' is refused")).because(error))
        })?;
        self.pool.adopt(&partial, &fetched.sha256)?;
        self.pool.put_record(&image.record(&self.source.name, &fetched.sha256, facts.format, facts.virtual_size))?;
        Ok(Action::Fetched)
    }

    /// Removes the records of this source's other versions of the products
    /// that were synced. Their blobs stay until a prune, and as long as a guest needs them.
    fn retire(&self, wanted: &[Wanted], filters: &Filters, dry_run: bool) -> Result<Vec<ImageId>> {
        let current: BTreeSet<&ImageId> = wanted.iter().map(|image| &image.id).collect();
        let products: BTreeSet<&str> = wanted.iter().map(|image| image.key("product_name")).collect();
        let mut retired = Vec::new();
        for record in self.pool.records()? {
            let ours = record.source == self.source.name && products.contains(record.key("product_name"));
            if ours && !current.contains(&record.id) && filters.matches(&record.keys) {
                if !dry_run {
                    self.pool.remove_record(&record.id)?;
                }
                retired.push(record.id);
            }
        }
        Ok(retired)
    }
}

/// When a document says that it was written.
fn updated(document: &[u8]) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Head {
        updated: Option<String>,
    }
    let text = serde_json::from_slice::<Head>(document).ok()?.updated?;
    jiff::fmt::rfc2822::parse(&text).ok().map(|time| time.timestamp())
}

/// What the stream's file type says of the format; the bytes must agree.
fn claimed(image: &Wanted) -> Option<DiskFormat> {
    match image.key("ftype") {
        "qcow2" | "disk-kvm.img" => Some(DiskFormat::Qcow2),
        "raw" => Some(DiskFormat::Raw),
        _ => None,
    }
}

/// Whether items of this datatype can pass; entries that cannot are not fetched.
fn datatype_matches(filters: &Filters, datatype: Option<&str>) -> bool {
    filters.0.iter().filter(|filter| filter.key() == "datatype").all(|filter| filter.accepts(datatype.unwrap_or("")))
}

fn parse(url: &str) -> Result<Url> {
    Url::parse(url).map_err(|error| Error::usage(format!("'{url}' is not a URL")).because(error))
}

/// An item that can be fetched: it has a path, a size and a digest.
struct Wanted {
    id: ImageId,
    keys: std::collections::BTreeMap<String, String>,
    path: RelPath,
    size: u64,
    digest: Digest,
    signer: Option<String>,
}

impl Wanted {
    /// `None` for an item without a file, such as an image's id in a cloud.
    fn of(source: &str, item: Result<Item>, signer: Option<String>) -> Result<Option<Self>> {
        let item = item?;
        let (Some(path), Some(size), Some(digest)) = (item.path.clone(), item.size, item.digest.clone()) else {
            return Ok(None);
        };
        let id = ImageId::of(source, item.content_id(), item.product(), item.version(), item.name());
        Ok(Some(Wanted { id, keys: item.keys, path, size, digest, signer }))
    }

    fn record(&self, source: &str, blob: &Digest, format: DiskFormat, virtual_size: u64) -> ImageRecord {
        ImageRecord {
            id: self.id.clone(),
            source: source.to_owned(),
            keys: self.keys.clone(),
            announced: self.digest.clone(),
            blob: blob.clone(),
            size: self.size,
            format,
            virtual_size,
            synced_at: Timestamp::now(),
            signer: self.signer.clone(),
        }
    }

    fn key(&self, key: &str) -> &str {
        self.keys.get(key).map(String::as_str).unwrap_or_default()
    }

    fn synced(&self, action: Action) -> SyncedImage {
        SyncedImage {
            id: self.id.clone(),
            action,
            product: self.key("product_name").to_owned(),
            version: self.key("version_name").to_owned(),
            size: self.size,
        }
    }
}
