//! Fetching images: what the filters choose of a source's catalog is brought
//! into the pool, every byte verified before it has a final name. Records and
//! metadata change together, at the very end.

mod container;

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::catalog::{Catalog, Network, Offer, Reader, Selection, Terms};
use super::intake::{Intake, Wanted};
use super::{Env, images};
use crate::base::{Address, Context as _, Error, ImageId, Kind, RelPath, Result, interrupt};
use crate::fetch::Fetcher;
use crate::pool::{Generation, ImageRecord, Pool};
use crate::stream::filter::Filters;
use crate::stream::source::{Signing, Source, Sources};

/// How many items are fetched side by side.
const PARALLEL: usize = 4;

/// What to fetch and from where.
#[derive(Clone, Debug, Default)]
pub struct SyncRequest {
    /// Where from.
    pub from: FromSources,
    /// Use no network: what was verified last says what there is.
    pub offline: bool,
    /// How many versions of each product.
    pub max: usize,
    /// Keep older versions.
    pub keep: bool,
    /// Only look.
    pub dry_run: bool,
    /// Which images.
    pub filters: Vec<String>,
    /// Images of every architecture, where the filters name none; else this machine's.
    pub every_arch: bool,
    /// Container images: of each version metadata and one root, in place of what the source's filters choose.
    pub container: bool,
    /// That nothing matches is a report without images, and no error.
    pub none_is_fine: bool,
}

/// Sources, and on what terms they are taken.
#[derive(Clone, Debug, Default)]
pub struct FromSources {
    /// Names or URLs, to be tried in this order; none: as the settings say.
    pub sources: Vec<String>,
    /// A file with the keys to trust, in place of the sources' own.
    pub keyring: Option<PathBuf>,
    /// Where the index is, from the sources' roots, in place of what they say.
    pub path: Option<RelPath>,
    /// Take metadata that nobody signed.
    pub unsigned: bool,
    /// Take metadata that is older than what was verified last, or than the source allows.
    pub allow_older: bool,
}

impl FromSources {
    /// The sources that are meant.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown name, [`Kind::Usage`] for a wrong URL or source file.
    pub(super) fn load(&self, env: Env<'_>) -> Result<Vec<Source>> {
        let default = [env.settings.defaults.source.clone()];
        let names = if self.sources.is_empty() { &default[..] } else { &self.sources };
        names.iter().map(|name| self.one(env, name)).collect()
    }

    fn one(&self, env: Env<'_>, name: &str) -> Result<Source> {
        let mut source = if name.contains("://") {
            Source::from_url(name, self.keyring.as_deref())?
        } else {
            Sources::load(&env.settings.stream_dirs)?.get(name)?.clone()
        };
        if let Some(keyring) = &self.keyring {
            let keyring = std::path::absolute(keyring).context(|| "finding the keyring".into())?;
            source = source.with_keyring(keyring);
        }
        if let Some(path) = &self.path {
            source = source.at_path(path.clone());
        }
        if self.unsigned {
            source.signing = Signing::Waived;
        }
        Ok(source)
    }
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
    /// What the file is.
    pub ftype: String,
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
    /// Images that newer ones replaced, or that are not offered any more.
    pub retired: Vec<ImageId>,
}

/// All sources that can be named.
///
/// # Errors
/// [`Kind::Usage`] for a source file that is wrong.
pub fn sources(env: Env<'_>) -> Result<Vec<Source>> {
    Ok(Sources::load(&env.settings.stream_dirs)?.iter().cloned().collect())
}

/// Runs downloads to their end, all on this thread: what is heavy about them,
/// hashing and writing, has threads of its own, and waking others for a small
/// answer takes longer than reading it.
///
/// # Errors
/// What `work` returns.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "starting the downloads".into())?;
    let done = runtime.block_on(work);
    // Nothing may hold a command back that was interrupted.
    runtime.shutdown_background();
    done
}

