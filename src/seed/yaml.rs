//! YAML as cloud-init (PyYAML) reads it: in for checks, out for documents of ours.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{Error as Fault, UserMessageFormatter};

use super::pyyaml;
use crate::base::{Error, Result};

/// How deep a document may be: nobody writes deeper, and the stack of a thread holds little more.
const DEPTH: usize = 64;

/// How much may be in a document once each alias is what it stands for: far more than in any that people write, far
/// less than what a few lines can come to.
const NODES: usize = 1_000_000;

/// Parses one document. `what` names it in errors.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) with line and column for what PyYAML would refuse too, for
/// duplicate keys, of which it would silently keep the last, and for what is too much: the message tells which.
pub(super) fn parse(text: &str, what: &str) -> Result<Value> {
    parse_as(text, what)
}

/// As [`parse`], of those fields alone that `T` has. A scalar that is to be text is as it was written.
///
/// # Errors
/// As [`parse`], and when a field is of another type.
pub(super) fn parse_as<T: DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    let options = serde_saphyr::options! {
        // YAML 1.1, which PyYAML speaks: 0644 is 420.
        legacy_octal_numbers: true,
        // Binary content may be anything; it is not looked into here.
        ignore_binary_tag_for_string: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            // One anchor may be used as often as one likes: what all uses come to is what counts.
            enforce_alias_anchor_ratio: false,
            max_depth: DEPTH,
            // The scanner's own, which is ahead of the depth by up to 1024 characters: ours is to be met first.
            flow_nesting_limit: 2048,
            max_nodes: NODES,
            max_events: 4 * NODES,
        },
    };
    if let Some(why) = pyyaml::refuses(text) {
        return Err(Error::usage(format!("{what} is not valid YAML")).because(why));
    }
    serde_saphyr::from_str_with_options(text, options).map_err(|fault| {
        let words = fault.render_with_formatter(&UserMessageFormatter);
        match is_limit(&fault) {
            true => Error::usage(format!("{what} may well be valid YAML, but is more than virga reads of it"))
                .because(words)
                .hint("the usual reason is an anchor ('&x') whose uses ('*x') multiply one another")
                .hint("let a script write or fetch in the guest what is large"),
            false => Error::usage(format!("{what} is not valid YAML")).because(words),
        }
    })
}

fn is_limit(fault: &Fault) -> bool {
    match fault {
        Fault::Budget { .. }
        | Fault::AliasReplayCounterOverflow { .. }
        | Fault::AliasReplayLimitExceeded { .. }
        | Fault::AliasExpansionLimitExceeded { .. }
        | Fault::AliasReplayStackDepthExceeded { .. } => true,
        Fault::AliasError { error, .. } | Fault::WithSnippet { error, .. } => is_limit(error),
        _ => false,
    }
}

/// Writes one document so that PyYAML reads back the same values and types.
///
/// # Errors
/// When a value cannot be written as YAML.
pub(super) fn write(value: &impl Serialize) -> Result<String> {
    serde_saphyr::to_string(value).map_err(|error| Error::failed("writing YAML").because(error))
}

/// As [`write`], with the first line by which cloud-init knows its documents.
///
/// # Errors
/// As [`write`].
pub(super) fn write_cloud_config(value: &impl Serialize) -> Result<String> {
    Ok(format!("#cloud-config\n{}", write(value)?))
}

#[cfg(test)]
mod tests;
