//! YAML as cloud-init (PyYAML) reads it: in for checks, out for documents of ours.

use serde::Serialize;
use serde_json::Value;
use serde_saphyr::UserMessageFormatter;
use serde_saphyr::options::NonFiniteFloatPolicy;

use crate::base::{Error, Result};

/// Parses one document. `what` names it in errors.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) with line and column for what PyYAML would refuse too, and for
/// duplicate keys, of which it would silently keep the last.
pub(super) fn parse(text: &str, what: &str) -> Result<Value> {
    let options = serde_saphyr::options! {
        // YAML 1.1, which PyYAML speaks: 0644 is 420.
        legacy_octal_numbers: true,
        // Binary content may be anything; it is not looked into here.
        ignore_binary_tag_for_string: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        Error::usage(format!("{what} is not valid YAML")).because(error.render_with_formatter(&UserMessageFormatter))
    })
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