/// Fetches what the first source that can be used offers and the filters
/// choose. Repeatable: what is in the pool is not fetched again, what an
/// interrupted sync began is resumed. The source's records change all at once,
/// when everything is there.
///
/// # Errors
/// [`Kind::Refused`] when anything cannot be verified, [`Kind::NotFound`] when
/// nothing matches, [`Kind::Failed`] when the source cannot be reached; with
/// several sources, what the last one says.
pub fn sync(env: Env<'_>, request: &SyncRequest) -> Result<SyncReport> {
    let sources = request.from.load(env)?;
    let filters = match request.every_arch {
        true => Filters::parse(&request.filters)?,
        false => images::with_default_arch(&request.filters)?,
    };
    let filters = if request.container { container::filters(filters)? } else { filters };
    let pool = env.pool()?;
    let _lock = pool.lock_shared()?;
    let fetcher = env.fetcher()?;
    for (n, source) in sources.iter().enumerate() {
        let run = Run { env, pool: &pool, source, others: &sources, request };
        match run.sync(&fetcher, &filters) {
            Err(error) if n + 1 < sources.len() && passable(error.kind()) => {
                let causes: String = error.causes().iter().map(|cause| format!(": {cause}")).collect();
                env.reporter.warn(&format!("{error}{causes}; trying '{}'", sources[n + 1].name));
            }
            done => return done,
        }
    }
    Err(Error::usage("no source is given"))
}

/// Whether another source may have what this one did not give.
fn passable(kind: Kind) -> bool {
    matches!(kind, Kind::Failed | Kind::TimedOut | Kind::NotFound | Kind::Refused)
}

/// One sync from one source.
struct Run<'a> {
    env: Env<'a>,
    pool: &'a Pool,
    source: &'a Source,
    /// All sources that were given: the same content may lie there too.
    others: &'a [Source],
    request: &'a SyncRequest,
}

