//! Copying streams into a folder: what the filters choose of their catalogs is
//! fetched, every file that is listed is checked again, and the documents are
//! written anew to list exactly what is there.

mod files;
mod whole;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use self::files::{Files, Missing};
use super::catalog::{Catalog, Network, Reader, Terms};
use super::publish::{self as keys, Keys, SignWith};
use super::sync::{FromSources, block_on};
use super::{Env, sync};
use crate::base::{ByteSize, Error, Kind, Result, fs};
use crate::fetch::Fetcher;
use crate::pool::Pool;
use crate::stream::filter::Filters;
use crate::stream::product::Item;
use crate::stream::publish::{KEYRING, OWN_PREFIX, Plan, Publisher, Upstream};
use crate::stream::source::Source;

/// What to copy, and where to.
#[derive(Clone, Debug, Default)]
pub struct MirrorRequest {
    /// The sources, all of them copied.
    pub from: FromSources,
    /// The folder.
    pub dir: PathBuf,
    /// The keys that sign, made where they are absent; `None` to keep the metadata as it came.
    pub sign: Option<SignWith>,
    /// The newest so many versions of each product; `None` for all.
    pub max: Option<usize>,
    /// Keep what the filters cover and do not choose any more.
    pub keep: bool,
    /// Only look.
    pub dry_run: bool,
    /// Which images.
    pub filters: Vec<String>,
}

/// One file of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct MirroredFile {
    /// The product's name.
    pub product: String,
    /// The version's name.
    pub version: String,
    /// The item's name.
    pub item: String,
    /// The file, from the stream's root.
    pub path: String,
    /// Its bytes.
    pub size: u64,
}

/// What a mirror run did, or would do.
#[derive(Clone, Debug, Serialize)]
pub struct MirrorReport {
    /// Files that were missing or damaged.
    pub fetched: Vec<MirroredFile>,
    /// Items that are listed no more.
    pub removed: Vec<MirroredFile>,
    /// How many files the folder lists in all.
    pub files: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Content ids of the documents that were written.
    pub documents: Vec<String>,
}

/// The positional arguments of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Names or URLs of sources.
    pub sources: Vec<String>,
    /// The folder.
    pub dir: PathBuf,
    /// The filters.
    pub filters: Vec<String>,
}

/// Tells sources, folder and filters apart: the first is a source, and so is
/// each further one that is a URL or the name of a known source.
///
/// # Errors
/// [`Kind::Usage`] when no folder is left.
pub fn places(env: Env<'_>, arguments: &[String]) -> Result<Places> {
    let known = sync::sources(env)?;
    let is_source = |text: &String| text.contains("://") || known.iter().any(|source| source.name == *text);
    let more = arguments.iter().skip(1).take_while(|text| is_source(text)).count();
    let (sources, rest) = arguments.split_at(arguments.len().min(1 + more));
    let Some((dir, filters)) = rest.split_first() else {
        return Err(Error::usage("nothing says which folder to mirror into")
            .hint("as in: virga mirror ubuntu ./mirror release=noble arch=amd64"));
    };
    Ok(Places { sources: sources.to_vec(), dir: dir.into(), filters: filters.to_vec() })
}

/// Brings a folder up to what the sources offer and the filters choose; what
/// earlier runs with other filters brought stays. Repeatable: files that are
/// there and sound are not fetched again, an interrupted download is resumed.
/// Holds the folder's lock.
///
/// # Errors
/// [`Kind::Refused`] when anything cannot be verified, [`Kind::NotFound`] when
/// nothing matches, [`Kind::Usage`] for a folder that holds something else,
/// [`Kind::Failed`] when a source cannot be reached or the disk is too small.
pub fn mirror(env: Env<'_>, request: &MirrorRequest) -> Result<MirrorReport> {
    let filters = Filters::parse(&request.filters)?;
    let sources = request.from.load(env)?;
    refuse_foreign(&request.dir)?;
    let pool = env.pool()?;
    let _pool = pool.lock_shared()?;
    let run = Run { env, request, pool: &pool, filters };
    let Some(sign) = &request.sign else { return run.whole(&sources) };
    if request.dry_run {
        let there = sign.files.iter().all(|file| file.exists());
        let keys = if there { Some(Keys::load(sign)?) } else { None };
        return run.look(&sources, keys.as_ref());
    }
    let keys = keys::keys_for(env, &request.dir, sign, "virga mirror")?;
    let _held = keys::with(&request.dir, &keys, |publisher| publisher.hold())?;
    run.mirror(&sources, &keys)
}

