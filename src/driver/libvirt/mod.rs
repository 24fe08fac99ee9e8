//! Guests of a libvirt daemon, here or elsewhere: `qemu:///system`,
//! `qemu:///session`, or a remote URI.
//!
//! A guest is a domain whose UUID is the plan's id, with an element of ours in
//! its metadata; domains without one are never touched. The domain is defined
//! before any of its volumes is made, so that whatever a killed command left
//! is found again by its label.

mod address;
mod change;
mod connection;
mod console;
mod domain;
mod label;
mod library;
mod network;
mod plug;
mod power;
mod probe;
mod raw;
mod screen;
mod session;
mod snapshot;
mod storage;
mod template;
pub mod uvtool;
mod volumes;
mod xml;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use self::connection::{Connection, Connections, doing, found};
use self::domain::{Definition, machine_of};
use self::power::status_of;
use self::session::parsed;
use self::storage::{POOL, Storage, UVTOOL};
use self::uvtool::Uvtool;
use super::{
    Ability, Away, Begin, Boots, Capabilities, Driver, DriverSettings, Finding, Owned, ProbeDepth, Reached, Saved,
    SavedIn, SeedIn, Started, Status, Stop, Storage as Where, incus, known, lxc,
};
use crate::base::nic::Network;
use crate::base::plan::{Daemon, Disk, Forward};
use crate::base::platform::Firmware;
use crate::base::{Arch, ByteSize, Error, GuestName, GuestPlan, Kind, Layout, Result, fs};

/// The driver.
#[derive(Debug)]
pub struct Libvirt {
    layout: Layout,
    daemon: Daemon,
    connections: Connections,
}

impl Libvirt {
    /// Opens it; no I/O.
    #[must_use]
    pub fn new(settings: &DriverSettings) -> Self {
        let root = rustix::process::geteuid().is_root();
        let usual = if root { "qemu:///system" } else { "qemu:///session" };
        let uri = settings.connect.clone().filter(|uri| is_libvirt(uri)).unwrap_or_else(|| usual.to_owned());
        let pool = settings.pool.clone().unwrap_or_else(|| POOL.to_owned());
        Libvirt { layout: settings.layout.clone(), daemon: Daemon { uri, pool }, connections: Connections::shared() }
    }

    fn daemon_of<'a>(&'a self, plan: &'a GuestPlan) -> &'a Daemon {
        plan.daemon.as_ref().unwrap_or(&self.daemon)
    }

    fn connection(&self, plan: &GuestPlan) -> Result<Arc<Connection>> {
        self.connections.get(&self.daemon_of(plan).uri)
    }

    /// The guest's domain; `None` when libvirt knows none with its id.
    fn domain(&self, connection: &Connect, plan: &GuestPlan) -> Result<Option<Domain>> {
        let uuid = plan.id.as_str();
        found(connection.lookup_domain_by_uuid_string(uuid), || format!("looking for the guest '{}'", plan.name))
    }

    fn running(&self, connection: &Connect, plan: &GuestPlan) -> Result<Domain> {
        let domain = self.domain(connection, plan)?;
        let domain = domain.filter(|domain| domain.is_active().unwrap_or(false));
        domain.ok_or_else(|| Error::failed(format!("guest '{}' is not running", plan.name)))
    }

    /// The name is free, or the domain that has it is this guest.
    fn name_is_free(connection: &Connect, plan: &GuestPlan) -> Result<()> {
        let name = plan.name.as_str();
        let there = found(connection.lookup_domain_by_name(name), || format!("looking for the domain '{name}'"))?;
        let Some(there) = there else { return Ok(()) };
        if there.uuid_string().is_ok_and(|uuid| uuid == plan.id.as_str()) {
            return Ok(());
        }
        Err(Error::new(Kind::Exists, format!("libvirt has a domain '{name}' already, which is not virga's"))
            .hint("choose another name"))
    }

