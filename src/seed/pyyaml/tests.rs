//! Beside PyYAML itself.

use serde_json::{Value, json};

use super::super::tests::python;
use super::*;

/// Each construct of YAML that a tab could be part of.
const DOCUMENTS: [&str; 14] = [
    "a: b\nc:\n  d: e\n  f: [1, 2]\n\ng: {h: i, j: 'k'}\n",
    "# x\na: b # c\n#d\n\n  # e\nf: g#h\n",
    "a: |\n  x\n   y\n\n  z\nb: >-\n  q\nc: |2\n    r\nd:\n- |\n e\n- f\n",
    "a:\n  b: |\n    x\n  c: d\n  e: |\n  f: g\n",
    "a: text\n  'tis\n  more\nb: 'x'\n",
    "a: \"x\n  y \\\" z\"\nb: 'it''s\n  so'\nc: d\n",
    "- a\n- - b\n  - c: d\n    e: \"f\"\n-\n  g\n",
    "runcmd:\n- [ls, -l, \"a b\"]\n- echo 'x' \"y\" # z\n- >\n  folded\n",
    "x: &a {k: v}\ny: *a\nz: !!str 5\n? q\n: r\n",
    "---\na: b\n---\n",
    "%YAML 1.1\n---\na: b\n...\n",
    "a: b\r\nc: |\r\n  d\r\n  e\r\nf: g\r\n",
    "{a: b, \"c\": [d,\n  'e'], f: g}\n",
    "a:\n  text\n  'tis\n  it\nb: \"it's\"\nc: x:y\nd: 'e': f\n",
];

/// What PyYAML says of each: `null`, or line and column of the tab that it refuses, or other words.
fn asked(documents: &[String]) -> Vec<Value> {
    let code = "
out = []
for text in json.loads(data):
    try:
        yaml.safe_load(text)
        out.append(None)
    except yaml.YAMLError as e:
        mark = getattr(e, 'problem_mark', None)
        tab = \"'\\\\t'\" in (getattr(e, 'problem', None) or '')
        out.append([mark.line + 1, mark.column + 1] if tab else str(e))
    except ValueError as e:
        out.append('value')";
    serde_json::from_value(python(code, json!(documents).to_string().as_bytes())).unwrap()
}

#[test]
fn a_tab_is_refused_where_pyyaml_refuses_it() {
    let mut documents: Vec<String> = Vec::new();
    for document in DOCUMENTS {
        let ends: Vec<usize> = document.char_indices().map(|(at, _)| at).chain([document.len()]).collect();
        documents.extend(ends.iter().map(|at| format!("{}\t{}", &document[..*at], &document[*at..])));
        let replaced = ends.windows(2).map(|ends| format!("{}\t{}", &document[..ends[0]], &document[ends[1]..]));
        documents.extend(replaced);
    }
    let (mut refused, mut taken) = (0, 0);
    for (document, said) in documents.iter().zip(asked(&documents)) {
        let ours = refuses(document);
        match said {
            Value::Null => {
                assert_eq!(ours, None, "{document:?}");
                taken += 1;
            }
            Value::Array(place) => {
                let expected = format!("tab at line {}, column {}: cloud-init refuses it", place[0], place[1]);
                // A directive's own words are not looked into.
                if !document.starts_with('%') || place[0] != 1 {
                    assert_eq!(ours, Some(expected), "{document:?}");
                    refused += 1;
                }
            }
            // Refused all the same, for what the parser says.
            _ => {}
        }
    }
    assert!(refused > 200 && taken > 50, "{refused} {taken}");
}

#[test]
fn a_date_that_there_is_not_is_refused_where_pyyaml_fails_on_it() {
    let documents = [
        "a: 2026-13-45\n",
        "a: 2026-02-29\n",
        "a: 2024-02-29\n",
        "a: 0000-01-01\n",
        "a: '2026-13-45'\n",
        "a: \"2026-13-45\"\n",
        "a: !!str 2026-13-45\n",
        "a: 2026-1-45\n",
        "a: 2026-1-45 10:00:00\n",
        "a: 2026-13-45T10:00:00Z\n",
        "a: 2026-13-45 at noon\n",
        "a: x 2026-13-45\n",
        "a: |\n  2026-13-45\n",
        "[2026-13-45]\n",
        "2026-13-45: a\n",
        "# 2026-13-45\na: 2026-11-29\n",
    ]
    .map(str::to_owned);
    for (document, said) in documents.iter().zip(asked(&documents)) {
        let ours = refuses(document);
        assert_eq!(ours.is_some(), said == "value", "{document:?}: {ours:?}, {said}");
        assert!(ours.is_none_or(|ours| ours.contains("at line 1 is no date")));
    }
}
