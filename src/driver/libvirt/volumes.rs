//! The volumes of a pool as uvtool's commands handle them, and who needs them:
//! any domain, running or not, through any kind of disk and whatever stands
//! between, and any other volume.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roxmltree::{Document, Node};
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::sys;

use super::connection::{doing, explain, found};
use super::storage::{self, Storage};
use super::template::child;
use super::uvtool::{Uvtool, parse};
use super::xml::element;
use crate::base::plan::{Daemon, DiskFormat};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Kind, Result, fs, interrupt};

/// Most files that stand on each other.
const DEPTH: usize = 100;

/// libvirt looks at a pool by itself after an upload, and meanwhile nobody else may.
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume of a pool.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its file on the daemon's host.
    pub path: PathBuf,
    /// Bytes that a guest sees.
    pub capacity: u64,
    /// What libvirt takes it for, as in `qcow2`.
    pub format: String,
}

/// Which files are needed, and by whom.
#[derive(Clone, Debug, Default)]
pub struct Used(BTreeMap<PathBuf, String>);

impl Used {
    /// Who needs this file, as in "the domain 'web'".
    #[must_use]
    pub fn by(&self, path: &Path) -> Option<&str> {
        self.0.get(path).or_else(|| self.0.get(&path.canonicalize().ok()?)).map(String::as_str)
    }

    fn add(&mut self, path: &Path, who: &str) {
        // Known by both names, where it has two.
        let real = path.canonicalize().ok();
        for path in real.into_iter().chain([path.to_owned()]) {
            self.0.entry(path).or_insert_with(|| who.to_owned());
        }
    }
}

impl Uvtool {
    fn daemon(&self, pool: &str) -> Daemon {
        Daemon { uri: self.uri.clone(), pool: pool.to_owned() }
    }

