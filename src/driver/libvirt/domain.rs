//! A guest's plan as libvirt's domain XML (libvirt's documentation, "Domain XML format").

use virt::domain::Domain;
use virt::sys;

use super::connection::doing;
use super::label;
use super::storage::{Placed, Places};
use super::xml::{Element, element};
use crate::base::nic::{Network, Nic};
use crate::base::plan::{DiskFormat, Layer};
use crate::base::platform::Firmware;
use crate::base::{Arch, Error, GuestPlan, Kind, Result};

/// The port of the guest's SSH server.
pub(super) const SSH: u16 = 22;

/// How many disks at least can be attached to a guest as it runs.
const PORTS: usize = 4;

/// What sits behind a port besides disks and cards: seed, balloon, random numbers, channel, USB, on arm64 the display.
const OTHERS: usize = 6;

/// What a definition needs besides the plan.
#[derive(Clone, Debug)]
pub(super) struct Definition<'a> {
    pub plan: &'a GuestPlan,
    pub places: &'a Places,
    /// Whether KVM runs it; else it is emulated.
    pub kvm: bool,
    /// Whose guest it is: the id of our state folder.
    pub state: &'a str,
    /// The host's ports that lead to SSH and to the plan's forwards, for a card in user space.
    pub ports: &'a [u16],
    /// Whether the console can be written into a file of ours: the daemon is on this host.
    pub log: bool,
    /// The machine type of the domain that is there already.
    pub machine: Option<String>,
}

/// The concrete machine type that libvirt chose when it defined a domain: it would choose anew each time it is left out.
///
/// # Errors
/// What libvirt said.
pub(super) fn machine_of(domain: &Domain) -> Result<Option<String>> {
    let text = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(doing("looking at the guest"))?;
    let document = roxmltree::Document::parse(&text).map_err(|e| Error::failed("reading libvirt's XML").because(e))?;
    let os = document.root_element().children().find(|node| node.has_tag_name("os"));
    let kind = os.and_then(|os| os.children().find(|node| node.has_tag_name("type")));
    Ok(kind.and_then(|kind| kind.attribute("machine")).map(str::to_owned))
}