/// A folder that holds something else is never mixed with a mirror.
fn refuse_foreign(dir: &Path) -> Result<()> {
    let aside = |name: &String| name.starts_with(OWN_PREFIX) || name == KEYRING || name == "lost+found";
    if dir.join("streams/v1").is_dir() || fs::list_dir(dir)?.iter().all(aside) {
        return Ok(());
    }
    Err(Error::usage(format!("'{}' is not empty and holds no stream", dir.display())).hint("give a folder of its own"))
}

/// One run.
struct Run<'a> {
    env: Env<'a>,
    request: &'a MirrorRequest,
    pool: &'a Pool,
    filters: Filters,
}

/// A source that was read.
struct Read<'a> {
    source: &'a Source,
    terms: Terms,
    filters: Filters,
    catalog: Catalog,
    chosen: Vec<Item>,
}

impl Run<'_> {
    /// The plan alone.
    fn look(&self, sources: &[Source], keys: Option<&Keys>) -> Result<MirrorReport> {
        let read = self.read(sources, Network::Ask)?;
        let upstream = Upstreams::of(&read);
        let plan = match keys {
            Some(keys) => keys::with(&self.request.dir, keys, |publisher| self.plan(publisher, &upstream)),
            None => {
                let dir = &self.request.dir;
                self.plan(Publisher { dir, sign: None, check: None, now: Timestamp::now() }, &upstream)
            }
        }?;
        let files = Files::of(&self.request.dir, &plan, &read);
        let mut missing = files.missing(self.env.reporter)?;
        missing.retain(|file| !file.places.is_empty());
        Ok(report(&plan, &files, &missing, Vec::new()))
    }

    /// Reads the metadata, and once more when something does not fit: a source
    /// in the middle of an update is not an error.
    fn mirror(&self, sources: &[Source], keys: &Keys) -> Result<MirrorReport> {
        self.twice(sources, |read| self.bring(read, keys))
    }

    fn twice(&self, sources: &[Source], bring: impl Fn(&[Read<'_>]) -> Result<MirrorReport>) -> Result<MirrorReport> {
        let before = match self.read(sources, Network::Ask) {
            // A document that does not fit its index, or its signature.
            Err(error) if error.kind() == Kind::Refused => {
                tracing::info!(%error, "the metadata is fetched anew");
                return bring(&self.read(sources, Network::Anew)?);
            }
            read => read?,
        };
        let error = match bring(&before) {
            Err(error) if matches!(error.kind(), Kind::Refused | Kind::NotFound) => error,
            done => return done,
        };
        tracing::info!(%error, "the metadata is fetched anew");
        let after = self.read(sources, Network::Anew)?;
        // The servers have nothing else: the first error is the one that counts.
        if before.iter().zip(&after).all(|(before, after)| before.catalog.same_as(&after.catalog)) {
            return Err(error);
        }
        bring(&after)
    }

    fn read<'s>(&self, sources: &'s [Source], network: Network) -> Result<Vec<Read<'s>>> {
        let fetcher = self.env.fetcher()?;
        let read = block_on(async {
            let mut read = Vec::new();
            for source in sources {
                read.push(self.read_one(source, &fetcher, network).await?);
            }
            Ok(read)
        })?;
        if let Some(one) = read.first()
            && read.iter().all(|read| read.chosen.is_empty())
        {
            return Err(one.catalog.nothing(&one.source.name, &one.filters)?);
        }
        Ok(read)
    }

    async fn read_one<'s>(&self, source: &'s Source, fetcher: &Fetcher, network: Network) -> Result<Read<'s>> {
        let terms = Terms::of(self.env, source)?;
        let filters = terms.without_trust(self.filters.clone(), source)?.with_defaults(&source.filters);
        let reader = Reader {
            pool: self.pool,
            env: self.env,
            fetcher: fetcher.clone(),
            source,
            terms: &terms,
            allow_older: self.request.from.allow_older,
            alternatives: false,
        };
        // Metadata that is kept whole is all that the index leads to.
        let every = Filters::default();
        let needed = if self.request.sign.is_some() { &filters } else { &every };
        let catalog = reader.read(needed, network).await?;
        let offers = catalog.select(&filters, self.request.max)?.fit(self.env)?.offers;
        Ok(Read { source, terms, filters, chosen: offers.into_iter().map(|offer| offer.item).collect(), catalog })
    }

    fn plan(&self, publisher: Publisher<'_>, upstream: &Upstreams<'_>) -> Result<Plan> {
        publisher.plan(&upstream.list(), self.request.keep)
    }

    fn bring(&self, read: &[Read<'_>], keys: &Keys) -> Result<MirrorReport> {
        let dir = &self.request.dir;
        let upstream = Upstreams::of(read);
        let mut plan = keys::with(dir, keys, |publisher| self.plan(publisher, &upstream))?;
        let whole = plan.clone();
        let files = Files::of(dir, &whole, read);
        let mut missing = files.missing(self.env.reporter)?;
        let lost = block_on(files.fetch(&missing, self.env))?;
        missing.retain(|file| !lost.contains(file.path));
        plan.lose(&lost);
        let published = keys::with(dir, keys, |publisher| {
            publisher.announce(missing.iter().map(|missing| missing.path))?;
            files.place(&missing)?;
            publisher.publish(&upstream.list(), self.request.keep, &lost)
        })?;
        files.clear()?;
        self.remember(read)?;
        Ok(report(&plan, &files, &missing, published.documents))
    }
}

