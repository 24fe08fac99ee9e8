//! What the user's configuration says once cloud-init has merged it, as far as that is known outside the guest.

use serde_json::Value;

/// One thing that cloud-init makes configuration of.
#[derive(Debug)]
pub(super) enum Config {
    /// A cloud-config document.
    Plain {
        document: Value,
        /// Whether it states how it is merged.
        own_rules: bool,
    },
    /// What it comes to is known in the guest alone.
    Unknown { what: String, text: String },
    /// The guest fetches it, or it is packed in a way that is not known here: not even its text can be seen.
    Unseen,
}

/// What is said of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Setting<'a> {
    /// Nothing, as far as is known.
    Absent,
    /// This.
    Known(&'a Value),
    /// Something that is known in the guest alone. By whom, and its text where there is one.
    Unknown { what: &'a str, text: &'a str },
}

impl Config {
    /// A document; `own_rules` when something beside it says how it is merged.
    pub fn plain(document: Value, own_rules: bool) -> Self {
        let own_rules = own_rules || document.get("merge_how").or_else(|| document.get("merge_type")).is_some();
        Config::Plain { document, own_rules }
    }
}

/// What the configurations come to for `key`: by cloud-init's rule the last document that has it decides, unless that
/// states rules of its own.
pub(super) fn setting<'a>(configs: &'a [Config], key: &str) -> Setting<'a> {
    let mut found = Setting::Absent;
    for config in configs {
        match config {
            Config::Plain { document, own_rules } => {
                if let Some(value) = document.get(key) {
                    found = match found {
                        Setting::Absent => Setting::Known(value),
                        _ if *own_rules => {
                            Setting::Unknown { what: "the user-data, by merging rules of its own,", text: "" }
                        }
                        _ => Setting::Known(value),
                    };
                }
            }
            Config::Unknown { what, text } if mentions(text, key) => found = Setting::Unknown { what, text },
            Config::Unknown { .. } | Config::Unseen => {}
        }
    }
    found
}

/// As [`setting`], where it is known.
pub(super) fn known<'a>(configs: &'a [Config], key: &str) -> Option<&'a Value> {
    match setting(configs, key) {
        Setting::Known(value) => Some(value),
        Setting::Absent | Setting::Unknown { .. } => None,
    }
}

/// Whether a text may set a key: `key:` is in it, quoted or not, or a path of a JSON patch.
fn mentions(text: &str, key: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    text.match_indices(key).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), &text[at + key.len()..]);
        if before == Some('/') {
            return after.starts_with(['"', '\'', '/']);
        }
        let after = after.trim_start_matches(['"', '\'']).trim_start_matches([' ', '\t']);
        !before.is_some_and(part_of_a_word) && after.starts_with(':')
    })
}

/// Whether a list in a text has `default` as an entry, or a mapping as a key.
pub(super) fn lists_default(text: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    text.match_indices("default").any(|(at, name)| {
        let before = text[..at].trim_end_matches(['"', '\'']);
        let after = text[at + name.len()..].trim_start_matches(['"', '\'']);
        let begins =
            before.trim_end_matches([' ', '\t']).ends_with(['-', '[', ',', '{', '\n']) && !before.ends_with(word);
        begins && !after.starts_with(word)
    })
}
