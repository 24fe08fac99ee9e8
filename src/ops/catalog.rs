//! What a source offers: its metadata fetched, verified and read. Whoever
//! syncs, mirrors or asks what there is begins here.

mod age;
mod selection;
mod terms;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use reqwest::Url;
use sha2::{Digest as _, Sha256};

use self::age::updated;
pub(super) use self::selection::Selection;
pub(super) use self::terms::{Terms, keyring_of};
use super::Env;
use crate::base::name::quoted;
use crate::base::{Address, Context as _, Error, Kind, RelPath, Result, address, name};
use crate::fetch::{Fetcher, Metadata, Validators};
use crate::pool::{Chain, Generation, Kept, Link, Marks, Pool, Seen, Signature};
use crate::stream::filter::Filters;
use crate::stream::index::{IndexEntry, Trail, parse_index};
use crate::stream::product::Item;
use crate::stream::signed::{self, Signer};
use crate::stream::source::Source;

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
    /// The newest of its good signatures.
    signer: Option<Signer>,
    /// The keys of all of them.
    signers: Vec<String>,
    /// Whether a server was asked for it.
    fresh: bool,
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

    /// The key that signed it; `None` for one that was taken unsigned.
    pub(super) fn signer(&self) -> Option<String> {
        self.signer.as_ref().map(|signer| signer.fingerprint.to_string())
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
            if !allow_older && meanwhile.is_some_and(|known| file.kept.mark().is_before(&known.mark())) {
                return Err(overtaken());
            }
            generation.metadata.insert(file.path.clone(), file.kept.clone());
        }
        Ok(())
    }
}

