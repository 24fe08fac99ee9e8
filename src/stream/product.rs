//! Products documents: which images exist (format `products:1.0`).
//!
//! A document is a tree of four levels: the whole, products, versions, items.
//! Every level has attributes, and an item sees those of the levels above it
//! unless it has its own. The tree is kept as it was read, pointing into the
//! document; only items that pass the filters are flattened and checked, so a
//! document of many megabytes costs little more than one pass over its bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

use serde::de::{Error as _, MapAccess};

use super::filter::Filters;
use super::json::{self, Fields, Scalar, Text, Value};
use super::{PRODUCTS_FORMAT, wrong_content_id, wrong_name};
use crate::base::name::quoted;
use crate::base::{Digest, DigestAlgorithm, Error, RelPath, Result};

/// A products document, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Products<'a> {
    what: String,
    content_id: String,
    root: Level<'a>,
}

/// One node of the tree, at any of the four levels.
#[derive(Debug)]
struct Level<'a> {
    name: Text<'a>,
    attributes: Attributes<'a>,
    mirrors: Vec<Text<'a>>,
    /// `None` when the document does not have the key at all.
    children: Option<Vec<Level<'a>>>,
}

type Attributes<'a> = Vec<(Text<'a>, Scalar<'a>)>;

/// An item of a products document, flattened and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Every attribute that it has or inherits, with `content_id`,
    /// `product_name`, `version_name` and `item_name`. Objects, lists and null
    /// are left out; booleans are `True` and `False`.
    pub keys: BTreeMap<String, String>,
    /// Where its file is, from the stream's root. An item need not have a file.
    pub path: Option<RelPath>,
    /// The file's length in bytes. Present when `path` is.
    pub size: Option<u64>,
    /// The strongest digest that the stream gives, SHA-512 before SHA-256. Present when `path` is.
    pub digest: Option<Digest>,
    /// The SHA-256, if the stream gives it: what the pool calls the file.
    pub sha256: Option<Digest>,
    /// Other places that `path` may be fetched from.
    pub mirrors: Vec<String>,
}

impl Item {
    /// The value of a key, empty when it has none.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }
    /// The content id of its document.
    #[must_use]
    pub fn content_id(&self) -> &str {
        self.get("content_id")
    }
    /// The name of its product.
    #[must_use]
    pub fn product(&self) -> &str {
        self.get("product_name")
    }
    /// The name of its version.
    #[must_use]
    pub fn version(&self) -> &str {
        self.get("version_name")
    }
    /// Its own name within the version.
    #[must_use]
    pub fn name(&self) -> &str {
        self.get("item_name")
    }
}

/// Reads a products document. `what` names it in messages.
///
/// Items are not looked at one by one here: [`Products::select`] checks those
/// that it returns.
///
/// # Errors
/// [`crate::base::Kind::Refused`] for another format, anything malformed, a content id
/// other than `expected_content_id`, an alias that is not defined, and two
/// items that give different sums for one path.
pub fn parse_products<'a>(bytes: &'a [u8], expected_content_id: Option<&str>, what: &str) -> Result<Products<'a>> {
    let refused = |message: String| Error::refused(format!("{what} {message}"));
    let read = json::document(bytes, what, LevelFields::new(0, Cow::Borrowed("")))?;
    let (mut root, aliases) = (read.level, read.aliases);
    let format = root.attribute("format").map(Scalar::text);
    if format.as_deref() != Some(PRODUCTS_FORMAT) {
        let format = format.as_deref().map_or("nothing".into(), quoted);
        return Err(refused(format!("says {format} as its format, not '{PRODUCTS_FORMAT}'")));
    }
    let content_id = match root.attribute("content_id") {
        Some(Scalar::Text(id)) => id.clone().into_owned(),
        _ => return Err(refused("has no 'content_id'".into())),
    };
    if let Some(wrong) = wrong_content_id(&content_id) {
        return Err(refused(format!("has the content id {}, which {wrong}", quoted(&content_id))));
    }
    if let Some(expected) = expected_content_id.filter(|expected| *expected != content_id) {
        return Err(refused(format!("has the content id {}, not {}", quoted(&content_id), quoted(expected))));
    }
    if root.children.is_none() {
        return Err(refused("has no 'products'".into()));
    }
    if !aliases.0.is_empty() {
        root.expand(&aliases).map_err(refused)?;
    }
    root.sort(0);
    let products = Products { what: what.to_owned(), content_id, root };
    products.refuse_ambiguous_paths()?;
    Ok(products)
}

impl<'a> Products<'a> {
    /// The document's content id.
    #[must_use]
    pub fn content_id(&self) -> &str {
        &self.content_id
    }

