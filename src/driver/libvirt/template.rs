//! A user's own domain XML in which a guest is filled in: what the guest is
//! (name, size, disks, identity) comes from its plan, the rest stays as it is
//! written.

use std::ops::Range;

use roxmltree::{Document, Node};

use super::domain::Definition;
use super::label;
use super::xml::{Element, element};
use crate::base::nic::Network;
use crate::base::{Context as _, Error, Kind, Result};

/// Those children of the root that the plan decides.
const DECIDED: [&str; 5] = ["name", "uuid", "memory", "currentMemory", "vcpu"];

/// The template with the guest in it.
///
/// # Errors
/// [`Kind::Usage`] for what is no domain's XML.
pub(super) fn fill(template: &str, definition: &Definition<'_>) -> Result<String> {
    let read = parse(template)?;
    let (plan, tuning) = (definition.plan, &definition.plan.tuning);
    let root = read.root_element();
    let mut edits = Edits { text: template, edits: Vec::new() };

    for child in root.children().filter(|child| DECIDED.iter().any(|name| child.has_tag_name(*name))) {
        edits.replace(child.range(), String::new());
    }
    edits.append(root, &element("name").text(plan.name.as_str()))?;
    edits.append(root, &element("uuid").text(plan.id.as_str()))?;
    edits.append(root, &element("memory").with("unit", "b").text(plan.memory.0.to_string()))?;
    edits.append(root, &element("vcpu").text(plan.cpus.to_string()))?;
    match child(root, "metadata") {
        None => edits.append(root, &label::metadata(plan, definition.state))?,
        Some(there) => label::entries(plan, definition.state).iter().try_for_each(|ours| edits.append(there, ours))?,
    }

    if let Some(kind) = root.attribute_node("type").filter(|kind| kind.value() == "kvm" && !definition.kvm) {
        edits.replace(kind.range_value(), "qemu".into());
    }
    let cpu = child(root, "cpu");
    let passed = cpu.is_some_and(|cpu| cpu.attribute("mode") == Some("host-passthrough"));
    if tuning.host_cpu || passed && !definition.kvm {
        // Without KVM there is no host's processor to be had.
        let mode = if definition.kvm { "host-passthrough" } else { "maximum" };
        edits.put(root, cpu, &element("cpu").with("mode", mode))?;
    }
    if let Some(machine) = &definition.plan.platform.machine
        && let Some(kind) = child(root, "os").and_then(|os| child(os, "type"))
    {
        let machine = quick_xml::escape::escape(machine.as_str());
        match kind.attribute_node("machine") {
            Some(old) => edits.replace(old.range_value(), machine.into_owned()),
            None => {
                let behind_name = kind.range().start + "<type".len();
                edits.replace(behind_name..behind_name, format!(" machine=\"{machine}\""));
            }
        }
    }
    devices(&mut edits, root, definition)?;
    Ok(edits.applied())
}

/// The networks that the template's cards are plugged into.
///
/// # Errors
/// As [`fill`].
pub(super) fn networks(template: &str) -> Result<Vec<String>> {
    let read = parse(template)?;
    let sources = read.descendants().filter(|node| node.has_tag_name("source"));
    let of_cards = sources.filter(|node| node.parent().is_some_and(|parent| parent.has_tag_name("interface")));
    Ok(of_cards.filter_map(|node| node.attribute("network").map(str::to_owned)).collect())
}

fn parse(template: &str) -> Result<Document<'_>> {
    let read = Document::parse(template).context(|| "the template is not XML".into());
    let read = read.map_err(|error| error.with_kind(Kind::Usage))?;
    if !read.root_element().has_tag_name("domain") {
        return Err(Error::usage("the template is not a domain's XML: its root is not 'domain'"));
    }
    Ok(read)
}

