//! Asking a source what it offers, without fetching any of it.

use std::collections::BTreeMap;

use super::Env;
use super::catalog::{Network, Offer, Reader, Terms};
use super::sync::{FromSources, block_on};
use crate::base::{Error, Kind, Result};
use crate::stream::filter::Filters;

/// What to ask.
#[derive(Clone, Debug, Default)]
pub struct RemoteRequest {
    /// Whom.
    pub from: FromSources,
    /// Use no network: what was verified last says what there is.
    pub offline: bool,
    /// The newest so many versions of each product; `None` for all.
    pub max: Option<usize>,
    /// Which images.
    pub filters: Vec<String>,
}

/// The flattened keys of all items that a source offers, with `item_url` and
/// `source`. No architecture is assumed. Keeps nothing, and remembers what it verified.
///
/// # Errors
/// As [`super::sync::sync`]; matching nothing is none.
pub fn remote(env: Env<'_>, request: &RemoteRequest) -> Result<Vec<BTreeMap<String, String>>> {
    let filters = Filters::parse(&request.filters)?;
    let (pool, fetcher) = (env.pool()?, env.fetcher()?);
    let sources = request.from.load(env)?;
    let mut failed: Option<Error> = None;
    for source in &sources {
        if let Some(error) = failed.take() {
            env.reporter.warn(&format!("{error}; trying '{}'", source.name));
        }
        let terms = Terms::of(env, source)?;
        let filters = terms.without_trust(filters.clone(), source)?.with_defaults(&source.filters);
        let reader = Reader {
            pool: &pool,
            env,
            fetcher: fetcher.clone(),
            source,
            terms: &terms,
            allow_older: request.from.allow_older,
            alternatives: sources.len() > 1,
        };
        let network = if request.offline { Network::Offline } else { Network::Ask };
        let read = block_on(async {
            let read = match reader.read(&filters, network).await {
                // A mirror in the middle of an update is not an error.
                Err(error) if error.kind() == Kind::Refused && network == Network::Ask => {
                    reader.read(&filters, Network::Anew).await
                }
                read => read,
            };
            let catalog = read?;
            let selection = catalog.select(&filters, request.max)?.fit(env)?;
            let nothing = selection.offers.is_empty().then(|| catalog.nothing(&source.name, &filters)).transpose()?;
            Ok((selection, nothing))
        });
        match read {
            Ok((selection, nothing)) => {
                if let Some(nothing) = nothing {
                    env.reporter.note(&nothing.to_string());
                    nothing.hints().iter().for_each(|hint| env.reporter.note(&format!("hint: {hint}")));
                }
                let keys = |offer: Offer| {
                    let mut keys = offer.item.keys;
                    if let Some(path) = &offer.item.path {
                        keys.insert("item_url".into(), source.url_of(path).to_string());
                    }
                    keys.insert("source".into(), source.name.clone());
                    keys.insert("trust".into(), terms.trust().word().into());
                    keys
                };
                return Ok(selection.offers.into_iter().map(keys).collect());
            }
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| Error::usage("no source is given")))
}