impl Run<'_> {
    /// What is older than this will be refused from now on.
    fn remember(&self, read: &[Read<'_>]) -> Result<()> {
        read.iter().try_for_each(|read| {
            let files: Vec<&[u8]> = read.catalog.files().map(|file| file.bytes.as_slice()).collect();
            let (store, older) = (read.source.store(), self.request.from.allow_older);
            read.catalog.remember(self.pool, read.source, &read.terms, older)?;
            self.pool.commit(&store, &files, |generation| read.catalog.keep(generation, older))
        })
    }
}

/// One source's document, with what was chosen of it.
struct Part<'a> {
    content_id: &'a str,
    document: &'a [u8],
    chosen: Vec<Item>,
    filters: &'a Filters,
    signer: Option<String>,
}

/// The documents of all sources.
struct Upstreams<'a>(Vec<Part<'a>>);

impl<'a> Upstreams<'a> {
    fn of(read: &'a [Read<'_>]) -> Self {
        let mut parts = Vec::new();
        for Read { catalog, chosen, filters, .. } in read {
            for listed in &catalog.products {
                let content_id = listed.entry.content_id.as_str();
                let chosen = chosen.iter().filter(|item| item.content_id() == content_id).cloned().collect();
                let (document, signer) = (&listed.document.text, listed.document.signer());
                parts.push(Part { content_id, document, chosen, filters, signer });
            }
        }
        Upstreams(parts)
    }

    fn list(&self) -> Vec<Upstream<'_>> {
        let upstream = self.0.iter().map(|part| Upstream {
            content_id: part.content_id,
            document: part.document,
            chosen: &part.chosen,
            filters: part.filters,
            signer: part.signer.as_deref(),
        });
        upstream.collect()
    }
}

fn report(plan: &Plan, files: &Files<'_>, missing: &[Missing<'_>], documents: Vec<String>) -> MirrorReport {
    MirrorReport {
        fetched: missing.iter().map(|missing| line(missing.item)).collect(),
        removed: plan.remove.iter().filter(|item| item.path.is_some()).map(line).collect(),
        files: files.count(),
        bytes: files.bytes(),
        documents,
    }
}

fn line(item: &Item) -> MirroredFile {
    MirroredFile {
        product: item.product().to_owned(),
        version: item.version().to_owned(),
        item: item.name().to_owned(),
        path: item.path.as_ref().map(ToString::to_string).unwrap_or_default(),
        size: item.size.unwrap_or_default(),
    }
}

/// Refuses what the disk cannot hold, before anything is fetched.
fn check_space(dir: &Path, needed: u64) -> Result<()> {
    let free = fs::free_space(dir)?;
    if needed > free {
        return Err(Error::failed(format!(
            "the disk of '{}' is too small: {} to fetch, {} free",
            dir.display(),
            ByteSize(needed),
            ByteSize(free)
        ))
        .hint("narrower filters or --max choose less"));
    }
    Ok(())
}
