//! `uvt-kvm create`: an image of uvtool's pool, or a file, under a guest that
//! virga makes as it makes all of its guests.

use std::path::{Path, PathBuf};

use super::images::usable;
use super::metadata::Store;
use super::{POOL, libvirt, sync};
use crate::base::cmd::{self, Cmd};
use crate::base::lock::Mode;
use crate::base::name::{arch_name, quoted};
use crate::base::plan::DiskFormat;
use crate::base::{Arch, Context as _, Error, Kind, Result, Trust, given};
use crate::disk;
use crate::driver::libvirt::uvtool::Uvtool;
use crate::guest::Record;
use crate::ops::Env;
use crate::ops::create::{CreateRequest, From, InPlace, create as make};
use crate::stream::filter::Filters;

/// Most bytes of a domain's template.
const TEMPLATE_LIMIT: u64 = 1 << 20;

/// What the guest stands on, in uvtool's terms.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Which image; none: Ubuntu's newest release with long support.
    pub filters: Vec<String>,
    /// A qcow2 file in place of an image.
    pub backing_image_file: Option<PathBuf>,
    /// The pool with the images.
    pub image_pool: String,
    /// The pool for the guest's disks.
    pub pool: String,
    /// The guest's architecture; `None`: the image's.
    pub arch: Option<Arch>,
    /// A domain's XML to be filled in.
    pub template: Option<PathBuf>,
}

/// Makes the guest; what `request` says of its image does not count.
///
/// # Errors
/// [`Kind::NotFound`] without such an image and [`Kind::Usage`] for several, in uvtool's words; [`Kind::Exists`] for a
/// name that is taken; as [`crate::ops::create::create`].
pub fn create(env: Env<'_>, wish: &Wish, mut request: CreateRequest) -> Result<Record> {
    let (libvirt, store) = (libvirt(env), Store::of(env));
    let mut made = |event| {
        if let sync::Event::Made(what) = event {
            env.reporter.note(&what);
        }
    };
    sync::prepare_pool(env, &libvirt, &wish.pool, &mut made)?;
    let volume = format!("{}.qcow", request.name);
    if wish.pool == POOL && libvirt.has_volume(POOL, &volume)? {
        // libvirt's words, as uvtool passes them on.
        return Err(Error::new(Kind::Exists, format!("libvirt: storage volume '{volume}' exists already"))
            .hint(format!("choose another name, or remove what has it: uvt-kvm destroy {}", request.name))
            .hint(format!("a volume that no guest has: virsh vol-delete --pool {POOL} {volume}")));
    }
    if let Some(template) = &wish.template {
        request.tuning.template = Some(given::read_text(template, TEMPLATE_LIMIT, "--template")?);
    }
    // The image stays until the guest's disk names it.
    let _lock = store.lock(env, Mode::Shared)?;
    let base = match &wish.backing_image_file {
        Some(file) => of_file(file, wish)?,
        None => of_pool(env, &libvirt, wish)?,
    };
    request.machine.from = From::InPlace(base);
    Ok(make(env, &request)?.record)
}

fn of_file(file: &Path, wish: &Wish) -> Result<InPlace> {
    let path = std::path::absolute(file).context(|| format!("finding '{}'", file.display()))?;
    let facts = disk::inspect(&path, Some(DiskFormat::Qcow2))?;
    Ok(InPlace {
        format: facts.format,
        virtual_size: facts.virtual_size,
        arch: wish.arch.unwrap_or_else(Arch::host),
        keys: [("file".to_owned(), path.display().to_string())].into(),
        trust: Trust::Own,
        path,
    })
}

fn of_pool(env: Env<'_>, libvirt: &Uvtool, wish: &Wish) -> Result<InPlace> {
    let filters = match wish.filters.as_slice() {
        [] => default_filters(env, libvirt, &wish.image_pool)?,
        filters => filters.to_vec(),
    };
    let parsed = Filters::parse(&filters)?;
    let mut matching = usable(env, libvirt, &wish.image_pool, &parsed)?;
    if !parsed.names("trust") && matching.iter().any(|(image, _)| !image.trust().must_be_asked_for()) {
        matching.retain(|(image, _)| !image.trust().must_be_asked_for());
    }
    if matching.len() > 1 && !parsed.names("arch") {
        // Who says nothing of it means what runs here.
        let arch = wish.arch.unwrap_or_else(Arch::host).name();
        matching.retain(|(image, _)| arch_name(image.key("arch")) == arch);
    }
    let shown: Vec<String> = filters.iter().map(|filter| quoted(filter)).collect();
    let shown = format!("[{}]", shown.join(", "));
    let Some((image, volume)) = matching.pop() else {
        return Err(Error::not_found(format!("no images found that match filters {shown}."))
            .hint("'uvt-simplestreams-libvirt query' lists the images there are; its 'sync' fetches others"));
    };
    if !matching.is_empty() {
        return Err(Error::usage(format!("multiple images found that match filters {shown}"))
            .hint("'uvt-simplestreams-libvirt query' lists them; add a filter such as arch=amd64"));
    }
    let arch = match (wish.arch, image.key("arch")) {
        (Some(arch), _) => arch,
        // What boots on the machine that we make for it.
        (None, "") => Arch::host(),
        (None, name) if arch_name(name) == "i386" => Arch::host(),
        (None, _) if wish.template.is_some() => image.key("arch").parse().unwrap_or_else(|_| Arch::host()),
        (None, name) => name.parse()?,
    };
    let (format, virtual_size, trust) = (DiskFormat::Qcow2, volume.capacity, image.trust());
    Ok(InPlace { path: volume.path, format, virtual_size, arch, keys: image.keys, trust })
}

/// uvtool asks `distro-info` for the newest release with long support. Where that is not installed the streams say which
/// release it is, as far as it is in the pool; else any image will do that is the only one.
fn default_filters(env: Env<'_>, libvirt: &Uvtool, pool: &str) -> Result<Vec<String>> {
    const ASK: &str = "ubuntu-distro-info";
    if cmd::find(ASK).is_some()
        && let Ok(answer) = Cmd::new(ASK).arg("--lts").run()
        && let Some(release) = answer.text().lines().next().filter(|release| !release.is_empty())
    {
        return Ok(vec![format!("release={release}")]);
    }
    let lts = usable(env, libvirt, pool, &Filters::parse(&["lts"])?)?;
    let newest = lts.iter().max_by_key(|(image, _)| image.key("version").to_owned());
    Ok(newest.map(|(image, _)| format!("release={}", image.key("release"))).into_iter().collect())
}