impl Catalog {
    /// Remembers what was verified, so that nothing older is taken from now on. What came from a copy says nothing new.
    ///
    /// # Errors
    /// [`Kind::Refused`] when somebody verified newer metadata meanwhile, unless `allow_older`, which lowers the marks.
    pub(super) fn remember(&self, pool: &Pool, source: &Source, terms: &Terms, allow_older: bool) -> Result<()> {
        let documents = self.indexes.iter().chain(self.products.iter().map(|listed| &listed.document));
        let fresh = documents.filter(|document| document.fresh && !document.signers.is_empty());
        let seen: Vec<Seen<'_>> = fresh
            .map(|document| Seen {
                path: &document.file.path,
                signers: &document.signers,
                mark: document.file.kept.mark(),
            })
            .collect();
        match pool.remember(&source.place(), &seen, &terms.keys(), allow_older)? {
            true => Ok(()),
            false => Err(overtaken()),
        }
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
    pub terms: &'a Terms,
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
    marks: &'a Marks,
    fetcher: &'a Fetcher,
}

impl Reader<'_> {
    /// Reads the indexes and those products documents that the filters do not
    /// rule out. Roots are tried in turn; when none can be reached, what was
    /// verified last is taken, with a warning. What was verified is remembered at once: whoever breaks off what follows
    /// cannot come with something older then.
    ///
    /// # Errors
    /// [`Kind::Refused`] when anything cannot be verified, is older than what
    /// was, or malformed; [`Kind::NotFound`] when there is no such stream, or nothing was
    /// kept to be offline with; else as the network says.
    pub(super) async fn read(&self, filters: &Filters, network: Network) -> Result<Catalog> {
        let store = self.source.store();
        let (known, marks) = (self.pool.generation(&store)?, self.pool.marks(&self.source.place())?);
        let hasty = self.alternatives || !self.source.mirrors.is_empty() || !known.metadata.is_empty();
        let fetcher = if hasty { self.fetcher.with_retries(RETRIES_WITH_A_COPY) } else { self.fetcher.clone() };
        let from = |root, network| From { root, network, known: &known, marks: &marks, fetcher: &fetcher };
        let mut first: Option<Error> = None;
        if network != Network::Offline {
            for root in self.source.roots() {
                match self.walk(from(root, network), filters).await {
                    Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Usage) => return Err(error),
                    Err(error) => {
                        tracing::info!(%root, %error, "the metadata cannot be read from here");
                        first.get_or_insert(error);
                    }
                    Ok(catalog) => {
                        self.warn_of_age(&catalog);
                        if !self.allow_older {
                            catalog.remember(self.pool, self.source, self.terms, false)?;
                        }
                        return Ok(catalog);
                    }
                }
            }
        }
        let copy = from(&self.source.url, Network::Offline);
        match first {
            None => match self.walk(copy, filters).await {
                // A sync has put other documents in the place of those that were known when we began.
                Err(error) if error.kind() == Kind::NotFound && self.pool.generation(&store)? != known => {
                    Box::pin(self.read(filters, network)).await
                }
                read => read.inspect(|catalog| self.warn_of_age(catalog)),
            },
            Some(error) if matches!(error.kind(), Kind::Failed | Kind::TimedOut) && !known.metadata.is_empty() => {
                // What is wrong with the copy is of no interest: the network is what failed.
                let Ok(copy) = self.walk(copy, filters).await else { return Err(error) };
                self.env.reporter.warn(&format!("{error}; going on with the metadata that was verified last"));
                self.warn_of_age(&copy);
                Ok(copy)
            }
            Some(error) => Err(error),
        }
    }

    async fn walk(&self, from: From<'_>, filters: &Filters) -> Result<Catalog> {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        let mut trail = Trail::default();
        let (mut open, mut indexes, mut entries) = (vec![self.source.path.clone()], Vec::new(), Vec::new());
        let (mut unread, mut foreign) = (BTreeSet::new(), BTreeSet::new());
        while let Some(path) = open.pop() {
            if !trail.enter(&path)? {
                continue;
            }
            let document = self.document(from, &path).await?;
            let index = parse_index(&document.text, &format!("'{}'", document.file.kept.url))?;
            for entry in index.entries {
                if entry.is_index() {
                    open.push(entry.path);
                } else if entry.is_products() && !self.source.lists(&entry.content_id) {
                    foreign.insert(entry.content_id);
                } else if entry.is_products() {
                    match entry.datatype.clone().filter(|datatype| !datatype_matches(filters, datatype)) {
                        Some(datatype) => drop(unread.insert(datatype)),
                        None => entries.push((indexes.len(), entry)),
                    }
                }
            }
            indexes.push(document);
        }
        if entries.is_empty() && unread.is_empty() && !foreign.is_empty() {
            return Err(self.foreign(&indexes[0], &foreign));
        }
        let reads = entries.into_iter().map(|(index, entry)| async move {
            let document = self.document(from, &entry.path).await?;
            self.refuse_unlike(&entry, &document)?;
            Ok::<_, Error>(Listed { entry, document, index })
        });
        let products = futures_util::stream::iter(reads).buffered(PARALLEL).try_collect().await?;
        Ok(Catalog { indexes, products, unread, known: from.known.metadata.clone() })
    }

    /// An index that leads to another stream's documents only: the same key signs those too.
    fn foreign(&self, index: &Document, found: &BTreeSet<String>) -> Error {
        const NAMED: usize = 3;
        let (pins, name) = (self.source.content_ids.join("', '"), &self.source.name);
        let mut shown: Vec<String> = found.iter().take(NAMED).map(|id| quoted(id)).collect();
        shown.extend((found.len() > NAMED).then(|| "…".to_owned()));
        Error::refused(format!("'{}' is another stream: it lists {}", index.file.kept.url, shown.join(", ")))
            .hint(format!("'{name}' has the content ids '{pins}'; a source file says otherwise with content-id"))
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
        if let Terms::Keys(_) = self.terms
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
        let (text, signers) = self.check(&file.bytes, signature.as_ref().map(|file| file.bytes.as_slice()), &what)?;
        let fresh = from.network != Network::Offline;
        // The newest signature says most about how fresh the document is.
        let signer = signers.iter().max_by_key(|signer| signer.signed_at).cloned();
        if fresh {
            (file.kept.updated, file.kept.signed_at) = (updated(&text), signer.as_ref().map(|signer| signer.signed_at));
            self.refuse_older(&file, from, &what)?;
        }
        if fresh {
            // A copy does not get newer by being refused: of that one is told.
            self.refuse_stale(signer.as_ref(), file.kept.updated, &what)?;
        }
        let signers = signers.iter().map(|signer| signer.fingerprint.to_string()).collect();
        Ok(Document { file, signature, text, signer, signers, fresh })
    }

    /// A file as the server has it, or the copy if the server has nothing else.
    async fn file(&self, from: From<'_>, path: &RelPath) -> Result<File> {
        let url = parse(&from.root.join(path))?;
        let shown = address::shown(url.as_str());
        let kept = from.known.metadata.get(path);
        let copy = || kept.and_then(|kept| Some((kept.clone(), self.pool.metadata(&self.source.store(), kept)?)));
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

    /// The bytes that may be parsed, and all who signed them. Copies are checked
    /// as well: the keys that are trusted may have changed.
    fn check(&self, bytes: &[u8], signature: Option<&[u8]>, what: &str) -> Result<(Vec<u8>, Vec<Signer>)> {
        let Terms::Keys(keyring) = self.terms else { return Ok((signed::unsigned_text(bytes)?, Vec::new())) };
        let now = Timestamp::now();
        let verified = match signature {
            Some(signature) => signed::verify_detached(bytes, signature, keyring, now),
            None => signed::verify_inline(bytes, keyring, now),
        };
        let verified = verified.map_err(|error| {
            let explained = !error.hints().is_empty();
            let refused = Error::new(error.kind(), format!("{what} is not verified")).because(error);
            if explained {
                refused
            } else {
                refused.hint("if another key signs this source, pass it with --keyring FILE")
            }
        })?;
        Ok((verified.payload, verified.signers))
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

/// Whether items of this datatype can pass; entries that cannot are not fetched. Where the index does not say, the items do.
fn datatype_matches(filters: &Filters, datatype: &str) -> bool {
    filters.0.iter().filter(|filter| filter.key() == "datatype").all(|filter| filter.accepts(datatype))
}

/// # Errors
/// [`Kind::Usage`] for what is no URL.
pub(super) fn parse(url: &Address) -> Result<Url> {
    Url::parse(url.reveal()).context(|| format!("'{url}' is not a URL")).map_err(|error| error.with_kind(Kind::Usage))
}
