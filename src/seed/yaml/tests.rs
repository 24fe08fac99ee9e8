//! Beside PyYAML (package python3-yaml), which is what reads in the guest.

use rstest::rstest;

use super::super::tests::pyyaml as read_by_pyyaml;
use super::*;
use crate::base::Kind;

/// What people write, and generators.
#[rstest]
#[case::one_anchor_often(format!("x: &a {{k: v}}\nl:\n{}", "- *a\n".repeat(120)))]
#[case::one_anchor_very_often(format!("x: &a [k, v]\nl:\n{}", "- *a\n".repeat(5000)))]
#[case::merged_often(format!("x: &a {{k: v}}\nl:\n{}", "- {<<: *a, n: 1}\n".repeat(300)))]
#[case::long_text_often(format!("x: &a {}\nl:\n{}", "x".repeat(10_000), "- *a\n".repeat(300)))]
#[case::two_merged("a: &a {k: v}\nb: &b {m: o, k: w}\nc: {<<: [*a, *b], z: 1}\n".to_owned())]
#[case::own_over_merged("a: &a {k: v}\nc:\n  <<: *a\n  k: own\n".to_owned())]
#[case::anchors_that_nobody_uses((0..2000).map(|n| format!("k{n}: &a{n} v\n")).collect())]
#[case::an_anchor_on_a_key("&k a: b\nc: *k\n".to_owned())]
#[case::deep_block((0..60).map(|n| format!("{}k:\n", "  ".repeat(n))).chain([format!("{}x\n", "  ".repeat(60))]).collect())]
#[case::deep_flow(format!("a: {}{}\n", "[".repeat(60), "]".repeat(60)))]
#[case::a_long_list(format!("a:\n{}", "- x\n".repeat(300_000)))]
#[case::json(r##"{"a":"b","c":[1,2,{"d":null}]}"##.to_owned())]
#[case::byte_order_mark("\u{feff}a: b\n".to_owned())]
#[case::windows_lines("a: b\r\nl:\r\n- x\r\n".to_owned())]
#[case::directive("%YAML 1.1\n---\na: b\n...\n".to_owned())]
fn what_pyyaml_reads_is_taken(#[case] text: String) {
    assert_eq!(
        parse(&text, "it").unwrap_or_else(|error| panic!("{:?}", error.causes())),
        read_by_pyyaml(text.as_bytes())
    );
}

/// Refused before it takes memory or time: what a few lines would come to, and what no stack is deep enough for.
#[rstest]
#[case::nine_times_nine((0..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
    text + &format!("a{}: &a{} [{}]\n", n + 1, n + 1, [format!("*a{n}").as_str(); 9].join(","))
}))]
#[case::long_text_without_end(format!("a: &a {}\nl:\n{}", "x".repeat(1_000_000), "- *a\n".repeat(5000)))]
#[case::merged_mappings((0..9).fold("a0: &a0 {k: v}\n".to_owned(), |text, n| {
    let uses: Vec<String> = (0..9).map(|key| format!("k{key}: *a{n}")).collect();
    text + &format!("a{}: &a{} {{{}}}\n", n + 1, n + 1, uses.join(", "))
}))]
#[case::too_deep(format!("a: {}{}\n", "[".repeat(100_000), "]".repeat(100_000)))]
#[case::too_deep_in_blocks((0..1000).map(|n| format!("{}k:\n", " ".repeat(n))).collect())]
fn a_limit_is_told_from_a_fault(#[case] text: String) {
    let error = parse(&text, "the file").unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("more than virga reads"), "{error}: {:?}", error.causes());
    assert!(!error.to_string().contains("not valid") && !error.hints().is_empty(), "{error}");
}

#[rstest]
#[case("a: [\n")]
#[case("a: *nobody\n")]
#[case("a: 1\na: 2\n")]
#[case("a:\n\tb: c\n")]
#[case("a: b\n\t\nc: d\n")]
#[case("a:\tb\n")]
#[case("a: 2026-13-45\n")]
#[case("a: b\n---\nc: d\n")]
#[case("a: &a [*a]\n")]
fn a_fault_is_one(#[case] text: &str) {
    let error = parse(text, "the file").unwrap_err();
    assert!(error.to_string().contains("is not valid YAML"), "{error}");
    assert!(error.causes()[0].contains("line "), "{:?}", error.causes());
}
