//! Streams: the documents that say which images exist (simplestreams
//! `index:1.0` and `products:1.0`), the filters that choose among them, the
//! sources that offer them, and writing a stream of one's own.
//!
//! Plain functions on bytes and folders: nothing here opens a socket.
//!
//! The format in short. An *index* maps content ids to documents. A *products*
//! document has four levels: the whole, products, versions, items. *Inheritance*:
//! an item has the attributes of the levels above it, the nearest one winning.
//! *Aliases*: `_aliases` at the top give attributes to every level that has a
//! certain key and value. Paths are from the stream's root.

mod armor;
mod clearsign;
pub mod filter;
pub mod incus;
pub mod index;
mod json;
pub mod key;
#[cfg(test)]
mod pgp_testing;
mod policy;
pub mod product;
pub mod publish;
pub mod signed;
pub mod source;

pub use filter::{Filter, Filters};
pub use index::{Index, IndexEntry, parse_index};
pub use product::{Item, Products, parse_products};
pub use source::{Source, Sources};

/// The format of an index document.
pub const INDEX_FORMAT: &str = "index:1.0";
/// The format of a products document.
pub const PRODUCTS_FORMAT: &str = "products:1.0";
/// The datatype of streams whose items are files to download.
pub const IMAGE_DOWNLOADS: &str = "image-downloads";

/// Says what is wrong with the name of a product, version or item, if anything.
///
/// Such names are shown to people and compared, never used as paths; so all
/// that is refused is what no honest publisher writes and what would spoil a terminal.
fn wrong_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if name.len() > 255 {
        return Some("is longer than 255 bytes");
    }
    name.chars().any(char::is_control).then_some("holds a control character")
}

/// As [`wrong_name`], for a content id. Other clients make a file name of it,
/// so one that leads elsewhere is an attack on them.
fn wrong_content_id(id: &str) -> Option<&'static str> {
    let path = id.starts_with('.') || id.contains(['/', '\\']);
    wrong_name(id).or(path.then_some("looks like a path"))
}
