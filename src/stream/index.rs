//! The index: which documents a stream has (format `index:1.0`).

use std::collections::HashSet;

use serde::de::{Error as _, MapAccess};

use super::json::{self, Fields, Scalar, Text, Value};
use super::{INDEX_FORMAT, PRODUCTS_FORMAT, wrong_content_id};
use crate::base::name::quoted;
use crate::base::{Error, RelPath, Result};

/// An index document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// When it was written (RFC 2822 text).
    pub updated: Option<String>,
    /// What it lists, sorted by content id.
    pub entries: Vec<IndexEntry>,
}

/// One document that an index lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The content id that the document must have. Never a path.
    pub content_id: String,
    /// Where it is, from the stream's root (not from the index).
    pub path: RelPath,
    /// The document's format. Entries without one, or with one that virga does
    /// not know, are kept but must not be followed.
    pub format: Option<String>,
    /// What the document's items are, as in `image-downloads`.
    pub datatype: Option<String>,
    /// When the document was written (RFC 2822 text).
    pub updated: Option<String>,
    /// The products in it.
    pub products: Vec<String>,
}

impl IndexEntry {
    /// Whether it is a products document that virga can read.
    #[must_use]
    pub fn is_products(&self) -> bool {
        self.format.as_deref() == Some(PRODUCTS_FORMAT)
    }

    /// Whether it is another index: indexes may be nested.
    #[must_use]
    pub fn is_index(&self) -> bool {
        self.format.as_deref() == Some(INDEX_FORMAT)
    }
}

/// Reads an index document. `what` names it in messages, as in "the index of source 'ubuntu'".
///
/// # Errors
/// [`crate::base::Kind::Refused`] for another format, anything malformed, a content id or
/// path that could lead anywhere but below the stream's root.
pub fn parse_index(bytes: &[u8], what: &str) -> Result<Index> {
    let read = json::document(bytes, what, IndexFields::default())?;
    if read.format.as_deref() != Some(INDEX_FORMAT) {
        let format = read.format.as_deref().map_or("nothing".into(), quoted);
        return Err(Error::refused(format!("{what} says {format} as its format, not '{INDEX_FORMAT}'")));
    }
    let mut entries = read.entries.ok_or_else(|| Error::refused(format!("{what} has no 'index'")))?.0;
    entries.sort_unstable_by(|a, b| a.content_id.cmp(&b.content_id));
    Ok(Index { updated: read.updated, entries })
}

/// Guards a walk over nested indexes: each is read once, and not too many.
#[derive(Debug, Default)]
pub struct Trail(HashSet<RelPath>);

impl Trail {
    /// Most index documents that one stream may have.
    pub const MOST: usize = 64;

    /// Whether the index at `path` is still to be read; `false` when it was
    /// read before, by another way or in a circle.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when there are too many.
    pub fn enter(&mut self, path: &RelPath) -> Result<bool> {
        let new = self.0.insert(path.clone());
        if self.0.len() > Self::MOST {
            return Err(Error::refused(format!("the stream has more than {} nested indexes", Self::MOST)));
        }
        Ok(new)
    }
}

#[derive(Default)]
struct IndexFields {
    format: Option<String>,
    updated: Option<String>,
    entries: Option<Entries>,
}

impl<'de> Fields<'de> for IndexFields {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        match key.as_ref() {
            "format" => self.format = Some(value.text()?.into_owned()),
            "updated" => self.updated = text(value)?,
            "index" => self.entries = Some(value.object(Entries::default())?),
            _ => drop(value.scalar()?),
        }
        Ok(())
    }
}

#[derive(Default)]
struct Entries(Vec<IndexEntry>);

impl<'de> Fields<'de> for Entries {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        if let Some(wrong) = wrong_content_id(key) {
            return Err(A::Error::custom(format_args!("the content id {} {wrong}", quoted(key))));
        }
        let entry = value.object(EntryFields::default())?;
        let path = entry.path.ok_or_else(|| A::Error::custom(format_args!("{} has no 'path'", quoted(key))))?;
        self.0.push(IndexEntry {
            content_id: key.to_string(),
            path: path.parse().map_err(|error: Error| A::Error::custom(error))?,
            format: entry.format,
            datatype: entry.datatype,
            updated: entry.updated,
            products: entry.products,
        });
        Ok(())
    }
}

#[derive(Default)]
struct EntryFields<'a> {
    path: Option<Text<'a>>,
    format: Option<String>,
    datatype: Option<String>,
    updated: Option<String>,
    products: Vec<String>,
}