    /// Defines the domain as the plan says, anew where there is one.
    fn define(&self, storage: &Storage<'_>, plan: &GuestPlan, ports: &[u16]) -> Result<(Domain, Option<String>)> {
        let connection = storage.connection;
        let daemon = self.daemon_of(plan);
        if let Some(disk) = plan.disks.iter().find(|disk| disk.kept && !is_local(&daemon.uri)) {
            let what = format!("'{}' is a file of this host, and the guest's is another", disk.path.display());
            return Err(Error::new(Kind::Unsupported, what).hint("'--size' makes a disk there"));
        }
        let places = storage.places(&*storage.pool()?, plan)?;
        let (kvm, note) = self.accelerator(connection, plan)?;
        let state = known::id(&self.layout)?;
        known::remember(&self.layout, daemon)?;
        let log = is_local(&daemon.uri);
        if log {
            // Made here, so that it is ours whoever writes into it.
            drop(fs::open_or_create(&plan.console_log)?);
        }
        let there = self.domain(connection, plan)?;
        let machine = there.map(|domain| machine_of(&domain)).transpose()?.flatten();
        let definition = Definition { plan, places: &places, kvm, state: &state, ports, log, machine };
        let document = definition.document()?;
        let domain = connection
            .define_domain_xml(&document)
            .map_err(doing(format!("defining the guest '{}' at '{}'", plan.name, daemon.uri)))?;
        Ok((domain, note))
    }

    /// Defines the domain, under a name that must not be another's.
    fn first_definition(&self, storage: &Storage<'_>, plan: &GuestPlan) -> Result<()> {
        let connection = storage.connection;
        if self.domain(connection, plan)?.is_none() {
            Self::name_is_free(connection, plan)?;
            storage.names_are_free(plan)?;
        }
        let ports = if address::in_user_space(plan) { network::choose_ports(plan)? } else { Vec::new() };
        self.define(storage, plan, &ports).map(drop)
    }

    fn undefine(domain: &Domain) -> Result<()> {
        if domain.is_active().unwrap_or(false) {
            // It may end by itself right now.
            let ended = domain.destroy();
            if domain.is_active().unwrap_or(false) {
                ended.map_err(doing("ending a guest"))?;
            }
        }
        let all = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
        found(domain.undefine_flags(all), || "removing a guest from libvirt".into()).map(drop)
    }

    /// The domains of this state folder at a daemon, with the guests that they are.
    fn ours(&self, connection: &Connect) -> Result<Vec<(GuestName, Domain)>> {
        let state = known::id(&self.layout)?;
        let domains = connection.list_all_domains(0).map_err(doing("listing libvirt's domains"))?;
        let mut ours = Vec::new();
        for domain in domains {
            // One that goes while it is looked at is nobody's any more.
            let Ok(document) = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE) else { continue };
            if let Some(name) = label::read(&document, &state) {
                ours.push((name, domain));
            }
        }
        Ok(ours)
    }
}

/// Whether the daemon is on this host, so that it can write into files of ours. Another transport than its socket may
/// lead anywhere, also where no host is named (libvirt's "Remote support", `ext`).
fn is_local(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    rest.starts_with('/') && matches!(scheme.split_once('+'), None | Some((_, "unix")))
}

fn unsupported(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the libvirt driver cannot {what}"))
}

impl Driver for Libvirt {
    fn capabilities(&self) -> Capabilities {
        let session = is_session(&self.daemon.uri);
        Capabilities {
            boots: &[Boots::DiskImage],
            storage: Where::BackendPool,
            seed: SeedIn::Image,
            reached: if session { Reached::LoopbackPort } else { Reached::Address },
            default_network: if session { Network::User } else { Network::Nat },
            host_closed: Ability::No(
                "libvirt has no setting for that: its passt leads the gateway's address to the host",
            ),
            console_log: is_local(&self.daemon.uri),
            memory_snapshots: false,
            saved_in: SavedIn::Backend,
            own_clock: true,
            exec: Ability::No("a machine is entered over SSH"),
            files: Ability::No("a machine is entered over SSH"),
            files_when_stopped: Ability::No("a machine is entered over SSH"),
            publish: Ability::No(
                "what of its disk makes it that guest cannot be taken out from outside; 'virga clone' copies it",
            ),
            export: Ability::No("its disks stand on images of the pool; 'virga stream add' publishes a disk"),
            folders: Ability::No("a machine has disks: a folder gets there by 'virga cp -r'"),
            folders_when_running: Ability::No("a machine has disks: a folder gets there by 'virga cp -r'"),
            ports: Ability::No("its ports are chosen when it starts: 'create --port'"),
            resize_when_running: Ability::No("what its machine is like is settled when it starts"),
            daemon_images: Ability::No("its images are virga's"),
            autostart: match session {
                true => Ability::No("a session's daemon does not run before its user asks it for something"),
                false => Ability::Yes,
            },
        }
    }

    fn daemon(&self) -> Option<Daemon> {
        Some(self.daemon.clone())
    }

