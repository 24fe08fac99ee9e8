//! What filters choose of a catalog, what of it can be had, and why there may be nothing.

use std::collections::BTreeSet;

use super::{Catalog, Document, Listed, Offer};
use crate::base::{Error, RelPath, Result};
use crate::ops::nothing::nothing;
use crate::ops::{Env, images};
use crate::pool::{Chain, Link};
use crate::stream::filter::Filters;
use crate::stream::product::parse_products;

/// What filters choose of a catalog.
pub(in crate::ops) struct Selection {
    /// Product by product, newest version first.
    pub offers: Vec<Offer>,
    /// The names of all products in the documents that were read, chosen or not.
    pub products: BTreeSet<String>,
    /// Why each of the others that pass the filters can be had from nobody.
    unfit: Vec<Error>,
}

impl Selection {
    /// Names what is unfit, and passes it over: somebody else's item is no reason to have none. Whoever asked for
    /// nothing else is told that it is refused.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when nothing else passes the filters.
    pub(in crate::ops) fn fit(self, env: Env<'_>) -> Result<Self> {
        const NAMED: usize = 3;
        let count = self.unfit.len();
        let mut unfit = self.unfit.into_iter();
        if self.offers.is_empty()
            && let Some(first) = unfit.next()
        {
            return Err(if count > 1 { first.hint(format!("so it is with all {count} that match")) } else { first });
        }
        for error in unfit.by_ref().take(NAMED) {
            let causes: String = error.causes().iter().map(|cause| format!(": {cause}")).collect();
            env.reporter.warn(&format!("passed over: {error}{causes}"));
        }
        if count > NAMED {
            env.reporter.warn(&format!("passed over for the same kind of reason: {} more", count - NAMED));
        }
        Ok(Selection { unfit: Vec::new(), ..self })
    }
}

impl Catalog {
    /// The items that pass the filters, the newest `max` versions of each
    /// product. One without a file is an image's id in some cloud.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] for a malformed document; [`crate::base::Kind::Usage`]
    /// for filters with keys that nothing has, when nothing matches.
    pub(in crate::ops) fn select(&self, filters: &Filters, max: Option<usize>) -> Result<Selection> {
        let indexes: Vec<Link> = self.indexes.iter().map(Document::link).collect();
        let (mut offers, mut unfit, mut seen, mut names) = (Vec::new(), Vec::new(), BTreeSet::new(), BTreeSet::new());
        for listed in &self.products {
            let what = format!("'{}'", listed.document.file.kept.url);
            let products = parse_products(&listed.document.text, Some(&listed.entry.content_id), &what)?;
            names.extend(products.names().map(str::to_owned));
            let before = offers.len();
            let link = listed.document.link();
            for item in products.select(filters, max) {
                let item = match item {
                    Ok(item) => item,
                    Err(error) => {
                        unfit.push(error);
                        continue;
                    }
                };
                let path = item.path.as_ref().map(RelPath::to_string).unwrap_or_default();
                let chain = Chain { index: indexes[listed.index].clone(), products: link.clone(), path };
                offers.push(Offer { item, chain });
            }
            if offers.len() == before {
                let every = Filters::default();
                let any = products.select(&every, None).filter_map(Result::ok);
                seen.extend(any.flat_map(|item| item.keys.into_keys()));
            }
        }
        if offers.is_empty()
            && unfit.is_empty()
            && let Some(error) = images::unknown_keys(filters, seen.iter().map(String::as_str))
        {
            return Err(error);
        }
        Ok(Selection { offers, products: names, unfit })
    }

    /// The error when nothing passes the filters.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] for a malformed document.
    pub(in crate::ops) fn nothing(&self, source: &str, filters: &Filters) -> Result<Error> {
        let (every, mut there) = (Filters::default(), Vec::new());
        for Listed { document, .. } in &self.products {
            let products = parse_products(&document.text, None, &format!("'{}'", document.file.kept.url))?;
            there.extend(products.select(&every, None).filter_map(Result::ok).map(|item| item.keys));
        }
        let mut error = nothing(&format!("'{source}' offers no image"), filters, there.iter());
        if !self.unread.is_empty() {
            let kinds: Vec<String> = self.unread.iter().map(|kind| format!("datatype={kind}")).collect();
            error = error.hint(format!("documents that were not read have {}; 'datatype~' reads all", kinds.join(" ")));
        }
        Ok(error.hint("'virga images --remote' with the same --source shows what is offered"))
    }
}
