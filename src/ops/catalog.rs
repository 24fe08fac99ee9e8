//! What a source offers: its metadata fetched, verified and read. Whoever
//! syncs, mirrors or asks what there is begins here.

mod selection;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use sha2::{Digest as _, Sha256};

pub(super) use self::selection::Selection;
use super::Env;
use crate::base::{Address, Context as _, Error, Kind, RelPath, Result, address, name};
use crate::fetch::{Fetcher, Metadata, Validators};
use crate::pool::{Chain, Generation, Kept, Link, Pool, Signature};
use crate::stream::filter::Filters;
use crate::stream::index::{IndexEntry, Trail, parse_index};
use crate::stream::key::Keyring;
use crate::stream::product::Item;
use crate::stream::signed::{self, Signer};
use crate::stream::source::{Signing, Source};

/// Most bytes of one metadata file. Ubuntu's largest has 3 MB.
const METADATA_LIMIT: u64 = 256 << 20;

/// How many products documents are fetched side by side.
const PARALLEL: usize = 4;

/// How often a source is asked again when there is something to fall back on.
const RETRIES_WITH_A_COPY: u32 = 1;

/// How the network is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// The server is asked whether its metadata is newer than the copy.
    Ask,
    /// The metadata is fetched whatever the copy is: something did not fit.
    Anew,
    /// Only the copy that was verified last.
    Offline,
}

/// What a document must show before it is read.
pub(super) enum Trust {
    Keys(Box<Keyring>),
    Nobody,
}

impl Trust {
    /// # Errors
    /// [`Kind::Refused`] when the source must be signed and its keys are not there.
    pub(super) fn of(env: Env<'_>, source: &Source) -> Result<Self> {
        match source.signing {
            Signing::Required => return Ok(Trust::Keys(Box::new(keyring_of(source)?))),
            Signing::Waived => {}
            Signing::Absent => {
                return Err(Error::refused(format!(
                    "nobody signs '{}': only the connection vouches for it",
                    source.name
                ))
                .hint(source.unsigned_hint()));
            }
        }
        env.reporter.warn(&format!(
            "'{}' is taken unsigned: whoever is on the way to {} can replace its images",
            source.name, source.url
        ));
        Ok(Trust::Nobody)
    }
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

/// A metadata file as it came.
#[derive(Clone)]
pub(super) struct File {
    /// From the stream's root.
    pub path: RelPath,
    pub bytes: Vec<u8>,
    pub kept: Kept,
}

/// A verified document.
pub(super) struct Document {
    pub file: File,
    /// The detached signature, where the document does not carry its own.
    pub signature: Option<File>,
    /// Exactly what was verified: the only thing that may be parsed.
    pub text: Vec<u8>,
    signer: Option<Signer>,
}

impl Document {
    fn link(&self) -> Link {
        let signature = self.signer.as_ref().map(|signer| Signature {
            fingerprint: signer.fingerprint.to_string(),
            signing_key: signer.signing_key.to_string(),
            user_id: signer.user_id.clone(),
            signed_at: signer.signed_at,
            hash: signer.hash.clone(),
        });
        Link { url: self.file.kept.url.clone(), sha256: name::hex(&Sha256::digest(&self.text)), signature }
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.file).chain(&self.signature)
    }
}

/// A products document and the index that led to it.
pub(super) struct Listed {
    pub entry: IndexEntry,
    pub document: Document,
    /// Which of the catalog's indexes has the entry.
    index: usize,
}

/// An item that the source offers, and why it is trusted.
#[derive(Clone)]
pub(super) struct Offer {
    pub item: Item,
    pub chain: Chain,
}

/// All metadata of a source at one moment, as far as the filters need it.
pub(super) struct Catalog {
    pub indexes: Vec<Document>,
    pub products: Vec<Listed>,
    /// What the documents are of that the filters ruled out.
    unread: BTreeSet<String>,
    /// What was kept of the source when the reading began.
    known: BTreeMap<RelPath, Kept>,
}

impl Catalog {
    /// Every file that was read, signatures too.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        let documents = self.indexes.iter().chain(self.products.iter().map(|listed| &listed.document));
        documents.flat_map(Document::files)
    }

    /// Whether another reading found the very same bytes.
    pub(super) fn same_as(&self, other: &Catalog) -> bool {
        self.files().map(|file| &file.kept.sha256).eq(other.files().map(|file| &file.kept.sha256))
    }

    /// Brings what is kept of the source up to this catalog. Other products
    /// documents that its indexes still name stay.
    ///
    /// # Errors
    /// [`Kind::Refused`] when somebody kept newer metadata meanwhile, unless `allow_older`.
    pub(super) fn keep(&self, generation: &mut Generation, allow_older: bool) -> Result<()> {
        for file in self.files() {
            let known = generation.metadata.get(&file.path);
            // What was there when the reading began was compared then.
            let meanwhile = known.filter(|known| self.known.get(&file.path) != Some(known));
            if !allow_older && meanwhile.is_some_and(|known| is_older(&file.kept, known)) {
                return Err(overtaken());
            }
            generation.metadata.insert(file.path.clone(), file.kept.clone());
        }
        Ok(())
    }
}

