//! Freeing what nothing needs any more.

use super::{Env, destroy, template};
use crate::base::plan::DriverKind;
use crate::base::{ByteSize, Result, TemplateId};
use crate::guest;
use crate::pool::Swept;
use crate::template as store;

/// What a prune freed, or would free.
#[derive(Debug)]
pub struct Pruned {
    /// Blobs, unfinished downloads and stray temporary files of the pool.
    pub pool: Swept,
    /// Folders of guests and templates that were on their way out.
    pub folders: usize,
    /// Templates that no guest would be made of any more.
    pub templates: Vec<(TemplateId, ByteSize)>,
    /// Copies of images that backends kept for guests, by their names there.
    pub copies: Vec<(String, ByteSize)>,
}

/// Removes templates that nothing is made of any more, blobs that neither an
/// image record nor a guest nor a template names, unfinished downloads that nobody works on, and remains of killed commands.
/// Takes the pool's lock alone.
///
/// # Errors
/// When a guest's record cannot be read (nobody knows then what is in use), or something cannot be removed.
pub fn prune(env: Env<'_>, dry_run: bool) -> Result<Pruned> {
    let pool = env.pool()?;
    let lock = pool.lock_exclusive()?;
    let layout = &env.settings.layout;
    let unfinished = template::unfinished(env)?;
    if !dry_run {
        unfinished.iter().try_for_each(|name| destroy::destroy(env, name).map(drop))?;
    }
    // Looked at under the lock: `create` holds it shared until its guest's record names the blob.
    let mut in_use = guest::blobs_in_use(layout)?;
    let templates = template::outdated(env, &pool.blobs_named()?)?;
    if !dry_run {
        templates.iter().try_for_each(|(id, _)| store::remove(layout, id).map(drop))?;
    }
    // The others stand on their image.
    let kept = store::list(layout)?.into_iter().filter(|(id, _)| !templates.iter().any(|(gone, _)| gone == id));
    in_use.extend(kept.filter_map(|(_, template)| Some(template.ok()?.record.key.image)));
    let folders = guest::sweep(layout, dry_run)? + store::sweep(layout, dry_run)? + unfinished.len();
    let mut copies = Vec::new();
    for kind in DriverKind::ALL {
        // A backend that is away keeps its copies until the next time; what is here is freed all the same.
        let needed = |hex: &str| in_use.iter().any(|digest| digest.hex() == hex);
        let mut left = |error| env.reporter.warn(&format!("copies of images at a backend are left: {error}"));
        match env.driver(*kind).sweep_images(&needed, dry_run, &mut left) {
            Ok(swept) => copies.extend(swept),
            Err(error) => left(error),
        }
    }
    Ok(Pruned { pool: pool.sweep(&lock, &in_use, dry_run)?, folders, templates, copies })
}
