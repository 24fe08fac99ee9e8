//! The end of a console log, fit to be shown: whatever the guest wrote, it
//! cannot move the reader's cursor, colour the terminal or hide text.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::base::harmless::is_direction;
use crate::base::{Kind, Result, fs};

/// How much of the log's end is looked at.
const TAIL: u64 = 256 << 10;

/// What a log was called before it was full, by libvirt's virtlogd and by LXC.
const BEFORE: [&str; 2] = ["0", "1"];

/// The last `count` lines of the log that hold any text; none when there is no log. One that was begun anew is read with
/// the one before it.
///
/// # Errors
/// When the log is there and cannot be read.
pub(super) fn tail(log: &Path, count: usize) -> Result<Vec<String>> {
    let mut bytes = end(log, TAIL)?;
    for number in BEFORE {
        if (bytes.len() as u64) < TAIL {
            let mut before = log.as_os_str().to_owned();
            before.push(format!(".{number}"));
            let mut longer = end(Path::new(&before), TAIL - bytes.len() as u64)?;
            longer.append(&mut bytes);
            bytes = longer;
        }
    }
    Ok(last(&String::from_utf8_lossy(&bytes), count))
}

/// The last so many bytes of a file; none of an absent one.
fn end(log: &Path, most: u64) -> Result<Vec<u8>> {
    let mut file = match fs::open(log) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut read = || {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.by_ref().take(most).read_to_end(&mut bytes)?;
        // Cut meanwhile by whoever keeps it: what stood at its end is at another place now.
        Ok(((bytes.len() as u64) >= length.min(most)).then_some(bytes))
    };
    let bytes = (0..3).map(|_| read()).find_map(std::io::Result::transpose).transpose();
    Ok(bytes.map_err(|error| fs::explain(error, "reading", log))?.unwrap_or_default())
}

/// The last lines of what a console showed, escape sequences removed.
pub(super) fn last(text: &str, count: usize) -> Vec<String> {
    let text = plain(text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|&line| line.to_owned()).collect()
}

/// `text` without escape sequences (ECMA-48) and control characters. Where the
/// cursor jumps or returns, a line ends, as it would for the eye.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => match rest.next() {
                Some('[') => control_sequence(&mut rest, &mut out),
                // Strings: OSC, DCS, SOS, PM, APC, up to BEL or ST.
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut rest),
                // Intermediate bytes, then one final byte.
                Some(' '..='/') => while rest.next().is_some_and(|c| (' '..='/').contains(&c)) {},
                _ => {}
            },
            '\u{9b}' => control_sequence(&mut rest, &mut out),
            '\n' | '\r' => out.push('\n'),
            '\t' => out.push(' '),
            c if c.is_control() || is_direction(c) => {}
            c => out.push(c),
        }
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn control_sequence(rest: &mut Chars<'_>, out: &mut String) {
    // Parameters and intermediates; anything else ends the sequence.
    while rest.next_if(|c| (' '..='?').contains(c)).is_some() {}
    let end = rest.next_if(|c| ('@'..='~').contains(c));
    if matches!(end, Some('H' | 'f' | 'J' | 'A' | 'B' | 'E' | 'F' | 'd')) {
        out.push('\n');
    }
}

fn skip_string(rest: &mut Chars<'_>) {
    // One that never ends must not swallow the log: a line break ends it too.
    while let Some(c) = rest.next_if(|c| *c != '\n') {
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                rest.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_go_and_text_stays() {
        for (raw, shown) in [
            ("plain\r\nnext\n", "plain\n\nnext\n"),
            ("\x1b[0;32m  OK  \x1b[0m Started\n", "  OK   Started\n"),
            ("\x1b]0;evil title\x07seen\n", "seen\n"),
            ("\x1bPdata\x1b\\seen", "seen"),
            ("\x1b]never ends\nseen", "\nseen"),
            ("one\x1b[2;1Htwo", "one\ntwo"),
            ("\x1b(Bseen\x1bcmore\x1b7", "seenmore"),
            ("\u{9b}31mred", "red"),
            ("\x1b[", ""),
            ("\x1b", ""),
            ("50%\r100%", "50%\n100%"),
            ("a\x00\x08b\tc\u{202e}d\u{61c}e", "ab cde"),
            ("\x1b[1\nseen", "\nseen"),
        ] {
            assert_eq!(plain(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn the_tail_is_the_last_lines_with_text() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        assert_eq!(tail(&log, 3).unwrap(), Vec::<String>::new());
        let mut bytes = vec![b'x'; 1 << 20];
        bytes.extend(b"\r\none\r\n\x1b[31mtwo\xff\r\n\r\n\x1b[0m\r\nthree");
        fs::write_new(&log, &bytes, 0o600).unwrap();
        assert_eq!(tail(&log, 2).unwrap(), ["two\u{fffd}", "three"]);
        assert_eq!(tail(&log, 99).unwrap().len(), 4);
        assert_eq!(tail(&log, 0).unwrap().len(), 0);
        // What was said before the log was begun anew.
        for before in ["console.log.0", "console.log.1"] {
            let (dir, before) = (folder.path(), folder.path().join(before));
            fs::write_new(&before, b"before\nsplit ", 0o600).unwrap();
            fs::write_atomic(&dir.join("console.log"), b"line\nafter\n", 0o600).unwrap();
            assert_eq!(tail(&log, 9).unwrap(), ["before", "split line", "after"]);
            fs::remove_file(&before).unwrap();
        }
    }
}
