//! What is done with a container that is there: see [`crate::driver::Session`].

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Incus, backup, console, doing, exec, files, images, instance, path, unsupported};
use crate::base::cmd::Pipes;
use crate::base::name::quoted;
use crate::base::{BackendName, Error, GuestPath, GuestPlan, Kind, Result, SnapshotName};
use crate::driver::carry::Load;
use crate::driver::known;
use crate::driver::{Autostart, Content, Details, Driver as _, Exec, Session, Snapshot, Viewer};

/// Where a guest's snapshots are in the API.
fn snapshots(plan: &GuestPlan) -> String {
    format!("{}/snapshots", path(plan.name.as_str()))
}

fn read(one: &Value) -> Option<Snapshot> {
    let taken: Timestamp = one["created_at"].as_str()?.parse().ok()?;
    let memory = one["stateful"].as_bool().unwrap_or(false);
    // LXD says it with the instance's name before it.
    let name = one["name"].as_str()?.rsplit('/').next()?.to_owned();
    Some(Snapshot { name, taken, memory })
}

impl Session for Incus {
    fn suspend(&self, plan: &GuestPlan) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        Self::act(&api, plan.name.as_str(), "freeze", &json!({}))
            .map_err(|error| doing(error, format!("holding the guest '{}'", plan.name)))
    }

    fn save_there(&self, _plan: &GuestPlan) -> Result<()> {
        Err(unsupported("save containers with their memory"))
    }

    fn drop_saved(&self, _plan: &GuestPlan) -> Result<()> {
        Ok(())
    }

    fn set_autostart(&self, plan: &GuestPlan, wish: Option<Autostart>) -> Result<Option<String>> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        let Autostart { order, delay } = wish.unwrap_or_default();
        let wish = json!({"config": {
            "boot.autostart": wish.is_some().to_string(),
            // There the highest comes first.
            "boot.autostart.priority": (-i64::from(order)).to_string(),
            "boot.autostart.delay": delay.to_string(),
        }});
        api.change(Method::PATCH, &path(plan.name.as_str()), &wish).map(|_| None)
    }

    fn location(&self, plan: &GuestPlan) -> Result<Option<String>> {
        let there = Self::instance(&*self.api(plan)?, plan)?;
        // A daemon by itself says "none".
        let member = there.and_then(|instance| Some(instance["location"].as_str()?.to_owned()));
        Ok(member.filter(|member| !matches!(member.as_str(), "" | "none")))
    }

    fn details(&self, plan: &GuestPlan) -> Result<Details> {
        let api = self.api(plan)?;
        let Some(there) = Self::instance(&api, plan)? else { return Ok(Details::default()) };
        let state = api.get(&format!("{}/state", path(plan.name.as_str())))?;
        let addresses = instance::addresses(&state, plan);
        let autostart = there["config"]["boot.autostart"] == "true";
        Ok(Details { autostart: Some(autostart), addresses, ..Details::default() })
    }

    fn snapshots(&self, plan: &GuestPlan) -> Result<Vec<Snapshot>> {
        let all = self.api(plan)?.find(&format!("{}?recursion=1", snapshots(plan)))?.unwrap_or_default();
        let mut all: Vec<Snapshot> = all.as_array().into_iter().flatten().filter_map(read).collect();
        all.sort_by_key(|snapshot| snapshot.taken);
        Ok(all)
    }

    fn take_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        api.change(Method::POST, &snapshots(plan), &json!({"name": name, "stateful": false}))
            .map(drop)
            .map_err(|error| doing(error, "taking a snapshot of the guest".into()))
    }

    fn restore_snapshot(&self, plan: &GuestPlan, snapshot: &Snapshot) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        api.change(Method::PUT, &path(plan.name.as_str()), &json!({"restore": snapshot.name}))
            .map_err(|error| doing(error, "restoring a snapshot of the guest".into()))?;
        // It has the settings again that it had then.
        self.reconfigure(plan, plan)
    }

    fn remove_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        let api = self.api(plan)?;
        let path = format!("{}/{name}", snapshots(plan));
        api.change(Method::DELETE, &path, &json!({}))
            .map(drop)
            .map_err(|error| doing(error, "removing a snapshot of the guest".into()))
    }

    fn console(&self, plan: &GuestPlan) -> Result<UnixStream> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        console::connect(api, plan)
    }

    fn exec(&self, plan: &GuestPlan, what: &Exec, streams: Pipes<'_>) -> Result<u8> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        exec::run(&api, plan, what, streams).map_err(|error| {
            // Not the guest: a program that is not there, as a rule.
            let kind = if error.kind() == Kind::NotFound { Kind::Failed } else { error.kind() };
            let program = what.command.first().map_or("", String::as_str);
            doing(error.with_kind(kind), format!("running {} in the guest '{}'", quoted(program), plan.name))
        })
    }

    fn screenshot(&self, _plan: &GuestPlan) -> Result<Vec<u8>> {
        Err(no_screen())
    }

    fn viewer(&self, _plan: &GuestPlan) -> Result<Viewer> {
        Err(no_screen())
    }
}

impl Content for Incus {
    fn pull(&self, plan: &GuestPlan, path: &GuestPath, folders: bool, to: &mut dyn Write) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        files::pull(&api, plan, path, folders, to)
    }

    fn push(&self, plan: &GuestPlan, what: &Load, to: &GuestPath) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        files::push(&api, plan, what, to)
    }

    fn pack_root(&self, plan: &GuestPlan, to: &mut dyn Write) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        images::pack(&api, plan, &known::id(&self.layout)?, to)
    }

    fn export(&self, plan: &GuestPlan, to: &mut dyn Write) -> Result<()> {
        let api = self.api(plan)?;
        Self::defined(&api, plan)?;
        backup::export(&api, plan, to)
    }

    fn import(&self, plan: &GuestPlan, from: File) -> Result<()> {
        let api = self.api(plan)?;
        let name = plan.name.as_str();
        if api.find(&path(name))?.is_some() {
            return Err(super::taken(plan));
        }
        let state = known::id(&self.layout)?;
        known::remember(&self.layout, self.daemon_of(plan))?;
        let profiles: Vec<&str> = instance::container(plan)?.wish.profiles.iter().map(BackendName::as_str).collect();
        // Before the work: what the daemon lacks is said without it.
        let root = Self::root(&api, &profiles)?;
        let devices = instance::devices(plan, root.as_ref(), &Value::Null)?;
        backup::import(&api, plan, from)?;
        let own = || {
            let there = api.get(&path(name))?;
            let whole = backup::stripped(&there, instance::config(plan, &state)?, &devices, &profiles);
            api.change(Method::PUT, &path(name), &whole)?;
            instance::lay_seed(&api, plan)?;
            instance::lay_host_name(&api, plan)
        };
        own().inspect_err(|_| {
            // It has no label of this guest's yet, by which it would be found.
            if let Err(left) = crate::base::interrupt::shielded(|| Self::take_away(&api, name)) {
                tracing::warn!(%left, "removing a guest that was not imported");
            }
        })
    }

    fn keep_image(&self, plan: &GuestPlan, metadata: &Path, root: &Path, alias: &BackendName) -> Result<String> {
        images::keep(&*self.api(plan)?, metadata, root, alias)
    }
}

fn no_screen() -> Error {
    unsupported("show a screen: a container has none").hint("'virga console' connects to its console")
}
