//! Strict JSON, read straight into the shape that the caller wants.
//!
//! Stricter than RFC 8259 asks: a key that stands twice in one object is
//! refused (two readers may pick different ones), also inside parts that
//! nobody reads. Nesting is bounded by `serde_json` at 128 levels. Errors carry
//! the path to the place, as in `products.P.versions.V`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

use crate::base::name::quoted;
use crate::base::{Error, Result};

/// Text that points into the document where no escape stands in the way.
pub type Text<'a> = Cow<'a, str>;

/// A value that survives flattening: all but objects, lists and null.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// A string.
    Text(Text<'a>),
    /// A whole number from 0.
    Unsigned(u64),
    /// A whole number below 0.
    Negative(i64),
    /// Any other number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
}

impl Scalar<'_> {
    /// As filters and records see it: booleans are `True` and `False`, as every
    /// simplestreams client has it from Python.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Scalar::Text(text) => Cow::Borrowed(text),
            Scalar::Unsigned(number) => Cow::Owned(number.to_string()),
            Scalar::Negative(number) => Cow::Owned(number.to_string()),
            // Debug keeps the ".0" that tells a float from an integer.
            Scalar::Float(number) => Cow::Owned(format!("{number:?}")),
            Scalar::Bool(true) => Cow::Borrowed("True"),
            Scalar::Bool(false) => Cow::Borrowed("False"),
        }
    }
}

/// What reading one document keeps besides its values.
#[derive(Debug, Default)]
struct State<'de> {
    /// Where an error happened, collected from the inside out while it travels up.
    place: RefCell<Vec<String>>,
    /// The keys seen so far in each object that is open, outermost first: one
    /// list for all, because one for each object would cost an allocation.
    keys: RefCell<Vec<Text<'de>>>,
}

impl State<'_> {
    fn passed(&self, key: &str) {
        self.place.borrow_mut().push(key.to_owned());
    }

    fn path(&self) -> Option<String> {
        let steps = self.place.borrow();
        if steps.is_empty() {
            return None;
        }
        let steps: Vec<&str> = steps.iter().rev().map(String::as_str).collect();
        Some(quoted(&steps.join(".")))
    }
}

/// Something that is filled from the fields of an object.
pub(super) trait Fields<'de> {
    /// Takes the value of `key`: exactly one of [`Value`]'s methods must be called.
    fn field<A: MapAccess<'de>>(&mut self, key: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error>;
}

/// The value of a field, not read yet.
pub(super) struct Value<'m, 'de, A> {
    map: &'m mut A,
    state: &'m State<'de>,
}

impl<'de, A: MapAccess<'de>> Value<'_, 'de, A> {
    /// A scalar; `None` for an object, a list or null.
    pub(super) fn scalar(self) -> Result<Option<Scalar<'de>>, A::Error> {
        self.map.next_value_seed(ScalarSeed { state: self.state })
    }

    /// A string.
    pub(super) fn text(self) -> Result<Text<'de>, A::Error> {
        self.map.next_value_seed(TextSeed)
    }

    /// A list of strings.
    pub(super) fn texts(self) -> Result<Vec<Text<'de>>, A::Error> {
        self.map.next_value_seed(TextsSeed)
    }

    /// An object, read into `fields`.
    pub(super) fn object<F: Fields<'de>>(self, fields: F) -> Result<F, A::Error> {
        self.map.next_value_seed(ObjectSeed { state: self.state, fields })
    }
}

/// Reads a document that is one object.
///
/// `what` names it in messages.
///
/// # Errors
/// [`crate::base::Kind::Refused`] for anything that is not strict JSON of the
/// expected shape.
pub(super) fn document<'de, F: Fields<'de>>(bytes: &'de [u8], what: &str, fields: F) -> Result<F> {
    let refused = |message: &str| Error::refused(format!("{what} {message}"));
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(refused("begins with a byte order mark, which JSON forbids (RFC 8259 section 8.1)"));
    }
    // One check of the whole is faster than one for every string.
    let text = std::str::from_utf8(bytes).map_err(|error| refused("is not UTF-8 text").because(error))?;
    let state = State::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let seed = ObjectSeed { state: &state, fields };
    let read = seed.deserialize(&mut reader).and_then(|fields| reader.end().map(|()| fields));
    read.map_err(|error| {
        let place = state.path().map(|path| format!(" at {path}")).unwrap_or_default();
        refused(&format!("cannot be read{place}")).because(error)
    })
}

struct ObjectSeed<'t, 'de, F> {
    state: &'t State<'de>,
    fields: F,
}

