//! Snapshots as libvirt keeps them: inside the guest's qcow2 volumes, listed with its domain.

use jiff::Timestamp;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::sys;

use super::connection::{doing, found};
use super::session::parsed;
use super::xml::element;
use crate::base::{Error, Result, SnapshotName};
use crate::driver::Snapshot;

/// All of a domain, oldest first.
///
/// # Errors
/// What libvirt said.
pub(super) fn list(domain: &Domain) -> Result<Vec<Snapshot>> {
    let what = || "listing the guest's snapshots";
    let mut all = Vec::new();
    for one in domain.list_all_snapshots(0).map_err(doing(what()))? {
        let name = one.name().map_err(doing(what()))?;
        // One that goes while it is looked at is none any more.
        let Some(document) = found(one.xml_desc(0), || what().to_owned())? else { continue };
        all.extend(read(name, &document)?);
    }
    all.sort_by_key(|snapshot| snapshot.taken);
    Ok(all)
}

/// libvirt's documentation, "Snapshot XML format".
fn read(name: String, document: &str) -> Result<Option<Snapshot>> {
    let read = parsed(document)?;
    let child = |name: &str| read.root_element().children().find(|node| node.has_tag_name(name));
    let taken = child("creationTime").and_then(|node| node.text()?.parse().ok());
    let taken = taken.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let ran = child("state").and_then(|node| node.text()).is_some_and(|state| matches!(state, "running" | "paused"));
    let memory = child("memory").and_then(|node| node.attribute("snapshot")).map_or(ran, |kind| kind != "no");
    Ok(taken.map(|taken| Snapshot { name, taken, memory }))
}

/// Takes one of all disks that are written to, with the memory if the domain runs.
///
/// # Errors
/// What libvirt said.
pub(super) fn take(domain: &Domain, name: &SnapshotName) -> Result<()> {
    let document = domain.xml_desc(0).map_err(doing("looking at the guest"))?;
    let read = parsed(&document)?;
    let disks = read.descendants().filter(|node| node.has_tag_name("disk")).filter_map(|disk| {
        let child = |name: &str| disk.children().find(|node| node.has_tag_name(name));
        let kind = if child("readonly").is_some() { "no" } else { "internal" };
        Some(element("disk").with("name", child("target")?.attribute("dev")?).with("snapshot", kind))
    });
    let snapshot = element("domainsnapshot")
        .has(element("name").text(name.as_str()))
        .has(element("disks").all(disks.collect::<Vec<_>>()));
    domain.create_snapshot_xml(&snapshot.document()?, 0).map(drop).map_err(doing("taking a snapshot of the guest"))
}

/// Puts a domain back; with memory it runs then.
///
/// # Errors
/// [`crate::base::Kind::Failed`] for a guest that had another name then; what libvirt said.
pub(super) fn restore(domain: &Domain, snapshot: &Snapshot) -> Result<()> {
    let what = || doing("restoring a snapshot of the guest");
    let (now, kept) = (domain.name().map_err(what())?, find(domain, &snapshot.name)?);
    let then = name_in(&kept.xml_desc(0).map_err(what())?)?;
    if let Some(then) = then.filter(|then| *then != now) {
        // It would bear that name again, and the labels of a guest that is no more.
        return Err(Error::failed(format!("the guest was called '{then}' when the snapshot was taken"))
            .hint(format!("call it that again meanwhile: virga rename {now} {then}")));
    }
    let flags = if snapshot.memory { sys::VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING } else { 0 };
    kept.revert(flags).map_err(what())
}

/// The name of the domain that a snapshot is of.
fn name_in(document: &str) -> Result<Option<String>> {
    let read = parsed(document)?;
    let domain = read.root_element().children().find(|node| node.has_tag_name("domain"));
    let name = domain.and_then(|domain| domain.children().find(|node| node.has_tag_name("name")));
    Ok(name.and_then(|name| name.text()).map(str::to_owned))
}

/// Removes one; those that were taken after it stay.
///
/// # Errors
/// What libvirt said.
pub(super) fn remove(domain: &Domain, name: &SnapshotName) -> Result<()> {
    find(domain, name.as_str())?.delete(0).map_err(doing("removing a snapshot of the guest"))
}

fn find(domain: &Domain, name: &str) -> Result<DomainSnapshot> {
    let found = found(Domain::lookup_snapshot_by_name(domain, name, 0), || "looking for a snapshot".into())?;
    found.ok_or_else(|| Error::not_found(format!("libvirt knows no snapshot '{name}' of the guest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_it_has_memory_is_read() {
        for (text, memory) in [
            ("<state>running</state><memory snapshot='internal'/>", true),
            ("<state>running</state><memory snapshot='no'/>", false),
            ("<state>shutoff</state><memory snapshot='no'/>", false),
            ("<state>paused</state>", true),
        ] {
            let document = format!("<domainsnapshot><creationTime>1795625718</creationTime>{text}</domainsnapshot>");
            let snapshot = read("s".into(), &document).unwrap().unwrap();
            assert_eq!((snapshot.memory, snapshot.taken.as_second()), (memory, 1_795_625_718), "{text}");
        }
        assert!(read("s".into(), "<domainsnapshot/>").unwrap().is_none());
    }
}
