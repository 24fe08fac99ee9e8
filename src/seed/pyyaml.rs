//! What PyYAML refuses and YAML allows: tabs, and dates that there are not. cloud-init would read nothing of the document.
//!
//! It is scanned as PyYAML scans it (`yaml/scanner.py`), and no further than to tell where a scalar begins and ends: in
//! quotes, in the lines of a block scalar and in comments a tab is fine, and nowhere else.

use crate::base::name::quoted;

/// What PyYAML refuses about a document, and where; `None` where it finds nothing of that kind.
pub(super) fn refuses(text: &str) -> Option<String> {
    if !text.contains('\t') && !text.as_bytes().windows(6).any(begins_date) {
        return None;
    }
    match Scanner::new(text).scan() {
        Err(Stop::Tab { line, column }) => Some(format!("tab at line {line}, column {column}: cloud-init refuses it")),
        Err(Stop::Date { line, text }) => {
            Some(format!("{} at line {line} is no date, and cloud-init fails on it: write it in quotes", quoted(&text)))
        }
        // What else is wrong the parser tells better.
        Err(Stop::Other) | Ok(()) => None,
    }
}

fn begins_date(bytes: &[u8]) -> bool {
    bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-' && bytes[5].is_ascii_digit()
}

/// Why no more is scanned.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Tab { line: usize, column: usize },
    Date { line: usize, text: String },
    Other,
}

type Scanned = Result<(), Stop>;

/// The end of the text, as in PyYAML.
const END: char = '\0';

fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_blank(c: char) -> bool {
    matches!(c, END | ' ' | '\t') || is_break(c)
}

struct Scanner {
    chars: Vec<char>,
    at: usize,
    line: usize,
    column: isize,
    /// The column of the block collection that it is in, and of those around it; -1 in none.
    indent: isize,
    indents: Vec<isize>,
    /// How many brackets are open.
    flow: usize,
    /// Whether a key may begin here, and where one did, outside of brackets: line and column.
    key_may_begin: bool,
    key: Option<(usize, isize)>,
    /// Whether a tag says what the next scalar is.
    tagged: bool,
}

