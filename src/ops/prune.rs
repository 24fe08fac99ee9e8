//! Freeing what nothing needs any more.

use super::Env;
use crate::base::Result;
use crate::guest;
use crate::pool::Swept;

/// What a prune freed, or would free.
#[derive(Debug)]
pub struct Pruned {
    /// Blobs, unfinished downloads and stray temporary files of the pool.
    pub pool: Swept,
    /// Folders of guests that were on their way out.
    pub folders: usize,
}

/// Removes blobs that neither an image record nor a guest names, unfinished
/// downloads that nobody works on, and remains of killed commands.
/// Takes the pool's lock alone.
///
/// # Errors
/// When a guest's record cannot be read (nobody knows then what is in use), or something cannot be removed.
pub fn prune(env: Env<'_>, dry_run: bool) -> Result<Pruned> {
    let pool = env.pool()?;
    let lock = pool.lock_exclusive()?;
    // Looked at under the lock: `create` holds it shared until its guest's record names the blob.
    let in_use = guest::blobs_in_use(&env.settings.layout)?;
    Ok(Pruned { pool: pool.sweep(&lock, &in_use, dry_run)?, folders: guest::sweep(&env.settings.layout, dry_run)? })
}