fn overtaken() -> Error {
    Error::refused("another sync took newer metadata meanwhile").hint("try again")
}

/// Reads a source's metadata.
pub(super) struct Reader<'a> {
    pub pool: &'a Pool,
    pub env: Env<'a>,
    pub fetcher: Fetcher,
    pub source: &'a Source,
    pub trust: &'a Trust,
    /// Take metadata that is older than what was verified last.
    pub allow_older: bool,
    /// Whether another source is asked when this one does not answer.
    pub alternatives: bool,
}

/// Where one reading takes its files from: a root, or what was kept.
#[derive(Clone, Copy)]
struct From<'a> {
    root: &'a Address,
    network: Network,
    known: &'a Generation,
    fetcher: &'a Fetcher,
}

impl Reader<'_> {
    /// Reads the indexes and those products documents that the filters do not
    /// rule out. Roots are tried in turn; when none can be reached, what was
    /// verified last is taken, with a warning. Changes nothing on disk.
    ///
    /// # Errors
    /// [`Kind::Refused`] when anything cannot be verified, is older than what
    /// was, or malformed; [`Kind::NotFound`] when there is no such stream, or nothing was
    /// kept to be offline with; else as the network says.
    pub(super) async fn read(&self, filters: &Filters, network: Network) -> Result<Catalog> {
        let known = self.pool.generation(&self.source.name)?;
        let hasty = self.alternatives || !self.source.mirrors.is_empty() || !known.metadata.is_empty();
        let fetcher = if hasty { self.fetcher.with_retries(RETRIES_WITH_A_COPY) } else { self.fetcher.clone() };
        let mut first: Option<Error> = None;
        if network != Network::Offline {
            for root in self.source.roots() {
                match self.walk(From { root, network, known: &known, fetcher: &fetcher }, filters).await {
                    Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Usage) => return Err(error),
                    Err(error) => {
                        tracing::info!(%root, %error, "the metadata cannot be read from here");
                        first.get_or_insert(error);
                    }
                    read => return read,
                }
            }
        }
        let from = From { root: &self.source.url, network: Network::Offline, known: &known, fetcher: &fetcher };
        match first {
            None => match self.walk(from, filters).await {
                // A sync has put other documents in the place of those that were known when we began.
                Err(error) if error.kind() == Kind::NotFound && self.pool.generation(&self.source.name)? != known => {
                    Box::pin(self.read(filters, network)).await
                }
                read => read,
            },
            Some(error) if matches!(error.kind(), Kind::Failed | Kind::TimedOut) && !known.metadata.is_empty() => {
                // What is wrong with the copy is of no interest: the network is what failed.
                let Ok(copy) = self.walk(from, filters).await else { return Err(error) };
                self.env.reporter.warn(&format!("{error}; going on with the metadata that was verified last"));
                Ok(copy)
            }
            Some(error) => Err(error),
        }
    }

    async fn walk(&self, from: From<'_>, filters: &Filters) -> Result<Catalog> {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        let mut trail = Trail::default();
        let (mut open, mut indexes, mut entries) = (vec![self.source.path.clone()], Vec::new(), Vec::new());
        let mut unread = BTreeSet::new();
        while let Some(path) = open.pop() {
            if !trail.enter(&path)? {
                continue;
            }
            let document = self.document(from, &path).await?;
            let index = parse_index(&document.text, &format!("'{}'", document.file.kept.url))?;
            for entry in index.entries {
                if entry.is_index() {
                    open.push(entry.path);
                } else if entry.is_products() {
                    match entry.datatype.clone().filter(|datatype| !datatype_matches(filters, datatype)) {
                        Some(datatype) => drop(unread.insert(datatype)),
                        None => entries.push((indexes.len(), entry)),
                    }
                }
            }
            indexes.push(document);
        }
        let reads = entries.into_iter().map(|(index, entry)| async move {
            let document = self.document(from, &entry.path).await?;
            self.refuse_unlike(&entry, &document)?;
            Ok::<_, Error>(Listed { entry, document, index })
        });
        let products = futures_util::stream::iter(reads).buffered(PARALLEL).try_collect().await?;
        Ok(Catalog { indexes, products, unread, known: from.known.metadata.clone() })
    }

    /// One document, or where it is not there the same under its other name: servers without signatures have none of the
    /// names that stand for one. Which name it has changes nothing of what it must show.
    async fn document(&self, from: From<'_>, path: &RelPath) -> Result<Document> {
        let absent = match self.file(from, path).await {
            Err(error) if error.kind() == Kind::NotFound => error,
            file => return self.verified(from, file?).await,
        };
        let Some(other) = other_name(path) else { return Err(absent) };
        match self.file(from, &other).await {
            Err(error) if error.kind() == Kind::NotFound => Err(absent),
            file => {
                tracing::info!(%path, %other, "the document is under its other name");
                self.verified(from, file?).await
            }
        }
    }

    /// A file as a document, verified by the signature within it or beside it.
    async fn verified(&self, from: From<'_>, mut file: File) -> Result<Document> {
        let (what, path) = (format!("'{}'", file.kept.url), file.path.clone());
        let mut signature = None;
        if let Trust::Keys(_) = self.trust
            && !path.as_str().ends_with(".sjson")
            && !signed::is_inline(&file.bytes)
        {
            let beside: RelPath = format!("{path}.gpg").parse()?;
            signature = Some(self.file(from, &beside).await.map_err(|error| {
                match error.kind() {
                    Kind::NotFound => Error::refused(format!("{what} is not signed: there is no '{beside}'"))
                        .hint("if nobody signs this source, it can be taken with --unsigned"),
                    _ => error,
                }
            })?);
        }
        let (text, signer) = self.check(&file.bytes, signature.as_ref().map(|file| file.bytes.as_slice()), &what)?;
        if from.network != Network::Offline {
            (file.kept.updated, file.kept.signed_at) = (updated(&text), signer.as_ref().map(|signer| signer.signed_at));
            self.refuse_older(&file, from.known, &what)?;
        }
        self.refuse_stale(signer.as_ref(), file.kept.updated, &what)?;
        Ok(Document { file, signature, text, signer })
    }

    /// A file as the server has it, or the copy if the server has nothing else.
    async fn file(&self, from: From<'_>, path: &RelPath) -> Result<File> {
        let url = parse(&from.root.join(path))?;
        let shown = address::shown(url.as_str());
        let kept = from.known.metadata.get(path);
        let copy = || kept.and_then(|kept| Some((kept.clone(), self.pool.metadata(&self.source.name, kept)?)));
        if from.network == Network::Offline {
            let (kept, bytes) = copy().ok_or_else(|| {
                Error::not_found(format!("'{shown}' was never fetched")).hint("sync once with the network")
            })?;
            return Ok(File { path: path.clone(), bytes, kept });
        }
        let copy = copy();
        let known = copy.as_ref().filter(|(kept, _)| from.network == Network::Ask && kept.url == shown);
        let validators =
            known.map(|(kept, _)| Validators { etag: kept.etag.clone(), last_modified: kept.last_modified.clone() });
        match from.fetcher.metadata(&url, validators.as_ref(), METADATA_LIMIT).await? {
            Metadata::Fresh { bytes, validators } => {
                let mut kept = Kept::new(&bytes, shown, None);
                (kept.etag, kept.last_modified) = (validators.etag, validators.last_modified);
                Ok(File { path: path.clone(), bytes: bytes.into(), kept })
            }
            Metadata::NotModified => {
                let (kept, bytes) = copy.ok_or_else(|| Error::failed(format!("'{shown}' was not sent")))?;
                Ok(File { path: path.clone(), bytes, kept })
            }
        }
    }

    /// The bytes that may be parsed, and who signed them. Copies are checked
    /// as well: the keys that are trusted may have changed.
    fn check(&self, bytes: &[u8], signature: Option<&[u8]>, what: &str) -> Result<(Vec<u8>, Option<Signer>)> {
        let Trust::Keys(keyring) = self.trust else { return Ok((signed::unsigned_text(bytes)?, None)) };
        let now = Timestamp::now();
        let verified = match signature {
            Some(signature) => signed::verify_detached(bytes, signature, keyring, now),
            None => signed::verify_inline(bytes, keyring, now),
        };
        let verified = verified.map_err(|error| {
            Error::new(error.kind(), format!("{what} is not verified"))
                .because(error)
                .hint("if another key signs this source, pass it with --keyring FILE")
        })?;
        // The newest signature says most about how fresh the document is.
        Ok((verified.payload, verified.signers.into_iter().max_by_key(|signer| signer.signed_at)))
    }

    /// Refuses a document that is older than the one that was verified last: a
    /// mirror that is stuck, or somebody who replays what was signed once.
    fn refuse_older(&self, file: &File, known: &Generation, what: &str) -> Result<()> {
        // Under either name: else whoever holds one back could show the other one of old.
        let names = [Some(file.path.clone()), other_name(&file.path)];
        let older = |path: &RelPath| {
            let then = known.metadata.get(path).filter(|known| known.sha256 != file.kept.sha256)?;
            (!self.allow_older && is_older(&file.kept, then) && self.vouched(path, known)).then_some(then)
        };
        let Some(then) = names.iter().flatten().find_map(older) else { return Ok(()) };
        let when = |kept: &Kept| kept.updated.or(kept.signed_at).map(|time| time.to_string()).unwrap_or_default();
        let (now, then) = (when(&file.kept), when(then));
        Err(Error::refused(format!("{what} is older than the one that was verified last ({now} after {then})"))
            .hint("the mirror may be out of date; try again later, or take it with --allow-older"))
    }

    /// Whether the keys of today vouch for the copy of a document: one that
    /// they don't says nothing about what is old.
    fn vouched(&self, path: &RelPath, known: &Generation) -> bool {
        let copy = |path: &str| {
            let kept = known.metadata.get(&path.parse().ok()?)?;
            self.pool.metadata(&self.source.name, kept)
        };
        let Some(bytes) = copy(path.as_str()) else { return false };
        let beside = if signed::is_inline(&bytes) { None } else { copy(&format!("{path}.gpg")) };
        self.check(&bytes, beside.as_deref(), "the copy").is_ok()
    }

    /// Refuses products that are older than the index says: a mirror in the
    /// middle of an update, or somebody who holds one document back.
    fn refuse_unlike(&self, entry: &IndexEntry, document: &Document) -> Result<()> {
        let listed = entry.updated.as_deref().and_then(time);
        if let Some((listed, found)) = listed.zip(document.file.kept.updated)
            && found < listed
            && !self.allow_older
        {
            let what = &document.file.kept.url;
            return Err(Error::refused(format!("'{what}' is of {found}, and the index speaks of one of {listed}"))
                .hint("the mirror may be in the middle of an update; try again later, or take it with --allow-older"));
        }
        Ok(())
    }

    /// Refuses what is older than the source's own rule allows.
    fn refuse_stale(&self, signer: Option<&Signer>, updated: Option<Timestamp>, what: &str) -> Result<()> {
        let Some(limit) = self.source.max_age.filter(|_| !self.allow_older) else { return Ok(()) };
        let rule = format!("the source '{}' says max-age = {}", self.source.name, humantime::format_duration(limit));
        let Some(written) = signer.map(|signer| signer.signed_at).or(updated) else {
            return Err(Error::refused(format!("{what} does not say when it was written")).hint(rule));
        };
        let age = Timestamp::now().duration_since(written);
        if Duration::try_from(age).is_ok_and(|age| age > limit) {
            return Err(Error::refused(format!("{what} is too old: it was signed at {written}"))
                .hint(rule)
                .hint("the mirror may be stuck; take it nevertheless with --allow-older"));
        }
        Ok(())
    }
}