impl Scanner {
    fn new(text: &str) -> Self {
        Scanner {
            chars: text.trim_start_matches('\u{feff}').chars().collect(),
            at: 0,
            line: 1,
            column: 0,
            indent: -1,
            indents: Vec::new(),
            flow: 0,
            key_may_begin: true,
            key: None,
            tagged: false,
        }
    }

    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or(END)
    }

    fn forward(&mut self, count: usize) {
        for _ in 0..count {
            let Some(c) = self.chars.get(self.at).copied() else { return };
            self.at += 1;
            if is_break(c) && !(c == '\r' && self.peek(0) == '\n') {
                self.line += 1;
                self.column = 0;
            } else {
                self.column += 1;
            }
        }
    }

    fn skip(&mut self, is: impl Fn(char) -> bool) {
        while self.at < self.chars.len() && is(self.peek(0)) {
            self.forward(1);
        }
    }

    /// At what ends or begins a document.
    fn at_separator(&self) -> bool {
        let three = [self.peek(0), self.peek(1), self.peek(2)];
        self.column == 0 && (three == ['-'; 3] || three == ['.'; 3]) && is_blank(self.peek(3))
    }

    fn unwind(&mut self, column: isize) {
        while self.flow == 0 && self.indent > column {
            self.indent = self.indents.pop().unwrap_or(-1);
        }
    }

    fn deepen(&mut self, column: isize) {
        if self.flow == 0 && self.indent < column {
            self.indents.push(self.indent);
            self.indent = column;
        }
    }

    /// Something begins that may turn out to be a key.
    fn begin(&mut self) {
        if self.flow == 0 && self.key_may_begin {
            self.key = Some((self.line, self.column));
        }
    }

    fn scan(mut self) -> Scanned {
        loop {
            loop {
                self.skip(|c| c == ' ');
                if self.peek(0) == '#' {
                    self.skip(|c| !is_break(c));
                }
                if !is_break(self.peek(0)) {
                    break;
                }
                self.forward(1);
                self.key_may_begin |= self.flow == 0;
            }
            if self.at >= self.chars.len() {
                return Ok(());
            }
            self.unwind(self.column);
            self.token()?;
        }
    }

    fn token(&mut self) -> Scanned {
        let (c, next) = (self.peek(0), self.peek(1));
        if c == '%' && self.column == 0 {
            self.unwind(-1);
            self.skip(|c| !is_break(c));
            return Ok(());
        }
        if self.at_separator() {
            self.unwind(-1);
            (self.key, self.key_may_begin) = (None, false);
            self.forward(3);
            return Ok(());
        }
        let tagged = std::mem::take(&mut self.tagged);
        match c {
            '\t' => return Err(Stop::Tab { line: self.line, column: self.column.unsigned_abs() + 1 }),
            '[' | '{' => {
                self.begin();
                self.flow += 1;
                self.key_may_begin = true;
                self.forward(1);
            }
            ']' | '}' => {
                self.flow = self.flow.saturating_sub(1);
                self.key_may_begin = false;
                self.forward(1);
            }
            ',' => {
                self.key_may_begin = true;
                self.forward(1);
            }
            '-' if is_blank(next) => {
                self.deepen(self.column);
                self.key_may_begin = true;
                self.forget_key();
                self.forward(1);
            }
            '?' if self.flow > 0 || is_blank(next) => {
                self.deepen(self.column);
                self.key_may_begin = self.flow == 0;
                self.forget_key();
                self.forward(1);
            }
            ':' if self.flow > 0 || is_blank(next) => {
                let key = self.key.filter(|(line, _)| self.flow == 0 && *line == self.line);
                self.deepen(key.map_or(self.column, |(_, column)| column));
                self.key_may_begin = self.flow == 0 && key.is_none();
                self.forget_key();
                self.forward(1);
            }
            '*' | '&' => {
                self.begin();
                self.key_may_begin = false;
                self.tagged = tagged;
                self.forward(1);
                self.skip(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            }
            '!' => {
                self.begin();
                (self.key_may_begin, self.tagged) = (false, true);
                self.skip(|c| !is_blank(c) && !matches!(c, '{' | '}'));
            }
            '|' | '>' if self.flow == 0 => return self.block_scalar(),
            '\'' | '"' => return self.quoted(c),
            '#' | '|' | '>' | '%' | '@' | '`' => return Err(Stop::Other),
            _ => return self.plain(tagged),
        }
        Ok(())
    }

    fn forget_key(&mut self) {
        if self.flow == 0 {
            self.key = None;
        }
    }

    fn quoted(&mut self, quote: char) -> Scanned {
        self.begin();
        self.key_may_begin = false;
        self.forward(1);
        while self.at < self.chars.len() {
            match self.peek(0) {
                '\\' if quote == '"' => self.forward(2),
                '\'' if quote == '\'' && self.peek(1) == '\'' => self.forward(2),
                c => {
                    self.forward(1);
                    if c == quote {
                        return Ok(());
                    }
                }
            }
        }
        Err(Stop::Other)
    }

    fn plain(&mut self, tagged: bool) -> Scanned {
        self.begin();
        let (line, least, begin) = (self.line, self.indent + 1, self.at);
        let mut end = begin;
        loop {
            let length = (0..).find(|ahead| self.ends_plain(*ahead)).unwrap_or(0);
            if length == 0 || self.peek(0) == '#' {
                break;
            }
            self.key_may_begin = false;
            self.forward(length);
            end = self.at;
            if !self.plain_spaces() || self.peek(0) == '#' || (self.flow == 0 && self.column < least) {
                break;
            }
        }
        if end == begin {
            // Nothing begins so.
            return Err(Stop::Other);
        }
        let text: String = self.chars[begin..end].iter().collect();
        if !tagged && is_impossible_date(&text) {
            return Err(Stop::Date { line, text });
        }
        Ok(())
    }

    fn ends_plain(&self, ahead: usize) -> bool {
        let (c, next) = (self.peek(ahead), self.peek(ahead + 1));
        let flow = self.flow > 0;
        is_blank(c)
            || (c == ':' && (is_blank(next) || (flow && ",[]{}".contains(next))))
            || (flow && ",?[]{}".contains(c))
    }

    /// What may lie between two words of a plain scalar; `false` where it ends.
    fn plain_spaces(&mut self) -> bool {
        let begin = self.at;
        self.skip(|c| c == ' ');
        if !is_break(self.peek(0)) {
            return self.at > begin;
        }
        while matches!(self.peek(0), ' ') || is_break(self.peek(0)) {
            let broke = is_break(self.peek(0));
            self.forward(1);
            if broke {
                self.key_may_begin = true;
                if self.at_separator() {
                    return false;
                }
            }
        }
        true
    }

    fn block_scalar(&mut self) -> Scanned {
        self.key_may_begin = true;
        self.forget_key();
        self.forward(1);
        let mut more = None;
        for _ in 0..2 {
            let c = self.peek(0);
            if let Some(digit) = c.to_digit(10).filter(|_| more.is_none()) {
                more = Some(isize::try_from(digit).unwrap_or(1));
                self.forward(1);
            } else if matches!(c, '+' | '-') {
                self.forward(1);
            }
        }
        self.skip(|c| c == ' ');
        match self.peek(0) {
            '\t' => return Err(Stop::Tab { line: self.line, column: self.column.unsigned_abs() + 1 }),
            '#' => self.skip(|c| !is_break(c)),
            c if is_break(c) || c == END => {}
            _ => return Err(Stop::Other),
        }
        self.line_break();
        let least = (self.indent + 1).max(1);
        let indent = match more {
            Some(more) => {
                let indent = least + more - 1;
                self.block_breaks(indent);
                indent
            }
            None => {
                let mut deepest = 0;
                while self.peek(0) == ' ' || is_break(self.peek(0)) {
                    self.forward(1);
                    deepest = deepest.max(self.column);
                }
                least.max(deepest)
            }
        };
        while self.column == indent && self.at < self.chars.len() {
            self.skip(|c| !is_break(c));
            self.line_break();
            self.block_breaks(indent);
        }
        Ok(())
    }

    fn line_break(&mut self) {
        let two = self.peek(0) == '\r' && self.peek(1) == '\n';
        if is_break(self.peek(0)) {
            self.forward(if two { 2 } else { 1 });
        }
    }

    fn block_breaks(&mut self, indent: isize) {
        loop {
            while self.column < indent && self.peek(0) == ' ' {
                self.forward(1);
            }
            if !is_break(self.peek(0)) {
                return;
            }
            self.line_break();
        }
    }
}

