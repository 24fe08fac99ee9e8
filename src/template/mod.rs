//! Templates: guests saved with their memory, of which any number of others are made.
//!
//! A template's id is the hash of its key, and the key is everything that
//! matters to a saved machine. Its folder is for its owner alone, and whole from
//! the moment it has its name: files are put together elsewhere and renamed.

pub mod renewal;
mod sum;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::renewal::Facts;
use crate::base::layout::{REFUSED, TemplateFiles};
use crate::base::plan::{DriverKind, difference};
use crate::base::{Arch, ByteSize, Context as _, Digest, Error, Kind, Layout, Result, TemplateId, fs, interrupt};

/// The shape of `template.json` that this build reads and writes.
const RECORD_VERSION: u32 = 1;

/// Folders on their way out carry this prefix, which no id can have.
const REMOVING: &str = ".removing-";

/// Everything that a saved machine depends on. Another value anywhere is another template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The image's blob.
    pub image: Digest,
    /// Its processor architecture.
    pub arch: Arch,
    /// Memory.
    pub memory: ByteSize,
    /// Virtual processors.
    pub cpus: u32,
    /// The size of the first disk.
    pub disk: ByteSize,
    /// The driver.
    pub driver: DriverKind,
    /// What the driver says of program, version, machine and processor.
    pub backend: BTreeMap<String, String>,
    /// The seed that it booted with, the service that renews clones included: a hash.
    pub recipe: String,
    /// The default user.
    pub user: String,
}

impl Key {
    /// The id of the template with this key.
    ///
    /// # Errors
    /// Never, unless the key cannot be written as JSON.
    pub fn id(&self) -> Result<TemplateId> {
        Ok(TemplateId::of(&serde_json::to_vec(self).context(|| "writing a template's key".into())?))
    }

    /// What around the saved machine is not as it was, as a sentence; `None` when only image and machine can differ.
    #[must_use]
    pub fn difference(&self, now: &Key) -> Option<String> {
        let recipe = || (self.recipe != now.recipe).then(|| "this virga prepares templates in another way".into());
        difference(&self.backend, &now.backend).or_else(recipe)
    }
}

/// The content of `template.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// What it was made of and for.
    pub key: Key,
    /// When it was saved.
    pub created: Timestamp,
    /// What the guest said of itself.
    pub facts: Facts,
    /// Its files' digests.
    files: Files<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Files<T> {
    disk: T,
    memory: T,
    state: T,
}

/// A template that is whole.
#[derive(Clone, Debug)]
pub struct Template {
    /// The hash of its key.
    pub id: TemplateId,
    /// Its record.
    pub record: Record,
    /// Where its files are.
    pub files: TemplateFiles,
}

impl Template {
    /// Hashes its files again. Blocks: about half a second for a gigabyte.
    ///
    /// # Errors
    /// [`Kind::Refused`] naming the file that is not what was saved.
    pub fn verify(&self) -> Result<()> {
        let known = &self.record.files;
        let files = [
            (self.files.state(), &known.state),
            (self.files.disk(), &known.disk),
            (self.files.memory(), &known.memory),
        ];
        for (path, digest) in files {
            interrupt::check()?;
            let found = match sum::sum(&path) {
                Err(error) if error.kind() == Kind::NotFound => None,
                found => Some(found?),
            };
            if found.as_ref() != Some(digest) {
                let what = if found.is_some() { "is not what was saved" } else { "is missing" };
                return Err(Error::refused(format!("template {}: '{}' {what}", self.id, path.display()))
                    .hint(format!("remove it: virga template remove {}", self.id)));
            }
        }
        Ok(())
    }

    /// Bytes that it occupies on disk.
    #[must_use]
    pub fn on_disk(&self) -> ByteSize {
        use std::os::unix::fs::MetadataExt as _;
        let files = [self.files.disk(), self.files.memory(), self.files.state()];
        ByteSize(files.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.blocks() * 512).sum())
    }
}

/// Writes the record beside the files in `staged`, and gives the folder its
/// name. The files are on disk before that, whatever happens afterwards.
///
/// # Errors
/// When something cannot be written, or there is one already: that one stays.
pub fn publish(layout: &Layout, staged: &TemplateFiles, key: Key, facts: Facts) -> Result<Template> {
    sum::dig_holes(&staged.memory())?;
    let files = Files {
        disk: sum::sum(&staged.disk())?,
        memory: sum::sum(&staged.memory())?,
        state: sum::sum(&staged.state())?,
    };
    let id = key.id()?;
    let record = Record { version: RECORD_VERSION, key, created: Timestamp::now(), facts, files };
    fs::write_json(&staged.record(), &record, 0o600)?;
    fs::sync_file_system(staged.folder())?;
    let files = layout.template_files(&id);
    fs::create_private_dir(&layout.templates())?;
    fs::rename(staged.folder(), files.folder())?;
    Ok(Template { id, record, files })
}

/// Reads a template's record; `None` when there is none.
///
/// # Errors
/// [`Kind::Refused`] when the record is not that of its id; when it cannot be read.
pub fn load(layout: &Layout, id: &TemplateId) -> Result<Option<Template>> {
    let files = layout.template_files(id);
    let Some(record) = fs::read_json::<Record>(&files.record())? else { return Ok(None) };
    let hint = format!("remove it: virga template remove {id}");
    if record.version != RECORD_VERSION {
        return Err(Error::failed(format!("template {id} was made by another virga")).hint(hint));
    }
    if record.key.id()? != *id {
        return Err(Error::refused(format!("the record of template {id} is that of another")).hint(hint));
    }
    Ok(Some(Template { id: id.clone(), record, files }))
}

/// All templates by id; one whose record cannot be read comes with the reason.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(layout: &Layout) -> Result<Vec<(TemplateId, Result<Template>)>> {
    let ids = fs::list_dir(&layout.templates())?.into_iter().filter_map(|name| name.parse::<TemplateId>().ok());
    let found = ids.map(|id| {
        let template = load(layout, &id).and_then(|found| {
            found.ok_or_else(|| {
                Error::refused(format!("template {id} has no record"))
                    .hint(format!("remove it: virga template remove {id}"))
            })
        });
        (id, template)
    });
    Ok(found.collect())
}

/// Removes a template. Clones that run keep what they have mapped. `false` when there was none.
///
/// # Errors
/// When something cannot be removed; it is no template any more all the same.
pub fn remove(layout: &Layout, id: &TemplateId) -> Result<bool> {
    let aside = layout.templates().join(format!("{REMOVING}{id}-{}", std::process::id()));
    match fs::rename(layout.template_files(id).folder(), &aside) {
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(()) => fs::remove_dir_all(&aside).map(|()| true),
    }
}

/// Removes what a killed [`remove`] left. Returns how many folders went.
///
/// # Errors
/// When something cannot be removed.
pub fn sweep(layout: &Layout, dry_run: bool) -> Result<usize> {
    let mut swept = 0;
    for name in fs::list_dir(&layout.templates())? {
        if name.starts_with(REMOVING) {
            swept += 1;
            if !dry_run {
                fs::remove_dir_all(&layout.templates().join(&name))?;
            }
        }
        // It costs one boot to find out again.
        if name.ends_with(REFUSED) && !dry_run {
            fs::remove_file(&layout.templates().join(name))?;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests;