/// `x.json` for `x.sjson`, and the other way round.
fn other_name(path: &RelPath) -> Option<RelPath> {
    let path = path.as_str();
    let other = match path.strip_suffix(".sjson") {
        Some(stem) => format!("{stem}.json"),
        None => format!("{}.sjson", path.strip_suffix(".json")?),
    };
    other.parse().ok()
}

/// By the time that the documents say; where one says none, by that of the signatures.
fn is_older(new: &Kept, known: &Kept) -> bool {
    match (new.updated, known.updated) {
        (Some(new), Some(then)) => new < then,
        _ => new.signed_at.zip(known.signed_at).is_some_and(|(new, then)| new < then),
    }
}

/// When a document says that it was written.
fn updated(document: &[u8]) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Head {
        updated: Option<String>,
    }
    time(&serde_json::from_slice::<Head>(document).ok()?.updated?)
}

fn time(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp())
}

/// Whether items of this datatype can pass; entries that cannot are not fetched. Where the index does not say, the items do.
fn datatype_matches(filters: &Filters, datatype: &str) -> bool {
    filters.0.iter().filter(|filter| filter.key() == "datatype").all(|filter| filter.accepts(datatype))
}

/// # Errors
/// [`Kind::Usage`] for what is no URL.
pub(super) fn parse(url: &Address) -> Result<Url> {
    Url::parse(url.reveal()).context(|| format!("'{url}' is not a URL")).map_err(|error| error.with_kind(Kind::Usage))
}