    /// A top-level attribute as text, for example `updated` or `datatype`.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<Cow<'_, str>> {
        self.root.attribute(key).map(Scalar::text)
    }

    /// The names of all products, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.root.children().iter().map(|product| product.name.as_ref())
    }

    /// The items that pass `filters`, product by product (sorted by name),
    /// newest version first.
    ///
    /// With `max`, only the newest so many versions of each product. Items are
    /// filtered first: a newest version that has nothing to offer does not count.
    /// Versions compare bytewise.
    ///
    /// # Errors
    /// Each item by itself: [`crate::base::Kind::Refused`] when it has a file but no plain
    /// relative path, no size, or no digest better than MD5.
    pub fn select<'s>(&'s self, filters: &'s Filters, max: Option<usize>) -> impl Iterator<Item = Result<Item>> + 's {
        self.root
            .children()
            .iter()
            .flat_map(move |product| {
                let versions = product.children().iter();
                let offering = versions.map(move |version| self.offered(product, version, filters));
                offering.filter(|found| !found.is_empty()).take(max.unwrap_or(usize::MAX)).flatten()
            })
            .map(|found| found.item())
    }

    fn found<'s>(&'s self, product: &'s Level<'a>, version: &'s Level<'a>, item: &'s Level<'a>) -> Found<'s, 'a> {
        Found { products: self, levels: [&self.root, product, version, item] }
    }

    fn offered<'s>(&'s self, product: &'s Level<'a>, version: &'s Level<'a>, filters: &Filters) -> Vec<Found<'s, 'a>> {
        let items = version.children().iter();
        items
            .map(|item| self.found(product, version, item))
            .filter(|found| filters.matches_by(|key| found.get(key)))
            .collect()
    }

    /// Two items may share a file, but then they must agree about it: else the
    /// one that is checked first decides which is genuine.
    fn refuse_ambiguous_paths(&self) -> Result<()> {
        // Sorting by a (randomly keyed) hash is cheaper than filling a map of tens of thousands.
        let hasher = RandomState::new();
        let mut files: Vec<(u64, Found<'_, 'a>)> = Vec::new();
        for product in self.root.children() {
            for version in product.children() {
                let found = version.children().iter().map(|item| self.found(product, version, item));
                files.extend(found.filter_map(|found| Some((hasher.hash_one(found.scalar("path")?.text()), found))));
            }
        }
        files.sort_by_key(|(hash, _)| *hash);
        for same in files.chunk_by(|(a, _), (b, _)| a == b).filter(|same| same.len() > 1) {
            let mut known: [Option<Cow<'_, str>>; 4] = Default::default();
            for (_, found) in same {
                for (known, key) in known.iter_mut().zip(["sha512", "sha256", "md5", "size"]) {
                    let Some(value) = found.get(key) else { continue };
                    if !known.get_or_insert_with(|| value.clone()).eq_ignore_ascii_case(&value) {
                        let path = quoted(&found.get("path").unwrap_or_default());
                        let message = format!("has two items for {path} whose {key} differs; one is {}", found.place());
                        return Err(Error::refused(format!("{} {message}", self.what)));
                    }
                }
            }
        }
        Ok(())
    }
}

/// An item in its place in the tree, not flattened.
#[derive(Clone, Copy)]
struct Found<'s, 'a> {
    products: &'s Products<'a>,
    /// The whole, product, version, item.
    levels: [&'s Level<'a>; 4],
}

/// The names that say which item this is; no attribute can replace them.
const IDENTITY: [&str; 4] = ["content_id", "product_name", "version_name", "item_name"];

impl<'s, 'a> Found<'s, 'a> {
    fn identity(self) -> [&'s str; 4] {
        let [_, product, version, item] = self.levels;
        [&self.products.content_id, &product.name, &version.name, &item.name]
    }

    /// The attribute nearest to the item.
    fn scalar(self, key: &str) -> Option<&'s Scalar<'a>> {
        self.levels.into_iter().rev().find_map(|level| level.attribute(key))
    }

    /// What the flattened item has under `key`.
    fn get(self, key: &str) -> Option<Cow<'s, str>> {
        match IDENTITY.iter().position(|name| *name == key) {
            Some(n) => Some(Cow::Borrowed(self.identity()[n])),
            None => self.scalar(key).map(Scalar::text),
        }
    }

    fn place(self) -> String {
        quoted(&self.identity()[1..].join(" "))
    }

    fn item(self) -> Result<Item> {
        let mut keys: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in self.levels.iter().flat_map(|level| &level.attributes) {
            keys.insert(key.to_string(), value.text().into_owned());
        }
        keys.extend(IDENTITY.iter().zip(self.identity()).map(|(key, name)| ((*key).to_owned(), name.to_owned())));
        let refused =
            |message: &str| Error::refused(format!("{}: the item {} {message}", self.products.what, self.place()));
        let path = match self.get("path") {
            Some(path) => Some(path.parse().map_err(|error: Error| refused("has no usable path").because(error))?),
            None => None,
        };
        let size = match self.scalar("size") {
            Some(Scalar::Unsigned(size)) => Some(*size),
            Some(_) => return Err(refused("has a size that is not a whole number")),
            None if path.is_some() => return Err(refused("has no size")),
            None => None,
        };
        let digest = |algorithm: DigestAlgorithm| match self.get(algorithm.name()) {
            Some(hex) => Digest::from_hex(algorithm, &hex)
                .map(Some)
                .map_err(|error| refused("has no usable digest").because(error)),
            None => Ok(None),
        };
        let sha256 = digest(DigestAlgorithm::Sha256)?;
        let digest = digest(DigestAlgorithm::Sha512)?.or_else(|| sha256.clone());
        if path.is_some() && digest.is_none() {
            let has =
                if self.get("md5").is_some() { "has no digest but MD5, which can be forged" } else { "has no digest" };
            return Err(refused(has).hint("whoever publishes the stream must add 'sha256' or 'sha512'"));
        }
        let mirrors = self.levels.iter().rev().map(|level| &level.mirrors).find(|mirrors| !mirrors.is_empty());
        let mirrors = mirrors.into_iter().flatten().map(|mirror| mirror.to_string()).collect();
        Ok(Item { keys, path, size, digest, sha256, mirrors })
    }
}