    /// The folder of a pool, which is started where it does not run; `None` when libvirt knows no such pool.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a pool that is no folder; [`Kind::Unavailable`] without a daemon.
    pub fn folder(&self, pool: &str) -> Result<Option<PathBuf>> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        match storage.exists()? {
            false => Ok(None),
            true => storage::folder(&*storage.pool()?).map(Some),
        }
    }

    /// The folder of a pool that must be there.
    ///
    /// # Errors
    /// [`Kind::NotFound`] without it, in uvtool's words.
    pub fn existing_folder(&self, pool: &str) -> Result<PathBuf> {
        self.folder(pool)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("Cannot find pool '{pool}'"))
                .hint(format!("'virsh -c {} pool-list --all' shows those there are", self.uri))
        })
    }

    /// Makes a pool over this folder, which is made too, and has it start by itself. `false` when there is one of that name.
    ///
    /// # Errors
    /// What libvirt said.
    pub fn make_pool(&self, pool: &str, folder: &Path) -> Result<bool> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        if storage.exists()? {
            return Ok(false);
        }
        // Guests' processes, which are not root's, have to get through.
        let permissions = element("permissions").has(element("mode").text("0711"));
        let path = element("path").text(folder.display().to_string());
        let document = element("pool")
            .with("type", "dir")
            .has(element("name").text(pool))
            .has(element("target").has(path).has(permissions))
            .document()?;
        let made = match connection.define_storage_pool_xml(&document, 0) {
            Ok(made) => made,
            // Another command was quicker.
            Err(_) if storage.exists()? => return Ok(false),
            Err(error) => return Err(explain(&error, format!("defining the storage pool '{pool}'"))),
        };
        made.set_autostart(true).map_err(doing("making the storage pool start by itself"))?;
        storage.pool()?;
        Ok(true)
    }

    /// The volumes of a pool as they are now, by name; none where there is no such pool.
    ///
    /// # Errors
    /// What libvirt said.
    pub fn volumes(&self, pool: &str) -> Result<Vec<Volume>> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        if !storage.exists()? {
            return Ok(Vec::new());
        }
        let pool = storage.pool()?;
        // What others put into the folder. That it cannot be looked at right now is no trouble.
        let _ = refresh(&pool);
        let mut volumes = Vec::new();
        for volume in pool.list_all_volumes(0).map_err(doing(format!("listing the storage pool '{}'", daemon.pool)))? {
            volumes.extend(seen(&volume)?);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Those of a pool's volumes that have these names, without a look at all the others; none where there is no such
    /// pool.
    ///
    /// # Errors
    /// What libvirt said.
    pub fn named_volumes(&self, pool: &str, names: &[&str]) -> Result<Vec<Volume>> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        if !storage.exists()? {
            return Ok(Vec::new());
        }
        let pool = storage.pool()?;
        let look = |name: &&str| match storage.volume(&pool, name)? {
            Some(volume) => seen(&volume),
            None => Ok(None),
        };
        // What came as a stream is raw bytes to libvirt until it looks into the pool.
        let known = |name: &&str| look(name).ok().flatten().filter(|volume| volume.format != "raw");
        if let Some(all) = names.iter().map(known).collect() {
            return Ok(all);
        }
        // As above.
        let _ = refresh(&pool);
        names.iter().filter_map(|name| look(name).transpose()).collect()
    }

    /// Whether a pool that is there has a volume of this name.
    ///
    /// # Errors
    /// What libvirt said.
    pub fn has_volume(&self, pool: &str, name: &str) -> Result<bool> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        Ok(storage.volume(&*storage.pool()?, name)?.is_some())
    }

    /// The names of all volumes in all pools; `None` while a pool does not run, for then nobody knows.
    ///
    /// # Errors
    /// What libvirt said.
    pub fn volume_names(&self) -> Result<Option<BTreeSet<String>>> {
        let pools = self.connections.get(&self.uri)?.list_all_storage_pools(0);
        let mut names = BTreeSet::new();
        for pool in pools.map_err(doing("listing libvirt's storage pools"))? {
            if !pool.is_active().unwrap_or(false) {
                return Ok(None);
            }
            names.extend(pool.list_volumes().map_err(doing("listing a storage pool"))?);
        }
        Ok(Some(names))
    }

    /// Makes a volume of `length` bytes read from `from`; what is in it shows by itself. When it fails nothing is left.
    ///
    /// # Errors
    /// [`Kind::Exists`] when there is a volume of this name; what libvirt said.
    pub fn upload(&self, pool: &str, name: &str, from: &mut dyn Read, length: u64) -> Result<()> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        let pool = storage.pool()?;
        let volume = storage.create(&pool, &storage::volume(name, 0, DiskFormat::Raw, None))?;
        if let Err(error) = storage.upload(&volume, from, length, interrupt::check) {
            // What went wrong first tells more.
            let _ = volume.delete(0);
            return Err(error);
        }
        // libvirt took it for raw bytes so far.
        let mut trouble = None;
        let seen = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(20), || {
            Ok(refresh(&pool).map_err(|error| trouble = Some(error)).ok())
        })?;
        match (seen, trouble) {
            (None, Some(error)) => {
                let _ = volume.delete(0);
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Deletes volumes of a pool; those that are not there are no trouble.
    ///
    /// # Errors
    /// What libvirt said, after all were tried.
    pub fn delete(&self, pool: &str, names: &[String]) -> Result<()> {
        let (connection, daemon) = (self.connections.get(&self.uri)?, self.daemon(pool));
        let storage = Storage::new(&connection, &daemon);
        match storage.exists()? {
            true => storage.delete(&*storage.pool()?, names),
            false => Ok(()),
        }
    }

    /// All files that any domain or volume needs.
    ///
    /// # Errors
    /// When anything cannot be looked at: nobody knows then what is needed.
    pub fn used(&self) -> Result<Used> {
        let connection = self.connections.get(&self.uri)?;
        let mut used = Used::default();
        let pools = connection.list_all_storage_pools(0).map_err(doing("listing libvirt's storage pools"))?;
        for pool in pools.iter().filter(|pool| pool.is_active().unwrap_or(false)) {
            for volume in pool.list_all_volumes(0).map_err(doing("listing a storage pool"))? {
                let Some(text) = found(volume.xml_desc(0), || "looking at a volume".into())? else { continue };
                if let Some(beneath) = storage::backing_of(&text) {
                    let name = volume.name().unwrap_or_default();
                    used.add(Path::new(&beneath), &format!("the volume '{name}'"));
                }
            }
        }
        for domain in connection.list_all_domains(0).map_err(doing("listing libvirt's domains"))? {
            let name = domain.name().map_err(doing("listing libvirt's domains"))?;
            let who = format!("the domain '{name}'");
            let mut documents = Vec::new();
            for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
                documents.extend(found(domain.xml_desc(flags), || format!("looking at {who}"))?);
            }
            // A guest may go back to what it was.
            for snapshot in domain.list_all_snapshots(0).unwrap_or_default() {
                documents.extend(snapshot.xml_desc(0).ok());
            }
            let mut tops = BTreeSet::new();
            for document in &documents {
                tops.extend(self.sources(&parse(document)?)?);
            }
            for top in tops {
                chain(&top).iter().for_each(|path| used.add(path, &who));
            }
        }
        Ok(used)
    }

    /// The files behind all disks in a domain's XML, and those beneath them as far as that says.
    ///
    /// # Errors
    /// What libvirt said.
    pub(super) fn sources(&self, domain: &Document<'_>) -> Result<Vec<PathBuf>> {
        let connection = self.connections.get(&self.uri)?;
        let mut paths = Vec::new();
        for source in domain.descendants().filter(|node| node.has_tag_name("source")) {
            paths.extend(["file", "dev"].iter().filter_map(|name| source.attribute(*name)).map(PathBuf::from));
            let (Some(pool), Some(volume)) = (source.attribute("pool"), source.attribute("volume")) else { continue };
            let what = || format!("looking for the volume '{volume}' of the pool '{pool}'");
            let Some(pool) = found(connection.lookup_storage_pool_by_name(pool), what)? else { continue };
            match found(pool.lookup_storage_vol_by_name(volume), what) {
                Ok(Some(there)) => paths.extend(there.path().ok().map(PathBuf::from)),
                // By name at least: the pool may be stopped.
                _ => paths.extend(storage::folder(&pool).ok().map(|folder| folder.join(volume))),
            }
        }
        Ok(paths)
    }
}

