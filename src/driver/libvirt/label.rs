//! What marks a domain as ours, and what uvtool wants to find in one.

use super::xml::{Element, element};
use crate::base::{GuestName, GuestPlan};

/// The namespace of our element.
pub(super) const NAMESPACE: &str = "urn:virga:guest:1";

/// The namespace of uvtool's element, which holds the guest's host keys.
pub(super) const UVTOOL: &str = "https://launchpad.net/uvtool/libvirt/1";

/// A domain's `<metadata>`: whose it is, and its host keys as uvtool keeps them.
pub(super) fn metadata(plan: &GuestPlan, state: &str) -> Element {
    element("metadata").all(entries(plan, state))
}

/// What is in it.
pub(super) fn entries(plan: &GuestPlan, state: &str) -> [Element; 2] {
    let mut ours =
        element("virga:guest").with("xmlns:virga", NAMESPACE).with("name", plan.name.as_str()).with("state", state);
    if let Some(volumes) = &plan.volumes {
        ours = ours.with("volumes", volumes.as_str());
    }
    let keys = plan.host_keys.join("\n");
    let known = element("uvt:ssh_known_hosts").with("xmlns:uvt", UVTOOL).text(keys);
    [ours, known]
}

/// The host keys that a domain's metadata holds, one a line as uvtool and we write them.
pub(super) fn host_keys(domain: &roxmltree::Document<'_>) -> Vec<String> {
    let element = domain.descendants().find(|node| node.has_tag_name((UVTOOL, "ssh_known_hosts")));
    let text = element.and_then(|node| node.text()).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The guest that a domain is, if it is one of this state folder's.
pub(super) fn read(domain: &str, state: &str) -> Option<GuestName> {
    let document = roxmltree::Document::parse(domain).ok()?;
    let label = element_of(&document)?;
    (label.attribute("state") == Some(state)).then(|| label.attribute("name")?.parse().ok())?
}

/// The name that the volumes of a domain of ours bear, where it is not its own.
pub(super) fn volumes(domain: &roxmltree::Document<'_>) -> Option<GuestName> {
    element_of(domain)?.attribute("volumes")?.parse().ok()
}

fn element_of<'a>(domain: &'a roxmltree::Document<'_>) -> Option<roxmltree::Node<'a, 'a>> {
    let metadata = domain.root_element().children().find(|node| node.has_tag_name("metadata"))?;
    metadata.children().find(|node| node.has_tag_name((NAMESPACE, "guest")))
}