impl Run<'_> {
    fn sync(&self, fetcher: &Fetcher, filters: &Filters) -> Result<SyncReport> {
        let terms = Terms::of(self.env, self.source)?;
        let filters = terms.without_trust(filters.clone(), self.source)?.with_defaults(&self.source.filters);
        let reader = Reader {
            pool: self.pool,
            env: self.env,
            fetcher: fetcher.clone(),
            source: self.source,
            terms: &terms,
            allow_older: self.request.from.allow_older,
            alternatives: self.others.len() > 1,
        };
        block_on(self.settle(&reader, &filters))
    }

    /// Reads the metadata, and once more when something does not fit: a mirror
    /// in the middle of an update is not an error.
    async fn settle(&self, reader: &Reader<'_>, filters: &Filters) -> Result<SyncReport> {
        let network = if self.request.offline { Network::Offline } else { Network::Ask };
        let (before, error) = match reader.read(filters, network).await {
            Ok(catalog) => match self.take(reader, &catalog, filters).await {
                Err(error) if misfit(&error) => (Some(catalog), error),
                done => return done,
            },
            Err(error) if error.kind() == Kind::Refused => (None, error),
            Err(error) => return Err(error),
        };
        if self.request.offline {
            return Err(error);
        }
        tracing::info!(%error, "the metadata is fetched anew");
        interrupt::check()?;
        match reader.read(filters, Network::Anew).await {
            // The server has nothing else: the first error is the one that counts.
            Ok(catalog) if before.is_some_and(|before| before.same_as(&catalog)) => Err(error),
            Ok(catalog) => self.take(reader, &catalog, filters).await,
            Err(again) => Err(again),
        }
    }

    async fn take(&self, reader: &Reader<'_>, catalog: &Catalog, filters: &Filters) -> Result<SyncReport> {
        let max = (!self.request.container).then_some(self.request.max);
        let Selection { mut offers, products, .. } = catalog.select(filters, max)?.fit(self.env)?;
        if self.request.container {
            offers = container::choose(offers, self.request.max)?;
        }
        offers.retain(|offer| offer.item.path.is_some());
        if offers.is_empty() && !self.request.none_is_fine {
            return Err(catalog.nothing(&self.source.name, filters)?);
        }
        let wanted: Vec<Wanted> = offers.into_iter().map(|offer| self.wanted(offer)).collect::<Result<_>>()?;
        let store = self.source.store();
        let known = self.pool.generation(&store)?;
        let intake = Intake { pool: self.pool, reporter: self.env.reporter, fetcher: &reader.fetcher, known: &known };
        if self.request.dry_run {
            let images = wanted.iter().map(|image| {
                let action = if intake.is_there(image) { Action::Present } else { Action::WouldFetch };
                synced(image, action)
            });
            let images = images.collect();
            let retired = self.outdated(&known, &wanted, &products, filters);
            return Ok(self.report(images, retired));
        }
        if self.request.offline
            && let Some(image) = wanted.iter().find(|image| !intake.is_there(image))
        {
            return Err(
                Error::not_found(format!("{} is not in the pool", image.label())).hint("sync without --offline")
            );
        }
        let taken = self.fetch_all(&intake, &wanted).await?;
        intake.check_pairs(&taken)?;
        let images = wanted.iter().zip(&taken).map(|(image, taken)| synced(image, taken.action)).collect();
        let mut retired = Vec::new();
        let files: Vec<&[u8]> = catalog.files().map(|file| file.bytes.as_slice()).collect();
        catalog.remember(self.pool, self.source, reader.terms, self.request.from.allow_older)?;
        self.pool.commit(&store, &files, |generation| {
            catalog.keep(generation, self.request.from.allow_older)?;
            retired = self.outdated(generation, &wanted, &products, filters);
            for id in &retired {
                if let Some(record) = generation.images.get_mut(id) {
                    record.retired_at = Some(Timestamp::now());
                }
            }
            for mut record in taken.iter().map(|taken| taken.record.clone()) {
                if let Some(old) = generation.images.get(&record.id).filter(|old| old.blob == record.blob) {
                    record.synced_at = old.synced_at;
                }
                generation.images.insert(record.id.clone(), record);
            }
            Ok(())
        })?;
        Ok(self.report(images, retired))
    }

    fn wanted(&self, offer: Offer) -> Result<Wanted> {
        let places = self.places(&offer);
        Wanted::new(&self.source.store(), offer, places)
    }

    /// Where an item's bytes may lie: at the source, at the mirrors that the
    /// stream names, and at the other sources that were given. What counts is its digest.
    fn places(&self, offer: &Offer) -> Vec<Address> {
        let Some(path) = &offer.item.path else { return Vec::new() };
        let others = self.others.iter().filter(|other| other.name != self.source.name);
        let mut places = self.source.places(path, &offer.item.mirrors);
        places.extend(others.map(|other| other.url_of(path)));
        places
    }

    async fn fetch_all(&self, intake: &Intake<'_>, wanted: &[Wanted]) -> Result<Vec<super::intake::Taken>> {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        let fetches = wanted.iter().map(|image| intake.take(image));
        futures_util::stream::iter(fetches).buffered(PARALLEL).try_collect().await
    }

    /// Images of this source that pass the filters and are not chosen any more.
    fn outdated(
        &self,
        known: &Generation,
        wanted: &[Wanted],
        offered: &BTreeSet<String>,
        filters: &Filters,
    ) -> Vec<ImageId> {
        if self.request.keep {
            return Vec::new();
        }
        let current: BTreeSet<&ImageId> = wanted.iter().map(|image| &image.id).collect();
        let products: BTreeSet<&str> = wanted.iter().map(|image| image.key("product_name")).collect();
        let outdated = |record: &&ImageRecord| {
            let product = record.key("product_name");
            record.retired_at.is_none()
                && !current.contains(&record.id)
                && (products.contains(product) || !offered.contains(product))
                && filters.matches(&record.keys)
        };
        known.images.values().filter(outdated).map(|record| record.id.clone()).collect()
    }

    fn report(&self, images: Vec<SyncedImage>, retired: Vec<ImageId>) -> SyncReport {
        SyncReport { source: self.source.name.clone(), images, retired }
    }
}

/// Whether metadata and items do not fit together: the mirror may have changed in between.
fn misfit(error: &Error) -> bool {
    matches!(error.kind(), Kind::Refused | Kind::NotFound)
}

fn synced(image: &Wanted, action: Action) -> SyncedImage {
    SyncedImage {
        id: image.id.clone(),
        action,
        product: image.key("product_name").to_owned(),
        version: image.key("version_name").to_owned(),
        ftype: image.key("ftype").to_owned(),
        size: image.size,
    }
}
