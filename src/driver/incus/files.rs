//! Files in and out of a container, whether it runs or not.

use std::io::Write;

use tar::Builder;

use super::api::Api;
use super::api::transfer::{There, Written};
use crate::base::{Context as _, Error, GuestPath, GuestPlan, Kind, Result, fs, interrupt};
use crate::driver::carry::{self, Kept, Load};

/// Where paths begin that are not absolute.
const HOME: &str = "/root";
/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;
/// Deeper than any folder that is copied.
const DEEPEST: usize = 256;

/// As [`carry::Content::pull`].
pub(super) fn pull(api: &Api, plan: &GuestPlan, path: &GuestPath, folders: bool, to: &mut dyn Write) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::usage("the guest's root or home as a whole cannot be copied"))?;
    let guest = plan.name.as_str();
    let mut place = path.beneath(HOME);
    for _ in 0..MOST_LINKS {
        let (there, ..) = api.file(guest, &place)?.ok_or_else(|| carry::not_found(path))?;
        match there {
            // The daemon says where a link leads from the root on.
            There::Link(target) => place = target,
            There::Folder(_) if !folders => return Err(carry::is_folder(path.as_str())),
            _ => {
                let mut archive = Builder::new(to);
                let added = add(api, guest, &place, name, &mut archive, 0);
                let packed = added.and_then(|()| archive.finish().context(|| "packing files".into()));
                if packed.is_err() {
                    // It would end as if it were whole.
                    std::mem::forget(archive);
                }
                return packed;
            }
        }
    }
    Err(Error::failed(format!("the guest's '{path}' is a link without an end")))
}

fn add(
    api: &Api,
    guest: &str,
    place: &str,
    name: &str,
    archive: &mut Builder<&mut dyn Write>,
    depth: usize,
) -> Result<()> {
    interrupt::check()?;
    if depth > DEEPEST {
        return Err(Error::refused("the guest's folders lie too deep"));
    }
    // It may have gone since it was listed.
    let Some((there, mode, mtime)) = api.file(guest, place)? else { return Ok(()) };
    let packing = || format!("copying '{place}'");
    match there {
        There::File(length, body) => {
            let mut header = carry::header(&Kept::File(place.into()), mode, mtime);
            header.set_size(length);
            archive.append_data(&mut header, name, body).context(packing)
        }
        There::Link(target) => {
            let mut header = carry::header(&Kept::Link(String::new()), 0o777, mtime);
            archive.append_link(&mut header, name, target).context(packing)
        }
        There::Folder(names) => {
            let mut header = carry::header(&Kept::Folder, mode, mtime);
            archive.append_data(&mut header, format!("{name}/"), std::io::empty()).context(packing)?;
            names.iter().try_for_each(|below| {
                add(api, guest, &format!("{place}/{below}"), &format!("{name}/{below}"), archive, depth + 1)
            })
        }
    }
}

/// As [`carry::Content::push`].
pub(super) fn push(api: &Api, plan: &GuestPlan, what: &Load, to: &GuestPath) -> Result<()> {
    let guest = plan.name.as_str();
    let mut place = to.beneath(HOME);
    if is_folder(api, guest, &place)? {
        place = format!("{}/{}", place.trim_end_matches('/'), what.name);
        if is_folder(api, guest, &place)? {
            return Err(carry::exists(to));
        }
    } else {
        let parent = place.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent });
        if !is_folder(api, guest, parent)? {
            return Err(carry::not_found(to));
        }
    }
    for item in &what.items {
        interrupt::check()?;
        let path = if item.path.is_empty() { place.clone() } else { format!("{place}/{}", item.path) };
        let written = match &item.kept {
            Kept::Folder => Written::Folder,
            Kept::File(from) => Written::File(fs::open(from)?),
            Kept::Link(target) => Written::Link(target),
        };
        api.lay(guest, &path, item.mode, written).map_err(|error| match error.kind() {
            Kind::NotFound => carry::not_found(to),
            _ => super::doing(error, format!("writing '{path}' in the guest '{guest}'")),
        })?;
    }
    Ok(())
}

/// Whether a folder is there, also by a link.
fn is_folder(api: &Api, guest: &str, place: &str) -> Result<bool> {
    let mut place = place.to_owned();
    for _ in 0..MOST_LINKS {
        match api.file(guest, &place)? {
            Some((There::Link(target), ..)) => place = target,
            Some((There::Folder(_), ..)) => return Ok(true),
            _ => return Ok(false),
        }
    }
    Ok(false)
}
