//! XML as a tree that is written once: no text reaches a document but through
//! here, and all of it is escaped.

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

use crate::base::{Error, Result};

/// One element with its attributes and content.
#[derive(Clone, Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: Option<String>,
    children: Vec<Element>,
}

/// An empty element.
pub(super) fn element(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), text: None, children: Vec::new() }
}

impl Element {
    /// With this attribute.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// With this text.
    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// With this element in it, behind those that are there.
    pub(super) fn has(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// With these elements in it, behind those that are there.
    pub(super) fn all(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// The document.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] for text with characters that XML cannot hold (XML 1.0, section 2.2).
    pub(super) fn document(&self) -> Result<String> {
        let mut bytes = Vec::new();
        self.write(&mut Writer::new(&mut bytes))?;
        String::from_utf8(bytes).map_err(|error| Error::failed("writing XML").because(error))
    }

    fn write(&self, writer: &mut Writer<&mut Vec<u8>>) -> Result<()> {
        let mut start = BytesStart::new(self.name);
        for (name, value) in &self.attributes {
            check(value)?;
            start.push_attribute((*name, value.as_str()));
        }
        let mut put = |event| writer.write_event(event).map_err(|error| Error::failed("writing XML").because(error));
        if self.text.is_none() && self.children.is_empty() {
            return put(Event::Empty(start));
        }
        put(Event::Start(start))?;
        if let Some(text) = &self.text {
            check(text)?;
            put(Event::Text(BytesText::new(text)))?;
        }
        for child in &self.children {
            child.write(writer)?;
        }
        writer
            .write_event(Event::End(BytesEnd::new(self.name)))
            .map_err(|error| Error::failed("writing XML").because(error))
    }
}

fn check(text: &str) -> Result<()> {
    let unfit = |c: char| c.is_control() && c != '\n' || matches!(c, '\u{fffe}' | '\u{ffff}');
    match text.chars().find(|c| unfit(*c)) {
        None => Ok(()),
        Some(c) => Err(Error::usage(format!("{c:?} cannot be said to libvirt")).hint("leave control characters out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_its_place() {
        let nasty = "a\"b'c<d>&e]]>\n<!--&#0;";
        let document = element("a").with("b", nasty).has(element("c").text(nasty)).document().unwrap();
        let read = roxmltree::Document::parse(&document).unwrap();
        let root = read.root_element();
        // A line break in an attribute is read as a blank (XML 1.0, section 3.3.3), or came as a reference.
        assert_eq!(root.attribute("b").unwrap().replace(' ', "\n"), nasty);
        assert_eq!(root.first_element_child().unwrap().text(), Some(nasty));
        assert_eq!(root.children().count(), 1);
        for bad in ["\0", "\u{8}", "\u{1b}[0m", "\u{ffff}"] {
            element("a").text(bad).document().unwrap_err();
            element("a").with("b", bad).document().unwrap_err();
        }
    }
}
