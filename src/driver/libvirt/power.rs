//! Starting guests and ending them, and how one stands.

use std::path::Path;
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use super::connection::{doing, explain, found};
use super::domain::machine_of;
use super::raw::{self, Watch};
use super::storage::Storage;
use super::{Libvirt, address, is_local, network};
use crate::base::plan::Accel;
use crate::base::poll::Deadline;
use crate::base::{Arch, Error, GuestPlan, Kind, Result, interrupt};
use crate::driver::accel::{self, Accelerator};
use crate::driver::console::tail;
use crate::driver::{Started, Status, Stop};

/// A guest whose system is not up yet does not hear the power button: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(3);

/// So much of QEMU's log tells how it ended.
const LOG_LINES: usize = 3;

/// How often Ctrl-C is looked for while a guest shuts down.
const GLANCE: Duration = Duration::from_millis(100);

/// Another program can take a port between our choice and passt's.
const PORT_TRIES: usize = 5;

impl Libvirt {
    /// Whether KVM is used, and why not. On another host libvirt's own word counts.
    pub(super) fn accelerator(&self, connection: &Connect, plan: &GuestPlan) -> Result<(bool, Option<String>)> {
        if is_local(&self.daemon_of(plan).uri) {
            let (accel, note) = accel::settle(plan)?;
            return Ok((accel == Accelerator::Kvm, note));
        }
        if plan.accel == Accel::Tcg || plan.arch != Arch::host() {
            return Ok((false, None));
        }
        let offered = connection.capabilities().map_err(doing("asking libvirt what it can do"))?;
        Ok((offered.contains("<domain type='kvm'"), None))
    }

    fn power_on(&self, storage: &Storage<'_>, plan: &GuestPlan, domain: Domain) -> Result<()> {
        // A saved one goes on with the ports that it had.
        if !address::in_user_space(plan) || domain.has_managed_save(0).unwrap_or(false) {
            return domain.create().map_err(|error| not_started(plan, &error));
        }
        for left in (0..PORT_TRIES).rev() {
            let (domain, _) = self.define(storage, plan, &network::choose_ports(plan)?)?;
            match domain.create() {
                Ok(()) => return Ok(()),
                // passt's words: another program was quicker.
                Err(error) if left > 0 && error.message().contains("bind") => {}
                Err(error) => return Err(not_started(plan, &error)),
            }
        }
        Err(Error::failed("no free port was found"))
    }

    /// See [`crate::driver::Driver::start`].
    pub(super) fn boot(&self, plan: &GuestPlan) -> Result<Started> {
        let connection = self.connection(plan)?;
        let there = self.domain(&connection, plan)?;
        if let Some(domain) = &there
            && domain.is_active().map_err(doing("looking at the guest"))?
        {
            return Ok(Started::default());
        }
        let daemon = self.daemon_of(plan);
        let storage = Storage::new(&connection, daemon);
        storage.pool()?;
        network::ready(&connection, &daemon.uri, plan)?;
        // Somebody may have undefined it: its disks are still there.
        let (domain, note) = match there {
            Some(domain) => (domain, self.accelerator(&connection, plan)?.1),
            None => self.define(&storage, plan, &[])?,
        };
        self.power_on(&storage, plan, domain)?;
        let machine = self.domain(&connection, plan)?.map(|domain| machine_of(&domain)).transpose()?;
        Ok(Started { notes: note.into_iter().collect(), machine: machine.flatten() })
    }