impl Definition<'_> {
    /// The document.
    ///
    /// # Errors
    /// [`Kind::Usage`] for text that XML cannot hold.
    pub(super) fn document(&self) -> Result<String> {
        let plan = self.plan;
        if let Some(template) = &plan.tuning.template {
            return super::template::fill(template, self);
        }
        let mut domain = element("domain")
            .with("type", if self.kvm { "kvm" } else { "qemu" })
            .has(element("name").text(plan.name.as_str()))
            .has(element("uuid").text(plan.id.as_str()))
            .all((plan.arch == Arch::Amd64).then(|| element("genid").text(plan.id.as_str())))
            .has(label::metadata(plan, self.state))
            .has(element("memory").with("unit", "b").text(plan.memory.0.to_string()))
            .has(element("vcpu").text(plan.cpus.to_string()));
        if plan.nics.iter().any(|nic| nic.network.in_user_space()) {
            // passt shares the guest's memory.
            let shared = element("access").with("mode", "shared");
            domain = domain.has(element("memoryBacking").has(element("source").with("type", "memfd")).has(shared));
        }
        domain
            .has(self.os())
            .has(self.features())
            .has(element("cpu").with("mode", if self.kvm { "host-passthrough" } else { "maximum" }))
            .has(element("clock").with("offset", "utc"))
            .has(element("on_poweroff").text("destroy"))
            .has(element("on_reboot").text("restart"))
            .has(element("on_crash").text("destroy"))
            .has(self.devices()?)
            .document()
    }

    fn machine_type(&self) -> &str {
        let newest = newest_machine(self.plan.arch);
        self.plan.platform.machine.as_deref().or(self.machine.as_deref()).unwrap_or(newest)
    }

    fn os(&self) -> Element {
        let machine = self.machine_type();
        let kind = element("type").with("arch", machine_name(self.plan.arch)).with("machine", machine).text("hvm");
        let boot = element("boot").with("dev", "hd");
        let secure = match self.plan.platform.firmware {
            Firmware::Bios => return element("os").has(kind).has(boot),
            Firmware::Uefi => "no",
            Firmware::UefiSecure => "yes",
        };
        let feature = |name: &str| element("feature").with("enabled", secure).with("name", name);
        let features = element("firmware").has(feature("secure-boot")).has(feature("enrolled-keys"));
        let mut os = element("os").with("firmware", "efi").has(kind).has(features);
        if let Some(path) = &self.places.variables {
            os = os.has(element("nvram").text(path.display().to_string()));
        }
        os.has(boot)
    }

    fn features(&self) -> Element {
        let features = element("features").has(element("acpi"));
        let features = if self.plan.arch == Arch::Amd64 { features.has(element("apic")) } else { features };
        // What the guest's system runs may not write the variables: only the firmware in its own mode may.
        let secure = self.plan.arch == Arch::Amd64 && self.plan.platform.firmware == Firmware::UefiSecure;
        if secure { features.has(element("smm").with("state", "on")) } else { features }
    }

    fn devices(&self) -> Result<Element> {
        let plan = self.plan;
        let mut devices = element("devices").all(self.disks()?);
        for (number, nic) in plan.nics.iter().enumerate() {
            devices = devices.has(self.card(nic, number == 0));
        }
        let vga = if plan.arch == Arch::Amd64 { "vga" } else { "virtio" };
        if plan.platform.tpm {
            let model = if plan.arch == Arch::Amd64 { "tpm-crb" } else { "tpm-tis" };
            let backend = element("backend").with("type", "emulator").with("version", "2.0");
            devices = devices.has(element("tpm").with("model", model).has(backend));
        }
        Ok(devices
            .all(self.ports())
            .has(self.serial())
            .has(
                element("channel")
                    .with("type", "unix")
                    .has(element("target").with("type", "virtio").with("name", "org.qemu.guest_agent.0")),
            )
            .has(
                element("graphics")
                    .with("type", "vnc")
                    .with("autoport", "yes")
                    .has(element("listen").with("type", "address").with("address", "127.0.0.1")),
            )
            // GRUB hangs without any display device.
            .has(element("video").has(element("model").with("type", vga)))
            .has(
                element("rng")
                    .with("model", "virtio")
                    .has(element("backend").with("model", "random").text("/dev/urandom")),
            ))
    }

    /// A port for each device that may sit behind one, and some that are free: a disk can be attached as it runs.
    fn ports(&self) -> Vec<Element> {
        let machine = self.machine_type();
        if machine == "pc" || machine.starts_with("pc-i440fx") {
            // From before PCI Express: a bus without ports, which takes devices at any time.
            return Vec::new();
        }
        let ports = OTHERS + PORTS + self.places.disks.len() + self.plan.nics.len();
        let controller = |model: &str| element("controller").with("type", "pci").with("model", model);
        let mut all = vec![controller("pcie-root").with("index", "0")];
        all.resize_with(1 + ports, || controller("pcie-root-port"));
        all
    }

    /// The disks, the seed behind them.
    pub(super) fn disks(&self) -> Result<Vec<Element>> {
        let cache = self.plan.tuning.disk_cache.as_deref();
        let mut disks = Vec::new();
        for (number, placed) in self.places.disks.iter().enumerate() {
            disks.push(disk(placed, &target(number)?, cache));
        }
        if let Some(seed) = &self.places.seed {
            // Not a CD-ROM: Debian's cloud kernel has no driver for the SATA one. cloud-init finds it by label.
            let placed = Placed::alone(seed.clone(), DiskFormat::Raw).read_only(true);
            disks.push(disk(&placed, &target(disks.len())?, cache));
        }
        Ok(disks)
    }

    pub(super) fn serial(&self) -> Element {
        let serial = element("serial").with("type", if self.plan.tuning.log_console { "stdio" } else { "pty" });
        match self.plan.console_log.to_str().filter(|_| self.log) {
            None => serial,
            Some(path) => serial.has(element("log").with("file", path).with("append", "on")),
        }
    }

    pub(super) fn card(&self, nic: &Nic, first: bool) -> Element {
        let mac = element("mac").with("address", nic.mac.to_string());
        let model = element("model").with("type", "virtio");
        let interface = |kind: &str| element("interface").with("type", kind).has(mac.clone());
        let plugged = |kind: &'static str, name: &str| interface(kind).has(element("source").with(kind, name));
        match &nic.network {
            Network::Nat => plugged("network", "default").has(model),
            Network::Named(name) => plugged("network", name.as_str()).has(model),
            Network::Bridge(name) => plugged("bridge", name.as_str()).has(model),
            Network::User | Network::Full | Network::None => {
                let card = interface("user").has(model).has(element("backend").with("type", "passt"));
                if first { card.all(self.forwards()) } else { card }
            }
        }
    }

    /// One element a port, so that each can go to another one.
    fn forwards(&self) -> Vec<Element> {
        let guest = std::iter::once(SSH).chain(self.plan.forwards.iter().map(|forward| forward.guest));
        let forward = |(host, guest): (&u16, u16)| {
            let range = element("range").with("start", host.to_string()).with("to", guest.to_string());
            element("portForward").with("proto", "tcp").with("address", "127.0.0.1").has(range)
        };
        self.ports.iter().zip(guest).map(forward).collect()
    }
}

/// The name that stands for the newest machine type.
pub(super) fn newest_machine(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "q35",
        Arch::Arm64 => "virt",
    }
}

/// libvirt's name of an architecture.
pub(super) fn machine_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64",
        Arch::Arm64 => "aarch64",
    }
}

/// The name of the disk with this number: `vda`, `vdb` …
fn target(number: usize) -> Result<String> {
    let letter = u8::try_from(number).ok().filter(|number| *number < 26);
    let letter = letter.ok_or_else(|| Error::new(Kind::Unsupported, "a guest has at most 26 disks"))?;
    Ok(format!("vd{}", char::from(b'a' + letter)))
}

/// With every layer and its format said, so that nothing is ever guessed, and what confines the guest lets it read them.
pub(super) fn disk(placed: &Placed, name: &str, cache: Option<&str>) -> Element {
    let driver = element("driver").with("name", "qemu").with("type", placed.top.format.name());
    let disk = element("disk")
        .with("type", "file")
        .with("device", "disk")
        .has(match cache {
            Some(cache) => driver.with("cache", cache).with("discard", "unmap"),
            None => driver.with("discard", "unmap"),
        })
        .has(source(&placed.top))
        .has(beneath(&placed.chain))
        .has(element("target").with("dev", name).with("bus", "virtio"));
    if placed.read_only { disk.has(element("readonly")) } else { disk }
}

fn source(layer: &Layer) -> Element {
    element("source").with("file", layer.path.display().to_string())
}

fn beneath(chain: &[Layer]) -> Element {
    let Some((layer, beneath_it)) = chain.split_first() else { return element("backingStore") };
    element("backingStore")
        .with("type", "file")
        .has(element("format").with("type", layer.format.name()))
        .has(source(layer))
        .has(beneath(beneath_it))
}
