//! QEMU run directly: one process a guest, no daemon, no privileges.
//!
//! A guest is a QEMU process whose `-uuid` is the plan's id. It is started in
//! a process group of its own and outlives the command; it is steered over a
//! control socket in the guest's runtime folder, and found again by its
//! arguments even where that folder is gone. QEMU's own `-daemonize` is not
//! used: it forks after the sandbox is up, which then may not forbid forking.

mod args;
pub(super) mod egress;
mod fingerprint;
mod firmware;
pub(super) mod keeper;
mod launch;
mod memory;
mod neighbour;
mod network;
mod plug;
mod probe;
mod process;
mod qmp;
mod screen;
mod serial;
mod session;
mod snapshot;
mod state;
mod system;
mod tpm;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use self::process::{Life, Process};
use self::qmp::Qmp;
use super::accel::{self, Accelerator};
use super::{
    Ability, Away, Begin, Boots, Capabilities, Driver, DriverSettings, Finding, Owned, ProbeDepth, Reached, Saved,
    SavedIn, SeedIn, Started, Status, Stop, Storage, console,
};
use crate::base::layout::RuntimeFiles;
use crate::base::nic::Network;
use crate::base::plan::{Daemon, Disk, Forward};
use crate::base::platform::Firmware;
use crate::base::poll::Deadline;
use crate::base::{ByteSize, Error, GuestPlan, Layout, Result, fs, interrupt};

/// For one answer of a QEMU that is not busy: it takes less than a millisecond, on a machine that has time for it.
const ANSWER: Duration = Duration::from_secs(30);

/// QEMU closes its disks in this time when it is told to end.
const CLOSING: Duration = Duration::from_secs(2);

/// A guest whose system is not up yet does not hear the power button: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(3);

/// The driver.
#[derive(Debug)]
pub struct Qemu {
    layout: Layout,
}

impl Qemu {
    /// Opens it; no I/O.
    #[must_use]
    pub fn new(settings: &DriverSettings) -> Self {
        Self::over(settings.layout.clone())
    }

    fn over(layout: Layout) -> Self {
        Qemu { layout }
    }

    /// Fails for a guest that cannot be.
    fn check(plan: &GuestPlan) -> Result<()> {
        system::check(plan.arch, plan.platform.firmware)?;
        if plan.disks.is_empty() || plan.cpus == 0 {
            return Err(Error::usage("a guest needs a disk to boot from and at least one processor"));
        }
        network::check(plan)?;
        // What cannot be said on a command line is found here, before any start.
        args::argv(plan, Accelerator::Tcg, Begin::Boot)?;
        if plan.platform.tpm {
            tpm::program()?;
        }
        system::program(plan.arch).map(drop)
    }

    /// Ends every process of the guest: more than one only if something went badly wrong before.
    fn force_off(plan: &GuestPlan) -> Result<()> {
        while let Some(process) = Process::of(plan)? {
            process.end(CLOSING)?;
        }
        keeper::settled(plan);
        tpm::end(plan)?;
        launch::clear(&RuntimeFiles::new(&plan.runtime))
    }

    fn ask(plan: &GuestPlan) -> Result<Option<(u16, Vec<Forward>)>> {
        if !network::in_user_space(plan) || Process::of(plan)?.is_none() {
            return Ok(None);
        }
        let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER)?;
        network::assign(plan, network::parse(&qmp.monitor("info usernet")?)).map(Some)
    }

    /// The guest that an argument list of a QEMU of this state folder belongs to.
    fn owner(&self, args: &[String]) -> Option<Owned> {
        let disk = args::root_disk(args)?;
        let name = self.guest_of(Path::new(&disk))?;
        let runtime =
            args::values(args, "-pidfile").next().and_then(|file| Path::new(file).parent()).map(Path::to_owned);
        Some(Owned { name, pid: None, runtime })
    }

    /// The guest in whose folder `path` is.
    fn guest_of(&self, path: &Path) -> Option<crate::base::GuestName> {
        path.strip_prefix(self.layout.guests()).ok()?.components().next()?.as_os_str().to_str()?.parse().ok()
    }

    /// The guest that a runtime folder is labelled with, if it is of this state folder.
    fn label_of(&self, runtime: &Path) -> Option<crate::base::GuestName> {
        let label = fs::read_text(&RuntimeFiles::new(runtime).label(), 8192).ok()?;
        self.guest_of(Path::new(&label))
    }
}