/// What libvirt knows of a volume; `None` for one that went while it was looked at.
fn seen(volume: &StorageVol) -> Result<Option<Volume>> {
    let Some(document) = found(volume.xml_desc(0), || "looking at a volume".into())? else { return Ok(None) };
    let read = parse(&document)?;
    let strange = || Error::failed("libvirt describes a volume in a way that is not known");
    let text = |node: Option<Node<'_, '_>>| node.and_then(|node| node.text()).map(str::to_owned).ok_or_else(strange);
    let (root, target) = (read.root_element(), child(read.root_element(), "target").ok_or_else(strange)?);
    Ok(Some(Volume {
        name: text(child(root, "name"))?,
        path: text(child(target, "path"))?.into(),
        capacity: text(child(root, "capacity"))?.parse().map_err(|_| strange())?,
        format: child(target, "format").and_then(|node| node.attribute("type")).unwrap_or_default().to_owned(),
    }))
}

fn refresh(pool: &StoragePool) -> Result<()> {
    pool.refresh(0).map_err(doing("looking into a storage pool"))
}

/// A file and those beneath it, as far as they can be read here. Only names are read, and nothing is opened but files.
fn chain(top: &Path) -> Vec<PathBuf> {
    let mut chain = vec![top.to_owned()];
    while chain.len() < DEPTH
        && let Some(next) = chain.last().and_then(|path| beneath(path))
        && !chain.contains(&next)
    {
        chain.push(next);
    }
    chain
}

/// The backing file that a qcow2 image names (QEMU's `docs/interop/qcow2.rst`, "Header").
fn beneath(path: &Path) -> Option<PathBuf> {
    if !path.is_file() {
        return None;
    }
    let mut head = Vec::new();
    // A header and the names behind it lie in the first cluster.
    fs::open(path).ok()?.take(2 << 20).read_to_end(&mut head).ok()?;
    if !head.starts_with(b"QFI\xfb") {
        return None;
    }
    let offset = usize::try_from(u64::from_be_bytes(*head.get(8..)?.first_chunk()?)).ok()?;
    let length = usize::try_from(u32::from_be_bytes(*head.get(16..)?.first_chunk()?)).ok()?;
    let name = std::str::from_utf8(head.get(offset..)?.get(..length)?).ok().filter(|_| offset > 0)?;
    let name = name.strip_prefix("file:").unwrap_or(name);
    Some(fs::folder_of(path).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cmd::Cmd;

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let create = |name: &str, beneath: Option<&str>| {
            let command = Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2"]);
            let command = match beneath {
                Some(beneath) => command.args(["-b", beneath, "-F", "qcow2"]),
                None => command,
            };
            command.arg(path(name)).args(beneath.is_none().then_some("1M")).run().expect("needs qemu-img (qemu-utils)");
        };
        create("base", None);
        create("middle", Some("base"));
        create("top", Some(path("middle").to_str().unwrap()));
        assert_eq!(chain(&path("top")), [path("top"), path("middle"), path("base")]);
        assert_eq!(chain(&path("absent")), [path("absent")]);
        assert_eq!(chain(folder.path()), [folder.path()]);

        let mut used = Used::default();
        std::os::unix::fs::symlink(path("base"), path("link")).unwrap();
        used.add(&path("link"), "x");
        assert_eq!((used.by(&path("base")), used.by(&path("top"))), (Some("x"), None));
    }
}