    fn probe(&self, depth: ProbeDepth) -> Vec<Finding> {
        probe::findings(&self.connections, &self.daemon, depth)
    }

    fn complete(&self, plan: &mut GuestPlan) -> Result<()> {
        // Which files it is is the daemon's own affair.
        match (plan.arch, plan.platform.firmware) {
            (Arch::Arm64, Firmware::Bios) => {
                Err(Error::new(Kind::Unsupported, "arm64 guests have no BIOS").hint("they start by '--firmware uefi'"))
            }
            _ => Ok(()),
        }
    }

    fn create(&self, plan: &GuestPlan) -> Result<()> {
        if plan.disks.is_empty() || plan.cpus == 0 {
            return Err(Error::usage("a guest needs a disk to boot from and at least one processor"));
        }
        if !plan.forwards.is_empty() && !address::in_user_space(plan) {
            return Err(Error::usage(
                "a guest whose first card is not on the network 'user' has its own address: no port is forwarded",
            )
            .hint("leave out '--port', or put its first card on '--network user'"));
        }
        if plan.nics.iter().any(|nic| nic.network == Network::None) {
            return Err(Error::new(Kind::Unsupported, "libvirt has no network 'none'")
                .hint("the qemu driver has; or name one of libvirt's that is isolated: '--network network=NAME'"));
        }
        let connection = self.connection(plan)?;
        // Before its volumes: they are found again by it.
        let storage = Storage::new(&connection, self.daemon_of(plan));
        self.first_definition(&storage, plan)?;
        storage.lay_out(plan)
    }

    fn newest_machine(&self, plan: &GuestPlan) -> Result<String> {
        self.newest(plan)
    }

    fn duplicate(&self, from: &GuestPlan, to: &GuestPlan) -> Result<()> {
        let connection = self.connection(to)?;
        let storage = Storage::new(&connection, self.daemon_of(to));
        self.first_definition(&storage, to)?;
        storage.duplicate(from, to)
    }

    fn reconfigure(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        self.change(old, new)
    }

    fn shed(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        let connection = self.connection(new)?;
        Storage::new(&connection, self.daemon_of(new)).shed(old, new)
    }

    fn plug(&self, plan: &GuestPlan, disk: &Disk) -> Result<()> {
        self.plug_in(plan, disk)
    }

    fn unplug(&self, plan: &GuestPlan, disk: &Disk) -> Result<()> {
        self.take_out(plan, disk)
    }

    fn start(&self, plan: &GuestPlan, begin: Begin<'_>) -> Result<Started> {
        if !matches!(begin, Begin::Boot) {
            return Err(unsupported("load saved machines"));
        }
        self.boot(plan)
    }

    fn load(&self, _plan: &GuestPlan, _from: &Saved) -> Result<()> {
        Err(unsupported("load saved machines"))
    }

    fn release(&self, plan: &GuestPlan) -> Result<()> {
        let connection = self.connection(plan)?;
        let domain = self.running(&connection, plan)?;
        match self.status(plan)? {
            Status::Paused => {
                let asleep = raw::state(&domain).is_ok_and(|(state, _)| state == sys::VIR_DOMAIN_PMSUSPENDED);
                let going = if asleep { domain.pm_wakeup(0) } else { domain.resume() };
                going.map_err(doing("letting the guest run"))
            }
            _ => Ok(()),
        }
    }

    fn connect(&self, _plan: &GuestPlan) -> Result<()> {
        Err(unsupported("load saved machines"))
    }

    fn save(&self, _plan: &GuestPlan, _to: &Saved) -> Result<()> {
        Err(unsupported("save machines into files"))
    }

    fn fingerprint(&self, _plan: &GuestPlan) -> Result<BTreeMap<String, String>> {
        Err(unsupported("save machines into files"))
    }

    fn channel(&self, _plan: &GuestPlan) -> Result<UnixStream> {
        Err(unsupported("renew saved machines"))
    }

    fn stop(&self, plan: &GuestPlan, how: Stop) -> Result<()> {
        self.power_off(plan, how)
    }

    fn remove(&self, plan: &GuestPlan) -> Result<()> {
        let connection = self.connection(plan)?;
        let daemon = self.daemon_of(plan);
        let domain = self.domain(&connection, plan)?;
        if daemon.pool == UVTOOL {
            // Names in this pool tell nothing about whose a volume is: without a domain that says so none is ours.
            let uvtool = Uvtool::new(&daemon.uri);
            return domain.map_or(Ok(()), |domain| uvtool.take_away(&domain, plan.volumes().as_str()));
        }
        let storage = Storage::new(&connection, daemon);
        // Before the domain goes: a pool that does not start would keep what nobody names any more.
        let pool = storage.exists()?.then(|| storage.pool()).transpose()?;
        if let Some(domain) = domain {
            Self::undefine(&domain)?;
        }
        pool.map_or(Ok(()), |pool| storage.remove(&pool, plan))
    }