impl Driver for Qemu {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            boots: &[Boots::DiskImage],
            storage: Storage::OurPath,
            seed: SeedIn::Image,
            reached: Reached::LoopbackPort,
            console_log: true,
            default_network: Network::User,
            host_closed: Ability::Yes,
            memory_snapshots: true,
            saved_in: SavedIn::OurFile,
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
            autostart: Ability::No("it has no service that runs when the host starts"),
        }
    }

    fn daemon(&self) -> Option<Daemon> {
        None
    }

    fn probe(&self, depth: ProbeDepth) -> Vec<Finding> {
        probe::findings(&self.layout, depth)
    }

    fn complete(&self, plan: &mut GuestPlan) -> Result<()> {
        system::check(plan.arch, plan.platform.firmware)?;
        plan.platform.flash = match plan.platform.firmware {
            Firmware::Bios => None,
            firmware => {
                let vars = self.layout.guest_files(&plan.name).firmware_vars();
                Some(firmware::find(plan.arch, firmware, &vars)?)
            }
        };
        Ok(())
    }

    fn create(&self, plan: &GuestPlan) -> Result<()> {
        Self::check(plan)?;
        plan.platform.flash.iter().try_for_each(firmware::lay_out)?;
        launch::prepare(plan, &self.layout.guest(&plan.name))
    }

    fn newest_machine(&self, plan: &GuestPlan) -> Result<String> {
        system::newest_machine(plan.arch)
    }

    fn duplicate(&self, _from: &GuestPlan, to: &GuestPlan) -> Result<()> {
        self.create(to)
    }

    fn reconfigure(&self, _old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        // The plan is all that there is of a guest that does not run, but for the label.
        self.create(new)
    }

    fn shed(&self, _old: &GuestPlan, _new: &GuestPlan) -> Result<()> {
        Ok(())
    }

    fn plug(&self, plan: &GuestPlan, disk: &Disk) -> Result<()> {
        plug::plug(&RuntimeFiles::new(&plan.runtime).qmp(), disk)
    }

    fn unplug(&self, plan: &GuestPlan, disk: &Disk) -> Result<()> {
        plug::unplug(&RuntimeFiles::new(&plan.runtime).qmp(), disk)
    }

    fn start(&self, plan: &GuestPlan, begin: Begin<'_>) -> Result<Started> {
        let Some(life) = Life::claim(plan)? else { return Ok(Started::default()) };
        let program = system::program(plan.arch)?;
        if let Begin::BootInto(_) = begin {
            probe::can_make_templates(&program)?;
        }
        plan.platform.flash.iter().try_for_each(firmware::lay_out)?;
        // Again: the system empties this folder when it restarts.
        launch::prepare(plan, &self.layout.guest(&plan.name))?;
        let (accel, note) = accel::settle(plan)?;
        let tpm = tpm::start(plan, &self.layout.guest_files(&plan.name).tpm())?;
        let launched = launch::launch(&program, plan, accel, begin, life);
        if let (Err(_), Some(mut tpm)) = (&launched, tpm) {
            tpm.kill();
            // The error at hand matters more than one from its socket.
            let _ = tpm::end(plan);
        }
        Ok(Started { notes: note.into_iter().collect(), machine: Some(launched?) })
    }

    fn load(&self, plan: &GuestPlan, from: &Saved) -> Result<()> {
        launch::load(plan, from)
    }

    fn release(&self, plan: &GuestPlan) -> Result<()> {
        state::let_run(&RuntimeFiles::new(&plan.runtime).qmp())
    }

    fn connect(&self, plan: &GuestPlan) -> Result<()> {
        let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER)?;
        qmp.command("set_link", json!({"name": args::NETDEV, "up": true})).map(drop)
    }

    fn save(&self, plan: &GuestPlan, to: &Saved) -> Result<()> {
        if Process::of(plan)?.is_none() {
            return Err(Error::failed(format!("guest '{}' is not running", plan.name)));
        }
        memory::save(plan, to)
    }

    fn fingerprint(&self, plan: &GuestPlan) -> Result<BTreeMap<String, String>> {
        fingerprint::of(plan)
    }

    fn channel(&self, plan: &GuestPlan) -> Result<UnixStream> {
        let path = RuntimeFiles::new(&plan.runtime).renewal();
        UnixStream::connect(&path).map_err(|error| fs::explain(error, "connecting to the guest's channel", &path))
    }

    fn stop(&self, plan: &GuestPlan, how: Stop) -> Result<()> {
        let Stop::Graceful(patience) = how else { return Self::force_off(plan) };
        let Some(process) = Process::of(plan)? else { return Ok(()) };
        let deadline = Deadline::after(patience);
        let mut pressed: Option<Deadline> = None;
        let mut trouble = None;
        loop {
            if pressed.is_none_or(|since| since.passed()) {
                trouble = press_power_button(plan).err();
                pressed = Some(Deadline::after(PRESS_AGAIN));
            }
            if process.wait(deadline.left().min(Duration::from_millis(100))) {
                return Self::force_off(plan);
            }
            interrupt::check()?;
            if deadline.passed() {
                let limit = humantime::format_duration(patience);
                let error = Error::timed_out(format!("guest '{}' did not shut down within {limit}", plan.name))
                    .hint("'--force' stops it at once, as if the power were cut");
                return Err(match trouble {
                    Some(trouble) => error.because(trouble),
                    None => error,
                });
            }
        }
    }

    fn remove(&self, plan: &GuestPlan) -> Result<()> {
        Self::force_off(plan)?;
        fs::remove_dir_all(&plan.runtime)
    }

    fn status(&self, plan: &GuestPlan) -> Result<Status> {
        state::of(plan)
    }

    fn glance(&self, plan: &GuestPlan) -> Result<Option<Status>> {
        state::glance(plan)
    }

    fn address(&self, plan: &GuestPlan) -> Option<[Ipv4Addr; 2]> {
        network::in_user_space(plan).then_some(network::GUEST)
    }

    fn endpoint(&self, plan: &GuestPlan) -> Result<Option<SocketAddr>> {
        match plan.nics.first() {
            Some(nic) if !network::in_user_space(plan) && Process::of(plan)?.is_some() => {
                Ok(neighbour::address(nic)?.map(|address| SocketAddr::from((address, network::SSH))))
            }
            _ => Ok(Self::ask(plan)?.map(|(port, _)| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
        }
    }

    fn forwards(&self, plan: &GuestPlan) -> Result<Vec<Forward>> {
        Ok(Self::ask(plan)?.map_or_else(|| plan.forwards.clone(), |(_, forwards)| forwards))
    }

    fn console_tail(&self, plan: &GuestPlan, lines: usize) -> Result<Vec<String>> {
        if !process::lives(plan)? {
            // Its last words are what is wanted most.
            keeper::settled(plan);
        }
        console::tail(&plan.console_log, lines)
    }

    fn sweep_images(&self, _: &dyn Fn(&str) -> bool, _: bool, _: Away<'_>) -> Result<Vec<(String, ByteSize)>> {
        // Guests stand on the pool's own blobs.
        Ok(Vec::new())
    }

    fn list_owned(&self, _: Away<'_>) -> Result<Vec<Owned>> {
        let mut owned = Vec::new();
        for (pid, args) in process::scan(|args| self.owner(args).is_some())? {
            owned.extend(self.owner(&args).map(|found| Owned { pid: Some(pid), ..found }));
        }
        // Folders that no process uses: their QEMU was killed, or never came up.
        for entry in fs::list_dir(self.layout.runtime_root())? {
            let runtime = self.layout.runtime(&entry);
            let known = |owned: &Owned| owned.runtime.as_ref() == Some(&runtime);
            if let Some(name) = self.label_of(&runtime)
                && !owned.iter().any(known)
            {
                owned.push(Owned { name, pid: None, runtime: Some(runtime) });
            }
        }
        Ok(owned)
    }

    fn remove_owned(&self, owned: &Owned) -> Result<()> {
        let ours = |args: &[String]| self.owner(args).is_some_and(|found| found.name == owned.name);
        if let Some(pid) = owned.pid
            && let Some(process) = Process::open(pid, ours)?
        {
            process.end(CLOSING)?;
        }
        // Only what bears the label goes: `owned` may be old, or from an argument list.
        match owned.runtime.as_deref() {
            Some(runtime) if self.label_of(runtime).as_ref() == Some(&owned.name) => fs::remove_dir_all(runtime),
            _ => Ok(()),
        }
    }
}

fn press_power_button(plan: &GuestPlan) -> Result<()> {
    let socket: PathBuf = RuntimeFiles::new(&plan.runtime).qmp();
    Qmp::connect(&socket, PRESS_AGAIN)?.command("system_powerdown", json!({})).map(drop)
}

#[cfg(test)]
mod tests;
