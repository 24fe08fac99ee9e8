//! Text that came from a guest, a stream, a server, a file or another program, fit to be shown: no terminal obeys it, and
//! no CI service finds a command in its log.
//!
//! All that is printed goes through here once, where it is printed (`cli/term.rs`); nobody has to know of a text whose it
//! was. What is replaced is seen: U+FFFD stands there.

/// What stands in the place of a character that is not shown.
const INSTEAD: char = '\u{fffd}';

/// Characters that turn the direction of the text around them, so that it reads otherwise than it is.
#[must_use]
pub fn is_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Control characters (the eight-bit ones too), marks of direction, and Unicode's own ends of a line.
#[must_use]
pub fn is_unfit(c: char) -> bool {
    c.is_control() || is_direction(c) || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Text that stays on its line: a name, a cell, a stage.
#[must_use]
pub fn line(text: &str) -> String {
    without_commands(text.chars().map(|c| if is_unfit(c) { INSTEAD } else { c }).collect())
}

/// Text of several lines, in which tabs are kept as well: a listing, a message with a piece of a file in it.
#[must_use]
pub fn lines(text: &str) -> String {
    let tabbed = |piece: &str| piece.split('\t').map(line).collect::<Vec<_>>().join("\t");
    let whole = |text: &str| without_commands(tabbed(text.strip_suffix('\r').unwrap_or(text)));
    text.split('\n').map(whole).collect::<Vec<_>>().join("\n")
}

/// A JSON document, of the same meaning. There is nothing unfit outside of its strings but ends of lines.
#[must_use]
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // All of these are below U+FFFF.
            _ if is_unfit(c) && c != '\n' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            '#' if out.trim_end_matches(is_unseen).ends_with('#') => out.push_str("\\u0023"),
            _ => out.push(c),
        }
    }
    out
}

/// Characters that are not seen, and that some of those who compare texts pass over (.NET's way, which GitHub's runner has).
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{e0000}'..='\u{e0fff}')
}

/// As [`without_plain_commands`], also where it is broken up by what is not seen, which is seen then.
fn without_commands(line: String) -> String {
    if line.contains(is_unseen) {
        let plain: String = line.chars().filter(|c| !is_unseen(*c)).collect();
        if without_plain_commands(plain.clone()) != plain {
            return without_plain_commands(line.replace(is_unseen, &INSTEAD.to_string()));
        }
    }
    without_plain_commands(line)
}

/// Takes from a line what CI services take for an order to themselves: GitHub's `::name::`, with blanks before it or
/// not, and `##[name]`, Azure's `##vso[name]`, `TeamCity`'s `##teamcity[name]`, wherever it stands.
fn without_plain_commands(mut line: String) -> String {
    let mut from = 0;
    while let Some(at) = line[from..].find("##") {
        from += at + 1;
        if line[from + 1..].trim_start_matches(|c: char| c.is_ascii_alphabetic()).starts_with('[') {
            line.insert(from, INSTEAD);
        }
    }
    let text = line.trim_start();
    if text.strip_prefix("::").is_some_and(|rest| rest.contains("::")) {
        line.insert(line.len() - text.len(), INSTEAD);
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_seen_instead() {
        for (text, shown) in [
            ("plain, ä, 漢, 🦀, #1 ##2 a::b::c ::1", "plain, ä, 漢, 🦀, #1 ##2 a::b::c ::1"),
            ("\x1b]52;c;aGk=\x07", "�]52;c;aGk=�"),
            ("\u{9b}31mred\x7f\0", "�31mred��"),
            ("one\r\ntwo\tthree\u{2028}four\u{85}", "one��two�three�four�"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}e", "a�b�c�d�e"),
            ("::error file=a.c::x", "�::error file=a.c::x"),
            (" \u{a0}::set-output name=a::x", " \u{a0}�::set-output name=a::x"),
            ("so ##[error]x, ##vso[task.complete]", "so #�#[error]x, #�#vso[task.complete]"),
            ("###teamcity[x]", "##�#teamcity[x]"),
            ("::error:\u{ad}:x", "::error:�:x"),
            ("\u{200b}:\u{feff}:error::x", "�:�:error::x"),
            ("#\u{2060}#[error]x \u{fe0f}", "#�#[error]x �"),
            ("👩\u{200d}🚀 soft\u{ad}ly", "👩\u{200d}🚀 soft\u{ad}ly"),
        ] {
            assert_eq!(line(text), shown);
            assert_eq!(line(&line(text)), shown, "once is enough");
        }
        assert_eq!(lines("a\tb\r\n  ::stop-commands::x\n\x1b[2J\n"), "a\tb\n  �::stop-commands::x\n�[2J\n");
        assert_eq!(lines("\t::error::x"), "\t�::error::x");
    }

    proptest! {
        #[test]
        fn json_means_the_same(text in any::<String>(), marks in "[#\\[\u{202e}\u{9b}\u{2028}\x7f]{0,9}") {
            let value = serde_json::json!({ text.clone(): [marks, text] });
            let shown = json(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert!(!shown.contains("##") && !shown.chars().any(|c| c != '\n' && is_unfit(c)), "{}", shown);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