fn devices(edits: &mut Edits<'_>, root: Node<'_, '_>, definition: &Definition<'_>) -> Result<()> {
    let plan = definition.plan;
    let Some(devices) = child(root, "devices") else {
        let all = element("devices").all(definition.disks()?);
        let cards = plan.nics.iter().enumerate().map(|(number, nic)| definition.card(nic, number == 0));
        return edits.append(root, &all.all(cards).has(definition.serial()));
    };
    definition.disks()?.iter().try_for_each(|disk| edits.append(devices, disk))?;
    let cards: Vec<Node<'_, '_>> = devices.children().filter(|node| node.has_tag_name("interface")).collect();
    if plan.nics.iter().any(|nic| matches!(nic.network, Network::Bridge(_))) {
        cards.iter().for_each(|card| edits.replace(card.range(), String::new()));
        for (number, nic) in plan.nics.iter().enumerate() {
            edits.append(devices, &definition.card(nic, number == 0))?;
        }
    } else {
        // The seed's network configuration speaks of these addresses.
        for (card, nic) in cards.iter().zip(&plan.nics) {
            edits.put(*card, child(*card, "mac"), &element("mac").with("address", nic.mac.to_string()))?;
        }
    }
    if plan.tuning.log_console {
        let old = devices.children().filter(|node| node.has_tag_name("serial") || node.has_tag_name("console"));
        old.for_each(|node| edits.replace(node.range(), String::new()));
        edits.append(devices, &definition.serial())?;
    }
    Ok(())
}

/// The node's first child of this name.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// Changes to a text, none of which overlap.
struct Edits<'a> {
    text: &'a str,
    edits: Vec<(Range<usize>, String)>,
}

