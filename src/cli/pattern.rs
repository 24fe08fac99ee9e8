//! `--template`: one line an image, put together from its keys.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::name::quoted;
use crate::base::{Error, Result, harmless};

/// Text with `{key}` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Key(String),
}

impl std::str::FromStr for Template {
    type Err = Error;

    /// `{key}` is the key's value, `{{` and `}}` are braces, `\t` and `\n` tab and newline.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format!("the template {} {why}", quoted(text)))
                .hint("as in '{release} {version_name} {item_url}'; write {{ for a brace")
        };
        let (mut parts, mut plain, mut chars) = (Vec::new(), String::new(), text.chars().peekable());
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.next_if_eq(&c).is_some() => plain.push(c),
                '{' => {
                    let key: String = chars.by_ref().take_while(|c| *c != '}').collect();
                    if key.is_empty() || !text.contains(&format!("{{{key}}}")) {
                        return Err(wrong("has a brace without its partner"));
                    }
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Key(key));
                }
                '}' => return Err(wrong("has a brace without its partner")),
                '\\' if chars.next_if_eq(&'t').is_some() => plain.push('\t'),
                '\\' if chars.next_if_eq(&'n').is_some() => plain.push('\n'),
                _ => plain.push(c),
            }
        }
        parts.push(Part::Text(plain));
        Ok(Template(parts))
    }
}

impl Template {
    /// A line for each of `rows`. A key that a row lacks is empty.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] for a key that no row has.
    pub fn lines(&self, rows: &[BTreeMap<String, String>]) -> Result<String> {
        let known: BTreeSet<&str> = rows.iter().flat_map(|row| row.keys().map(String::as_str)).collect();
        for part in &self.0 {
            if let Part::Key(key) = part
                && !rows.is_empty()
                && !known.contains(key.as_str())
            {
                let known: Vec<&str> = known.into_iter().collect();
                return Err(Error::usage(format!("no image has the key {}", quoted(key)))
                    .hint(format!("keys there are: {}", known.join(" "))));
            }
        }
        let value = |row: &BTreeMap<String, String>, part: &Part| match part {
            Part::Text(text) => text.clone(),
            // A value of the stream's stays on its line.
            Part::Key(key) => harmless::line(row.get(key).map_or("", String::as_str)),
        };
        let line = |row| self.0.iter().map(|part| value(row, part)).chain(["\n".into()]).collect::<String>();
        Ok(rows.iter().map(line).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    fn rows() -> Vec<BTreeMap<String, String>> {
        let row = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        vec![row(&[("a", "1"), ("b", "x\ny")]), row(&[("a", "2")])]
    }

    #[test]
    fn fills_in_keys() {
        let lines = |text: &str| text.parse::<Template>().unwrap().lines(&rows()).unwrap();
        assert_eq!(lines("{a}"), "1\n2\n");
        assert_eq!(lines(r"{{{a}}}\t{b}|"), "{1}\tx\u{fffd}y|\n{2}\t|\n");
        assert_eq!(lines("same"), "same\nsame\n");
        assert_eq!("{nothing}".parse::<Template>().unwrap().lines(&[]).unwrap(), "");
    }

    #[test]
    fn tells_what_is_wrong() {
        for text in ["{", "}", "{}", "{a", "a}b"] {
            assert_eq!(text.parse::<Template>().unwrap_err().kind(), Kind::Usage, "{text}");
        }
        let error = "{c}".parse::<Template>().unwrap().lines(&rows()).unwrap_err();
        assert!(error.hints()[0].contains("a b"), "{error}");
    }
}