impl<'de, F: Fields<'de>> DeserializeSeed<'de> for ObjectSeed<'_, 'de, F> {
    type Value = F;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<F, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de, F: Fields<'de>> Visitor<'de> for ObjectSeed<'_, 'de, F> {
    type Value = F;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<F, A::Error> {
        let mut keys = Keys::new(self.state);
        while let Some(key) = map.next_key_seed(TextSeed)? {
            let value = Value { map: &mut map, state: self.state };
            self.fields.field(&key, value).inspect_err(|_| self.state.passed(&key))?;
            keys.add(key)?;
        }
        Ok(self.fields)
    }
}

/// The keys of one object: refuses the second of the same name.
struct Keys<'t, 'de> {
    state: &'t State<'de>,
    /// Where in the list of all open objects this one's keys begin.
    from: usize,
    many: HashSet<Text<'de>>,
}

impl<'t, 'de> Keys<'t, 'de> {
    /// Up to here comparing with each is quicker than hashing; above it a
    /// hostile object must not cost the square of its size.
    const FEW: usize = 24;

    fn new(state: &'t State<'de>) -> Self {
        Keys { state, from: state.keys.borrow().len(), many: HashSet::new() }
    }

    fn add<E: serde::de::Error>(&mut self, key: Text<'de>) -> Result<(), E> {
        let mut keys = self.state.keys.borrow_mut();
        if keys[self.from..].contains(&key) || self.many.contains(&key) {
            return Err(E::custom(format_args!("the key {} stands twice in one object", quoted(&key))));
        }
        if keys.len() < self.from + Self::FEW {
            keys.push(key);
        } else {
            self.many.insert(key);
        }
        Ok(())
    }
}

impl Drop for Keys<'_, '_> {
    fn drop(&mut self) {
        self.state.keys.borrow_mut().truncate(self.from);
    }
}

struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Text<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Text<'de>, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

struct TextsSeed;

impl<'de> DeserializeSeed<'de> for TextsSeed {
    type Value = Vec<Text<'de>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for TextsSeed {
    type Value = Vec<Text<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element_seed(TextSeed)? {
            texts.push(text);
        }
        Ok(texts)
    }
}

/// Reads a scalar and walks over everything else, so that twice-named keys are
/// found there too.
struct ScalarSeed<'t, 'de> {
    state: &'t State<'de>,
}

impl<'de> DeserializeSeed<'de> for ScalarSeed<'_, 'de> {
    type Value = Option<Scalar<'de>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ScalarSeed<'_, 'de> {
    type Value = Option<Scalar<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Text(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Text(Cow::Owned(text.to_owned()))))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Unsigned(number)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(u64::try_from(number).map_or(Scalar::Negative(number), Scalar::Unsigned)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Float(number)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Bool(value)))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element_seed(ScalarSeed { state: self.state })?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        ObjectSeed { state: self.state, fields: Nothing }.visit_map(map)?;
        Ok(None)
    }
}

/// An object of which nothing is kept.
pub(super) struct Nothing;

impl<'de> Fields<'de> for Nothing {
    fn field<A: MapAccess<'de>>(&mut self, _: &Text<'de>, value: Value<'_, 'de, A>) -> Result<(), A::Error> {
        value.scalar().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    fn why(text: &[u8]) -> String {
        let error = document(text, "the test", Nothing).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        format!("{error}: {}", error.causes().join(": "))
    }

    #[test]
    fn refuses_what_two_readers_may_read_differently() {
        for (text, part) in [
            (r#"{"a":1,"a":2}"#, "'a' stands twice"),
            (r#"{"a":1,"\u0061":2}"#, "'a' stands twice"),
            (r#"{"x":{"y":[0,{"b":1,"b":1}]}}"#, "at 'x.y': the key 'b' stands twice"),
            ("\u{feff}{}", "byte order mark"),
            ("", "EOF"),
            ("[]", "expected an object"),
            ("null", "expected an object"),
            ("{} {}", "trailing characters"),
            ("{\"a\":1,}", "trailing comma"),
            ("{\"a\":NaN}", "expected value"),
            ("{\"a\":1\0}", "expected"),
        ] {
            let said = why(text.as_bytes());
            assert!(said.contains(part), "{text}: {said}");
        }
        assert!(why(b"{\"a\":\"\xff\"}").contains("not UTF-8"));
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        for open in ["[", "{\"a\":"] {
            let said = why(format!("{{\"a\":{}", open.repeat(200_000)).as_bytes());
            assert!(said.contains("recursion limit"), "{said}");
        }
    }

    #[test]
    fn many_keys_are_checked_without_squaring() {
        let many: Vec<String> = (0..100_000).map(|n| format!("\"{n}\":0")).collect();
        assert!(document(format!("{{{}}}", many.join(",")).as_bytes(), "x", Nothing).is_ok());
        assert!(why(format!("{{{},\"77777\":0}}", many.join(",")).as_bytes()).contains("'77777' stands twice"));
    }
}
