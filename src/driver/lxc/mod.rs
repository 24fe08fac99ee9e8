//! Containers by the tools of classic LXC: no daemon, a folder each.
//!
//! All of a state folder's containers are in one folder of our own, which LXC's
//! programs are given as `--lxcpath`: what the user keeps in LXC's own folder is
//! neither seen nor touched. `lxc-create` is not used: what it does, we do with
//! the care that hostile images want, and LXC gets a root that is unpacked and
//! settings that are written.

mod attach;
mod config;
mod idmap;
mod place;
mod probe;
mod session;
mod tools;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use self::idmap::IdMap;
use super::{
    Ability, Away, Begin, Boots, Capabilities, Driver, DriverSettings, Finding, Owned, ProbeDepth, Reached, Saved,
    SavedIn, SeedIn, Started, Status, Stop, Storage, console, known,
};
use crate::base::layout::LxcFiles;
use crate::base::nic::Network;
use crate::base::plan::{Daemon, Disk, Forward, InstanceId};
use crate::base::platform::Firmware;
use crate::base::{Arch, ByteSize, Error, GuestPlan, Kind, Layout, Result, fs};

/// What stands before the folder for containers, as the place that keeps a guest.
pub(super) const SCHEME: &str = "lxc://";

/// Where a container's SSH is.
const SSH: u16 = 22;

/// The driver.
#[derive(Debug)]
pub struct Lxc {
    layout: Layout,
    path: PathBuf,
}

impl Lxc {
    /// Opens it; no I/O.
    #[must_use]
    pub fn new(settings: &DriverSettings) -> Self {
        Lxc { layout: settings.layout.clone(), path: settings.lxc.clone() }
    }

    /// The folder of this state folder's containers in `path`.
    fn parent(&self, path: &Path) -> Result<PathBuf> {
        // Its name goes into settings, where '#' and spaces have a meaning.
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
        if !path.is_absolute() || !path.as_os_str().as_encoded_bytes().iter().all(plain) {
            return Err(Error::usage(format!("containers cannot lie in {path:?}"))
                .hint("set VIRGA_LXC_PATH to an absolute path of letters, digits, '.', '_' and '-'"));
        }
        Ok(path.join(known::id(&self.layout)?))
    }

    fn files(&self, plan: &GuestPlan) -> Result<LxcFiles> {
        let path = plan.daemon.as_ref().and_then(|daemon| daemon.uri.strip_prefix(SCHEME));
        Ok(LxcFiles::new(&self.parent(path.map_or(self.path.as_path(), Path::new))?, &plan.name))
    }

    /// The guest's container, which must be there.
    fn defined(&self, plan: &GuestPlan) -> Result<LxcFiles> {
        let files = self.files(plan)?;
        match place::is_whole(&files, plan) {
            true => Ok(files),
            false => Err(Error::failed(format!("the container of guest '{}' is not there any more", plan.name))
                .hint(format!("virga destroy {}", plan.name))),
        }
    }

    /// Makes the container, its root filled by `fill`.
    fn make(&self, plan: &GuestPlan, map: Option<IdMap>, fill: impl FnOnce(&LxcFiles) -> Result<()>) -> Result<()> {
        let files = self.files(plan)?;
        if place::is_whole(&files, plan) {
            return Ok(());
        }
        if let Some(daemon) = &plan.daemon {
            known::remember(&self.layout, daemon)?;
        }
        // Refused before the work.
        config::text(plan, &files, map, &config::Host::look())?;
        plan.nics.iter().try_for_each(|nic| probe::bridge(config::bridge(nic)?))?;
        place::begin(&files, plan, map)?;
        if map.is_some()
            && let Some(folder) = probe::closed(files.parent())
        {
            return Err(Error::unavailable(format!("the container's root cannot pass '{folder}'"))
                .hint(format!("chmod o+x {folder}, or set VIRGA_LXC_PATH to a folder elsewhere")));
        }
        fill(&files)?;
        place::lay(&files, plan, map)?;
        place::configure(&files, plan, map)
    }

    /// All folders of containers, in every place where guests of this state folder are, or were.
    fn all(&self) -> Result<Vec<LxcFiles>> {
        let mut all = Vec::new();
        for daemon in known::daemons(&self.layout, |uri| uri.starts_with(SCHEME))? {
            let parent = self.parent(Path::new(daemon.uri.strip_prefix(SCHEME).unwrap_or_default()))?;
            let names = fs::list_dir(&parent)?;
            all.extend(names.iter().filter_map(|name| Some(LxcFiles::new(&parent, &name.parse().ok()?))));
        }
        Ok(all)
    }
}