impl Edits<'_> {
    fn replace(&mut self, range: Range<usize>, with: String) {
        self.edits.push((range, with));
    }

    /// In place of a child, or behind the others where there is none.
    fn put(&mut self, parent: Node<'_, '_>, old: Option<Node<'_, '_>>, new: &Element) -> Result<()> {
        match old {
            None => self.append(parent, new),
            Some(old) => {
                self.replace(old.range(), new.document()?);
                Ok(())
            }
        }
    }

    /// Behind the other children.
    fn append(&mut self, parent: Node<'_, '_>, new: &Element) -> Result<()> {
        let new = new.document()?;
        let Range { start, end } = parent.range();
        let text = &self.text[start..end];
        match text.rfind("</").filter(|_| !text.ends_with("/>")) {
            Some(at) => self.replace(start + at..start + at, new),
            None => {
                // It has no end of its own yet; what is appended next stands before that end.
                let name = &text[1..];
                let name = name.split(|c: char| c.is_whitespace() || c == '/' || c == '>').next().unwrap_or_default();
                let after = format!("</{name}>");
                match self.edits.iter_mut().find(|(range, _)| *range == (end - 2..end)) {
                    Some((_, with)) => with.insert_str(with.len() - after.len(), &new),
                    None => self.replace(end - 2..end, [">", &new, &after].concat()),
                }
            }
        }
        Ok(())
    }

    fn applied(mut self) -> String {
        // Stable: what is put in one place keeps its order.
        self.edits.sort_by_key(|(range, _)| range.start);
        let (mut text, mut at) = (String::new(), 0);
        for (range, with) in self.edits {
            text.push_str(&self.text[at..range.start.max(at)]);
            text.push_str(&with);
            at = range.end.max(at);
        }
        text.push_str(&self.text[at..]);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::base::plan::{Accel, DiskFormat, InstanceId, Layer, Tuning};
    use crate::base::platform::Platform;
    use crate::base::{Arch, ByteSize, GuestPlan};
    use crate::driver::libvirt::storage::{Placed, Places};

    fn plan(network: Network, tuning: Tuning) -> GuestPlan {
        GuestPlan {
            name: "web".parse().unwrap(),
            id: InstanceId::try_from("00000000-0000-4000-8000-000000000001".to_owned()).unwrap(),
            arch: Arch::Amd64,
            memory: ByteSize(512 << 20),
            cpus: 3,
            accel: Accel::Tcg,
            disks: Vec::new(),
            seed: None,
            nics: vec![crate::base::nic::Nic { mac: "52:54:00:aa:bb:cc".parse().unwrap(), network }],
            forwards: Vec::new(),
            host_keys: vec!["ssh-ed25519 AAAA".into()],
            console_log: PathBuf::from("/console"),
            backend_log: PathBuf::from("/log"),
            runtime: PathBuf::from("/run"),
            daemon: None,
            tuning,
            platform: Platform::default(),
            container: None,
            volumes: None,
        }
    }

    fn filled(template: &str, network: &str, tuning: Tuning) -> String {
        let mut plan = plan(network.parse().unwrap(), tuning);
        plan.platform.machine = Some("pc'&".into());
        let top = Layer { path: PathBuf::from("/pool/web.qcow"), format: DiskFormat::Qcow2 };
        let disks = vec![Placed::alone(top.path, top.format)];
        let places = Places { disks, seed: Some("/pool/web-ds.qcow".into()), variables: None };
        let definition = Definition {
            plan: &plan,
            places: &places,
            kvm: false,
            state: "state",
            ports: &[],
            log: false,
            machine: None,
        };
        fill(template, &definition).unwrap()
    }

    const TEMPLATE: &str = "<?xml version='1.0'?>\n<domain type='kvm'><name>x</name><!-- kept -->\
        <currentMemory>1</currentMemory><os><type arch='x86_64'>hvm</type></os><cpu mode='host-passthrough'/>\
        <devices><interface type='network'><source network='lan'/></interface><serial type='pty'/></devices></domain>";

    #[test]
    fn the_guest_is_filled_in_and_the_rest_stays() {
        let text = filled(TEMPLATE, "nat", Tuning::default());
        let read = Document::parse(&text).unwrap();
        let root = read.root_element();
        let get = |name: &str| child(root, name).and_then(|node| node.text()).unwrap_or_default().to_owned();
        assert_eq!((get("name"), get("vcpu"), get("memory")), ("web".into(), "3".into(), "536870912".into()));
        assert_eq!(get("uuid"), "00000000-0000-4000-8000-000000000001");
        assert_eq!(root.children().filter(|node| node.has_tag_name("name")).count(), 1);
        assert!(child(root, "currentMemory").is_none() && text.contains("<!-- kept -->"));
        assert_eq!(root.attribute("type"), Some("qemu"), "no KVM here");
        assert_eq!(child(root, "cpu").unwrap().attribute("mode"), Some("maximum"));
        assert_eq!(child(child(root, "os").unwrap(), "type").unwrap().attribute("machine"), Some("pc'&"));
        let devices = child(root, "devices").unwrap();
        let card = child(devices, "interface").unwrap();
        assert_eq!(child(card, "source").unwrap().attribute("network"), Some("lan"));
        assert_eq!(child(card, "mac").unwrap().attribute("address"), Some("52:54:00:aa:bb:cc"));
        assert_eq!(devices.children().filter(|node| node.has_tag_name("disk")).count(), 2);
        assert!(text.contains("ssh-ed25519 AAAA"));
        assert_eq!(networks(TEMPLATE).unwrap(), ["lan"]);
    }

    #[test]
    fn a_bridge_replaces_all_cards_and_empty_elements_are_opened() {
        let text = filled(TEMPLATE, "bridge=br0", Tuning { log_console: true, ..Tuning::default() });
        assert!(text.contains("<source bridge=\"br0\"/>") && !text.contains("lan"), "{text}");
        assert!(text.contains("<serial type=\"stdio\"/>") && !text.contains("pty"), "{text}");
        for template in ["<domain/>", "<domain><metadata/><devices /></domain>"] {
            let text = filled(template, "nat", Tuning::default());
            let read = Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let devices = child(read.root_element(), "devices").unwrap();
            assert_eq!(devices.children().filter(|node| node.has_tag_name("disk")).count(), 2, "{text}");
            assert_eq!(child(read.root_element(), "metadata").unwrap().children().count(), 2, "{text}");
        }
        for bad in ["", "<domain>", "<network/>"] {
            assert_eq!(parse(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }
}