impl<'de> Fields<'de> for EntryFields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        match key.as_ref() {
            "path" => self.path = Some(value.text()?),
            "format" => self.format = text(value)?,
            "datatype" => self.datatype = text(value)?,
            "updated" => self.updated = text(value)?,
            "products" => self.products = value.texts()?.into_iter().map(Text::into_owned).collect(),
            _ => drop(value.scalar()?),
        }
        Ok(())
    }
}

/// Text where some is due; other kinds of value count as absent.
fn text<'de, A: MapAccess<'de>>(value: Value<'_, 'de, A>) -> Result<Option<String>, A::Error> {
    Ok(value.scalar()?.and_then(|scalar| match scalar {
        Scalar::Text(text) => Some(text.into_owned()),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    fn index(entries: &str) -> String {
        format!(r#"{{"format":"index:1.0","updated":"Fri, 07 Oct 2022 03:09:23 +0000","index":{{{entries}}}}}"#)
    }

    #[test]
    fn reads_entries_of_every_kind() {
        let text = index(
            r#""com.ubuntu.cloud:released:download": {"datatype":"image-downloads","format":"products:1.0",
                 "path":"streams/v1/com.ubuntu.cloud:released:download.sjson","updated":"u","products":["b","a"],
                 "clouds":[{"region":"r"}]},
               "b": {"path":"streams/v1/more.sjson","format":"index:1.0"},
               "c": {"path":"x.json","format":"products:2.0"},
               "a": {"path":"y.json"}"#,
        );
        let index = parse_index(text.as_bytes(), "the index").unwrap();
        assert_eq!(index.updated.as_deref(), Some("Fri, 07 Oct 2022 03:09:23 +0000"));
        let seen: Vec<_> =
            index.entries.iter().map(|e| (e.content_id.as_str(), e.is_products(), e.is_index())).collect();
        assert_eq!(
            seen,
            [
                ("a", false, false),
                ("b", false, true),
                ("c", false, false),
                ("com.ubuntu.cloud:released:download", true, false)
            ]
        );
        let last = &index.entries[3];
        assert_eq!(last.path.as_str(), "streams/v1/com.ubuntu.cloud:released:download.sjson");
        assert_eq!(
            (last.products.as_slice(), last.updated.as_deref()),
            (["b".into(), "a".into()].as_slice(), Some("u"))
        );
    }

    #[test]
    fn refuses_malformed_documents_with_the_place() {
        for (text, part) in [
            (r#"{"format":"index:1.0"}"#.to_owned(), "the index has no 'index'"),
            (r#"{"index":{}}"#.to_owned(), "says nothing as its format"),
            (r#"{"format":"products:1.0","index":{}}"#.to_owned(), "says 'products:1.0' as its format"),
            (r#"{"format":"index:1.0","index":[]}"#.to_owned(), "at 'index'"),
            (r#"{"format":"index:1.0","index":null}"#.to_owned(), "at 'index'"),
            (index(r#""a":"x""#), "at 'index.a'"),
            (index(r#""a":{}"#), "'a' has no 'path'"),
            (index(r#""a":{"path":3}"#), "at 'index.a.path'"),
            (index(r#""a":{"path":"../x"}"#), "'../x' is not a plain relative path"),
            (index(r#""a":{"path":"http://x/y"}"#), "not a plain relative path"),
            (index(r#""a":{"path":"x","products":[1]}"#), "at 'index.a.products'"),
            (index(r#""../../x":{"path":"x"}"#), "looks like a path"),
            (index(r#""":{"path":"x"}"#), "is empty"),
            (index(r#""a":{"path":"x"},"a":{"path":"y"}"#), "stands twice"),
            ("\u{feff}{}".to_owned(), "byte order mark"),
        ] {
            let error = parse_index(text.as_bytes(), "the index").unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            let said = format!("{error}: {}", error.causes().join(": "));
            assert!(said.contains(part), "{text}\n{said}");
        }
    }

    #[test]
    fn circles_end_and_floods_are_refused() {
        let mut trail = Trail::default();
        let path = |n: usize| format!("{n}.json").parse::<RelPath>().unwrap();
        assert!(trail.enter(&path(0)).unwrap());
        assert!(!trail.enter(&path(0)).unwrap());
        let error = (1..=Trail::MOST).find_map(|n| trail.enter(&path(n)).err()).unwrap();
        assert_eq!(error.kind(), Kind::Refused);
    }
}