/// Whether PyYAML takes it for a date, with a time or alone (`yaml/resolver.py`), and there is no such day.
fn is_impossible_date(text: &str) -> bool {
    let (date, time) = match text.find([' ', 'T', 't']) {
        Some(at) => (&text[..at], Some(text[at + 1..].trim_start())),
        None => (text, None),
    };
    let numbers: Vec<&str> = date.split('-').collect();
    let [year, month, day] = numbers[..] else { return false };
    let digits =
        |text: &str, lengths: &[usize]| lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    // Alone it is one only in full.
    let lengths: &[usize] = if time.is_some() { &[1, 2] } else { &[2] };
    if !digits(year, &[4]) || !digits(month, lengths) || !digits(day, lengths) {
        return false;
    }
    let is_time = |time: &str| {
        let parts: Vec<&str> = time.splitn(3, ':').collect();
        let [hours, minutes, rest] = parts[..] else { return false };
        digits(hours, &[1, 2]) && digits(minutes, &[2]) && rest.get(..2).is_some_and(|seconds| digits(seconds, &[2]))
    };
    if time.is_some_and(|time| !is_time(time)) {
        return false;
    }
    let number = |text: &str| text.parse::<i8>().unwrap_or(-1);
    let year = year.parse::<i16>().unwrap_or(0);
    // Python's begin with the year 1.
    year == 0 || jiff::civil::Date::new(year, number(month), number(day)).is_err()
}

#[cfg(test)]
mod tests;