    /// See [`crate::driver::Driver::stop`].
    pub(super) fn power_off(&self, plan: &GuestPlan, how: Stop) -> Result<()> {
        let connection = self.connection(plan)?;
        let Some(domain) = self.domain(&connection, plan)? else { return Ok(()) };
        let runs = || domain.is_active().map_err(doing("looking at the guest"));
        if !runs()? {
            return Ok(());
        }
        let Stop::Graceful(patience) = how else {
            return match domain.destroy() {
                Err(error) if runs()? => Err(explain(&error, format!("ending the guest '{}'", plan.name))),
                _ => Ok(()),
            };
        };
        let watch = Watch::begin(&self.daemon_of(plan).uri, plan.id.as_str()).map_err(doing("watching the guest"))?;
        let deadline = Deadline::after(patience);
        let mut pressed: Option<Deadline> = None;
        // Asked once more after the watch began: it may have gone before.
        while runs()? {
            if pressed.is_none_or(|since| since.passed()) {
                if let Err(error) = domain.shutdown()
                    && runs()?
                {
                    return Err(explain(&error, format!("shutting down the guest '{}'", plan.name)));
                }
                pressed = Some(Deadline::after(PRESS_AGAIN));
            }
            let next = pressed.map_or(GLANCE, |pressed| pressed.left()).min(deadline.left()).min(GLANCE);
            if watch.stopped_within(next) {
                return Ok(());
            }
            interrupt::check()?;
            if deadline.passed() {
                let limit = humantime::format_duration(patience);
                return Err(Error::timed_out(format!("guest '{}' did not shut down within {limit}", plan.name))
                    .hint("'--force' stops it at once, as if the power were cut"));
            }
        }
        Ok(())
    }
}

fn not_started(plan: &GuestPlan, error: &virt::error::Error) -> Error {
    let explained = explain(error, format!("guest '{}' cannot be started", plan.name));
    match error.message() {
        words if words.contains("KVM") => {
            explained.with_kind(Kind::Unavailable).hint("guests that are made with '--accel tcg' do without KVM")
        }
        words if words.contains("Permission denied") => {
            explained.hint("the daemon's user must be able to read the storage pool's folder")
        }
        _ => explained,
    }
}

/// How a domain stands; one that is gone is stopped.
///
/// # Errors
/// What libvirt said.
pub(super) fn status_of(domain: &Domain) -> Result<Status> {
    let answer = found(raw::state(domain), || "asking for the guest's state".into())?;
    let Some((state, reason)) = answer else { return Ok(Status::Stopped) };
    let crashed = [sys::VIR_DOMAIN_SHUTOFF_CRASHED, sys::VIR_DOMAIN_SHUTOFF_FAILED];
    Ok(match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED | sys::VIR_DOMAIN_SHUTDOWN => Status::Running,
        sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED => Status::Paused,
        sys::VIR_DOMAIN_CRASHED => Status::Died,
        sys::VIR_DOMAIN_SHUTOFF if u32::try_from(reason).is_ok_and(|reason| crashed.contains(&reason)) => Status::Died,
        sys::VIR_DOMAIN_SHUTOFF if domain.has_managed_save(0).unwrap_or(false) => Status::Saved,
        _ => Status::Stopped,
    })
}

/// How a domain that does not run ended: libvirt's reason, and the last that QEMU said where its log can be read.
pub(super) fn ending(domain: &Domain, uri: &str) -> Option<String> {
    let (state, reason) = raw::state(domain).ok()?;
    if state != sys::VIR_DOMAIN_SHUTOFF {
        return None;
    }
    let reason = match u32::try_from(reason).ok()? {
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => "it shut down by itself",
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED => "somebody had libvirt end it",
        sys::VIR_DOMAIN_SHUTOFF_CRASHED => "its QEMU was killed, or failed",
        sys::VIR_DOMAIN_SHUTOFF_FAILED => "it could not be started",
        sys::VIR_DOMAIN_SHUTOFF_DAEMON => "libvirtd lost its QEMU",
        // Never started, saved, moved to another host, put back to a snapshot: it did not end.
        _ => return None,
    };
    // That of `qemu:///system`, which only root can read.
    let log = Path::new("/var/log/libvirt/qemu").join(format!("{}.log", domain.name().ok()?));
    let said = if is_local(uri) { tail(&log, LOG_LINES).unwrap_or_default() } else { Vec::new() };
    Some(if said.is_empty() { reason.to_owned() } else { format!("{reason}: {}", said.join("; ")) })
}
