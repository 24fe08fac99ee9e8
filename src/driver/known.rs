//! What a state folder and daemons know of each other: the id by which a
//! daemon's domains are known to be this folder's guests, and the daemons that
//! ever had one.

use sha2::Digest as _;

use crate::base::plan::{Daemon, InstanceId};
use crate::base::{Error, Kind, Layout, Result, fs, name};

/// The folder's id; made where there is none.
pub(super) fn id(layout: &Layout) -> Result<String> {
    if let Some(id) = existing_id(layout)? {
        return Ok(id);
    }
    let id = InstanceId::generate()?;
    // Two at once: one of them wins, and both take what is there then.
    match fs::write_once(&layout.state_id(), format!("{id}\n").as_bytes(), 0o600) {
        Err(error) if error.kind() != Kind::Exists => Err(error),
        _ => existing_id(layout)?.ok_or_else(|| Error::failed("the state folder's id cannot be read")),
    }
}

fn existing_id(layout: &Layout) -> Result<Option<String>> {
    match fs::read_text(&layout.state_id(), 128) {
        Ok(text) => InstanceId::try_from(text.trim().to_owned()).map(|id| Some(id.into())),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes that guests of this folder are, or were, at this daemon. Before the first is: a killed command leaves what is
/// found again.
pub(super) fn remember(layout: &Layout, daemon: &Daemon) -> Result<()> {
    let path = layout.daemons().join(format!("{}.json", file_name(daemon)));
    if path.exists() {
        return Ok(());
    }
    fs::create_private_dir(&layout.daemons())?;
    fs::write_json(&path, daemon, 0o600)
}

/// The daemons that this folder's guests are, or were, at, and whose address is one that the driver knows.
///
/// # Errors
/// When a note cannot be read.
pub(super) fn daemons(layout: &Layout, known: impl Fn(&str) -> bool) -> Result<Vec<Daemon>> {
    let mut daemons: Vec<Daemon> = Vec::new();
    for file in fs::list_dir(&layout.daemons())?.iter().filter(|file| file.ends_with(".json")) {
        daemons.extend(fs::read_json(&layout.daemons().join(file))?);
    }
    daemons.retain(|daemon| known(&daemon.uri));
    Ok(daemons)
}

/// One note for each: a URI is no file's name.
fn file_name(daemon: &Daemon) -> String {
    name::hex(&sha2::Sha256::digest(format!("{}\n{}", daemon.uri, daemon.pool)))
}