    fn status(&self, plan: &GuestPlan) -> Result<Status> {
        let connection = self.connection(plan)?;
        let Some(domain) = self.domain(&connection, plan)? else { return Ok(Status::Stopped) };
        status_of(&domain)
    }

    fn glance(&self, plan: &GuestPlan) -> Result<Option<Status>> {
        self.status(plan).map(Some)
    }

    fn address(&self, _plan: &GuestPlan) -> Option<[Ipv4Addr; 2]> {
        None
    }

    fn endpoint(&self, plan: &GuestPlan) -> Result<Option<SocketAddr>> {
        let connection = self.connection(plan)?;
        let domain = self.domain(&connection, plan)?.filter(|domain| domain.is_active().unwrap_or(false));
        domain.map_or(Ok(None), |domain| address::endpoint(&domain, plan))
    }

    fn forwards(&self, plan: &GuestPlan) -> Result<Vec<Forward>> {
        let connection = self.connection(plan)?;
        let domain = self.domain(&connection, plan)?.filter(|domain| domain.is_active().unwrap_or(false));
        domain.map_or_else(|| Ok(plan.forwards.clone()), |domain| address::forwards(&domain, plan))
    }

    fn console_tail(&self, plan: &GuestPlan, lines: usize) -> Result<Vec<String>> {
        if !is_local(&self.daemon_of(plan).uri) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("the console of '{}' is not logged on this host", plan.name),
            )
            .hint(format!("'virga console {}' at a terminal connects to it", plan.name)));
        }
        super::console::tail(&plan.console_log, lines)
    }

    fn sweep_images(
        &self,
        needed: &dyn Fn(&str) -> bool,
        dry_run: bool,
        away: Away<'_>,
    ) -> Result<Vec<(String, ByteSize)>> {
        let mut swept = Vec::new();
        for daemon in known::daemons(&self.layout, is_libvirt)? {
            match self.connections.get(&daemon.uri) {
                Ok(connection) => swept.extend(Storage::new(&connection, &daemon).sweep(needed, dry_run)?),
                Err(error) => away(error),
            }
        }
        Ok(swept)
    }

    fn list_owned(&self, away: Away<'_>) -> Result<Vec<Owned>> {
        let mut owned = BTreeSet::new();
        // Where no guest of this folder ever was nobody is asked, and no daemon started.
        for daemon in known::daemons(&self.layout, is_libvirt)? {
            match self.connections.get(&daemon.uri) {
                Ok(connection) => owned.extend(self.ours(&connection)?.into_iter().map(|(name, _)| name)),
                Err(error) => away(error),
            }
        }
        Ok(owned.into_iter().map(|name| Owned { name, pid: None, runtime: None }).collect())
    }

    fn remove_owned(&self, owned: &Owned) -> Result<()> {
        let known = known::daemons(&self.layout, is_libvirt)?;
        let uris: BTreeSet<&str> = known.iter().map(|daemon| daemon.uri.as_str()).collect();
        for uri in uris {
            // One that is away showed nothing to remove.
            let Ok(connection) = self.connections.get(uri) else { continue };
            for (name, domain) in self.ours(&connection)?.into_iter().filter(|(name, _)| *name == owned.name) {
                let document = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(doing("looking at a guest"))?;
                let volumes = label::volumes(&parsed(&document)?).unwrap_or(name);
                Uvtool::new(uri).take_away(&domain, volumes.as_str())?;
                let id = domain.uuid_string().map_err(doing("looking at a guest"))?;
                for daemon in known.iter().filter(|daemon| daemon.uri == uri && daemon.pool != UVTOOL) {
                    Storage::new(&connection, daemon).remove_named(&volumes, &id, &document)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether an address is a libvirt daemon's.
fn is_libvirt(uri: &str) -> bool {
    !incus::address::is_ours(uri) && !uri.starts_with(lxc::SCHEME)
}

/// Whether it is a daemon of one user's, which runs while it is used.
fn is_session(uri: &str) -> bool {
    uri.split('?').next().is_some_and(|uri| uri.ends_with("/session"))
}