/// Ends a container, if it runs, and removes all of it.
fn take_away(files: &LxcFiles, id: Option<&InstanceId>) -> Result<()> {
    tools::kill(files)?;
    if let Some(id) = id {
        tools::sweep_cgroups(id.as_str());
    }
    fs::remove_dir_all(&files.folder())?;
    fs::remove_file(&files.lock())?;
    // With the last of them goes the folder.
    let _ = fs::remove_empty_dir(files.parent());
    Ok(())
}

fn unsupported(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the lxc driver cannot {what}"))
}

impl Driver for Lxc {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            boots: &[Boots::RootFileSystem],
            storage: Storage::BackendPool,
            seed: SeedIn::Folder,
            reached: Reached::Address,
            default_network: Network::Nat,
            host_closed: Ability::No("LXC plugs containers into bridges of the host's"),
            console_log: true,
            memory_snapshots: false,
            saved_in: SavedIn::Nobody("a container's memory cannot be written out"),
            own_clock: false,
            exec: Ability::Yes,
            files: Ability::Yes,
            files_when_stopped: Ability::No("LXC enters running containers alone"),
            publish: Ability::Yes,
            export: Ability::No("'virga publish' makes an image of a container, and that can be had anywhere"),
            folders: Ability::Yes,
            folders_when_running: Ability::No("LXC mounts them when it starts"),
            ports: Ability::No("LXC has no part that forwards"),
            resize_when_running: Ability::No("LXC limits it when it starts"),
            daemon_images: Ability::No("LXC has no daemon"),
            autostart: Ability::Yes,
        }
    }

    fn daemon(&self) -> Option<Daemon> {
        Some(Daemon { uri: format!("{SCHEME}{}", self.path.display()), pool: String::new() })
    }

    fn probe(&self, depth: ProbeDepth) -> Vec<Finding> {
        probe::findings(&self.path, depth)
    }

    fn complete(&self, plan: &mut GuestPlan) -> Result<()> {
        let wish = &config::container(plan)?.wish;
        if wish.size.is_some() {
            return Err(unsupported("limit a container's disk: its root is a folder, which has no quota"));
        }
        if wish.target.is_some() {
            return Err(unsupported("place containers on members of a cluster"));
        }
        if plan.arch != Arch::host() {
            return Err(Error::new(Kind::Unsupported, format!("containers of this machine cannot be {}", plan.arch)));
        }
        if plan.platform.tpm || plan.platform.firmware != Firmware::usual(plan.arch) {
            return Err(Error::new(Kind::Unsupported, "a container has neither firmware nor TPM"));
        }
        Ok(())
    }

    fn create(&self, plan: &GuestPlan) -> Result<()> {
        if !plan.forwards.is_empty() {
            return Err(unsupported("forward ports: LXC has no part that would")
                .hint("a container is reached at its own address: virga info"));
        }
        let map = match config::container(plan)?.wish.privileged {
            true => None,
            false => Some(IdMap::of_root()?),
        };
        self.make(plan, map, |files| place::unpack(files, plan, map))
    }

    fn newest_machine(&self, _plan: &GuestPlan) -> Result<String> {
        Err(unsupported("change a machine type: a container has none"))
    }

    fn duplicate(&self, from: &GuestPlan, to: &GuestPlan) -> Result<()> {
        let source = self.defined(from)?;
        // The files' owners are those of the source's map.
        let map = place::map(&source)?;
        self.make(to, map, |files| place::copy(&source.root(), &files.root()))
    }

    fn reconfigure(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        let was = self.files(old)?;
        if old.name != new.name && place::is_whole(&was, old) {
            fs::rename_new(&was.folder(), &self.files(new)?.folder())?;
            fs::remove_file(&was.lock())?;
        }
        let files = self.defined(new)?;
        let map = place::map(&files)?;
        if !tools::status(&files)?.is_alive() {
            // Never where the guest's own programs move folders about meanwhile.
            place::lay(&files, new, map)?;
        }
        place::configure(&files, new, map)
    }

    fn shed(&self, _old: &GuestPlan, _new: &GuestPlan) -> Result<()> {
        Ok(())
    }

    fn plug(&self, _plan: &GuestPlan, _disk: &Disk) -> Result<()> {
        Err(unsupported("attach disk images to containers"))
    }

    fn unplug(&self, _plan: &GuestPlan, _disk: &Disk) -> Result<()> {
        Ok(())
    }

    fn start(&self, plan: &GuestPlan, begin: Begin<'_>) -> Result<Started> {
        if !matches!(begin, Begin::Boot) {
            return Err(unsupported("load saved machines"));
        }
        let files = self.defined(plan)?;
        if tools::status(&files)?.is_alive() {
            return Ok(Started::default());
        }
        plan.nics.iter().try_for_each(|nic| probe::bridge(config::bridge(nic)?))?;
        // One that shut itself down may still be about to go.
        tools::ended(&files)?;
        tools::sweep_cgroups(plan.id.as_str());
        place::configure(&files, plan, place::map(&files)?)?;
        tools::start(&files, plan)?;
        let there = config::Host::look().cpus.len();
        let few = (plan.cpus as usize > there && there > 0)
            .then(|| format!("this machine has {there} processors: the guest gets no more"));
        Ok(Started { notes: few.into_iter().collect(), machine: None })
    }

    fn load(&self, _plan: &GuestPlan, _from: &Saved) -> Result<()> {
        Err(unsupported("load saved machines"))
    }

    fn release(&self, plan: &GuestPlan) -> Result<()> {
        let files = self.defined(plan)?;
        match tools::status(&files)? {
            Status::Running => Ok(()),
            _ => tools::freeze(&files, false),
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
        let files = self.files(plan)?;
        let status = tools::status(&files)?;
        match how {
            _ if !status.is_alive() => return Ok(()),
            Stop::Force => tools::kill(&files)?,
            Stop::Graceful(patience) => {
                if status == Status::Paused {
                    tools::freeze(&files, false)?;
                }
                tools::shut_down(&files, patience)?;
                if tools::status(&files)?.is_alive() {
                    let limit = humantime::format_duration(patience);
                    return Err(Error::timed_out(format!("guest '{}' did not shut down within {limit}", plan.name))
                        .hint("'--force' stops it at once, as if the power were cut"));
                }
                tools::ended(&files)?;
            }
        }
        tools::sweep_cgroups(plan.id.as_str());
        Ok(())
    }

    fn remove(&self, plan: &GuestPlan) -> Result<()> {
        let files = self.files(plan)?;
        // Without a label it is the remains of a removal that was interrupted.
        match place::label(&files) {
            Some(other) if other != plan.id => Ok(()),
            _ => take_away(&files, Some(&plan.id)),
        }
    }

    fn status(&self, plan: &GuestPlan) -> Result<Status> {
        let files = self.files(plan)?;
        match place::is_whole(&files, plan) {
            true => tools::status(&files),
            false => Ok(Status::Stopped),
        }
    }

    fn glance(&self, plan: &GuestPlan) -> Result<Option<Status>> {
        self.status(plan).map(Some)
    }

    fn address(&self, _plan: &GuestPlan) -> Option<[Ipv4Addr; 2]> {
        None
    }

    fn endpoint(&self, plan: &GuestPlan) -> Result<Option<SocketAddr>> {
        let addresses = tools::addresses(&self.defined(plan)?)?;
        Ok(addresses.first().map(|address| SocketAddr::new(*address, SSH)))
    }

    fn forwards(&self, _plan: &GuestPlan) -> Result<Vec<Forward>> {
        Ok(Vec::new())
    }

    fn console_tail(&self, plan: &GuestPlan, lines: usize) -> Result<Vec<String>> {
        console::tail(&plan.console_log, lines)
    }

    fn sweep_images(
        &self,
        _needed: &dyn Fn(&str) -> bool,
        _dry_run: bool,
        _away: Away<'_>,
    ) -> Result<Vec<(String, ByteSize)>> {
        Ok(Vec::new())
    }

    fn list_owned(&self, _away: Away<'_>) -> Result<Vec<Owned>> {
        let owned = |files: &LxcFiles| Owned { name: files.name().clone(), pid: None, runtime: None };
        Ok(self.all()?.iter().map(owned).collect())
    }

    fn remove_owned(&self, owned: &Owned) -> Result<()> {
        let named = |files: &&LxcFiles| -> bool { *files.name() == owned.name };
        self.all()?.iter().filter(named).try_for_each(|files| take_away(files, place::label(files).as_ref()))
    }
}
