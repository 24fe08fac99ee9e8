//! Whether a private key opens anything without somebody's help. `ssh-keygen` reads keys by the rules of `ssh`: every
//! form, and not those that others may read.

use std::path::Path;

use super::keys;
use crate::base::cmd::{Cmd, last_words};
use crate::base::fs;

/// Room for any public key.
const PUBLIC_LIMIT: u64 = 64 << 10;

/// Why `ssh` does not get in by this key alone, as the beginning of a sentence about it; `None` when it does. Asks nobody
/// for anything.
pub(super) fn why_shut(private: &Path) -> Option<String> {
    let shown = private.display();
    let read = Cmd::new("ssh-keygen").args(["-y", "-P", "", "-f"]).arg(private).output();
    let output = match read {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let words = last_words(&output.stderr);
            return Some(match words.contains("incorrect passphrase") {
                true => format!("the key '{shown}' has a passphrase"),
                false => format!("the key '{shown}' cannot be used ({words})"),
            });
        }
        Err(error) => return Some(format!("the key '{shown}' cannot be used ({error})")),
    };
    let text = output.text();
    if text.starts_with("sk-") {
        return Some(format!("the key '{shown}' is on a token"));
    }
    // The same as the public half beside it: that one is what was authorized, and what `ssh` offers.
    let beside = fs::read_text(&keys::public_path(private), PUBLIC_LIMIT).unwrap_or_default();
    let encoded = text.split_ascii_whitespace().nth(1)?;
    let same = beside.split_ascii_whitespace().any(|word| word == encoded);
    (!same).then(|| format!("the key '{shown}' is not the other half of '{shown}.pub'"))
}