impl<'a> Level<'a> {
    fn attribute(&self, key: &str) -> Option<&Scalar<'a>> {
        self.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn children(&self) -> &[Level<'a>] {
        self.children.as_deref().unwrap_or_default()
    }

    /// Products and items by name, versions newest first.
    fn sort(&mut self, depth: usize) {
        let children = self.children.as_deref_mut().unwrap_or_default();
        match depth {
            1 => children.sort_unstable_by(|a, b| b.name.cmp(&a.name)),
            _ => children.sort_unstable_by(|a, b| a.name.cmp(&b.name)),
        }
        children.iter_mut().for_each(|child| child.sort(depth + 1));
    }

    /// Aliases: an object that has KEY=VALUE gets what the top says
    /// for that pair, over its own attributes; the pair itself stays.
    fn expand(&mut self, aliases: &Aliases<'a>) -> Result<(), String> {
        for (key, values) in &aliases.0 {
            let Some(Scalar::Text(value)) = self.attribute(key) else { continue };
            if value.is_empty() {
                continue;
            }
            let Some((_, meaning)) = values.iter().find(|(name, _)| name == value) else {
                return Err(format!("uses {} = {}, which its '_aliases' do not define", quoted(key), quoted(value)));
            };
            for (name, new) in meaning {
                match self.attributes.iter_mut().find(|(old, _)| old == name) {
                    Some((_, old)) => *old = new.clone(),
                    None => self.attributes.push((name.clone(), new.clone())),
                }
            }
        }
        self.children.as_deref_mut().unwrap_or_default().iter_mut().try_for_each(|child| child.expand(aliases))
    }
}

/// What each level calls the next one.
const CHILDREN: [&str; 3] = ["products", "versions", "items"];

struct LevelFields<'a> {
    depth: usize,
    level: Level<'a>,
    aliases: Aliases<'a>,
}

impl<'a> LevelFields<'a> {
    fn new(depth: usize, name: Text<'a>) -> Self {
        // An item of Ubuntu's has five.
        let attributes = Vec::with_capacity(6);
        let level = Level { name, attributes, mirrors: Vec::new(), children: None };
        LevelFields { depth, level, aliases: Aliases::default() }
    }
}

impl<'de> Fields<'de> for LevelFields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        match key.as_ref() {
            key if CHILDREN.get(self.depth) == Some(&key) => {
                let children = value.object(ChildFields { depth: self.depth + 1, children: Vec::new() })?;
                self.level.children = Some(children.children);
            }
            "_aliases" if self.depth == 0 => self.aliases = value.object(Aliases::default())?,
            "mirrors" => self.level.mirrors = value.texts()?,
            _ => self.level.attributes.extend(value.scalar()?.map(|scalar| (key.clone(), scalar))),
        }
        Ok(())
    }
}

struct ChildFields<'a> {
    depth: usize,
    children: Vec<Level<'a>>,
}

impl<'de> Fields<'de> for ChildFields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        if let Some(wrong) = wrong_name(key) {
            return Err(A::Error::custom(format_args!("the name {} {wrong}", quoted(key))));
        }
        self.children.push(value.object(LevelFields::new(self.depth, key.clone()))?.level);
        Ok(())
    }
}

/// `{KEY: {VALUE: {attributes}}}`.
#[derive(Default)]
struct Aliases<'a>(Vec<(Text<'a>, Vec<(Text<'a>, Attributes<'a>)>)>);

impl<'de> Fields<'de> for Aliases<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        self.0.push((key.clone(), value.object(AliasValues(Vec::new()))?.0));
        Ok(())
    }
}

struct AliasValues<'a>(Vec<(Text<'a>, Attributes<'a>)>);

impl<'de> Fields<'de> for AliasValues<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        self.0.push((key.clone(), value.object(PlainAttributes(Vec::new()))?.0));
        Ok(())
    }
}

struct PlainAttributes<'a>(Attributes<'a>);

impl<'de> Fields<'de> for PlainAttributes<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        self.0.extend(value.scalar()?.map(|scalar| (key.clone(), scalar)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
