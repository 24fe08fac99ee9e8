//! Containers of an Incus daemon, or of LXD, which it was once.
//!
//! A guest is an instance with labels of ours among its settings; instances
//! without them are never touched. Images come from our pool: the daemon is
//! given the verified bytes once, and says itself which fingerprint they have.

pub(super) mod address;
mod api;
mod backup;
mod console;
mod exec;
mod files;
mod images;
mod instance;
mod link;
mod probe;
mod remotes;
mod session;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use self::address::{Place, SCHEME};
use self::api::Api;
use self::link::Link;
use super::{
    Ability, Away, Begin, Boots, Capabilities, Driver, DriverSettings, Finding, Owned, ProbeDepth, Reached, Saved,
    SavedIn, SeedIn, Started, Status, Stop, Storage, known,
};
use crate::base::nic::Network;
use crate::base::plan::{Daemon, Disk, Forward};
use crate::base::platform::Firmware;
use crate::base::poll::{self, Deadline};
use crate::base::{Arch, BackendName, ByteSize, Error, GuestName, GuestPlan, Kind, Layout, Result, fs};

/// How long the daemon may be at work on something that a killed command asked of it.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long after a request of a killed command the daemon begins with it.
const LATE: Duration = Duration::from_secs(3);

/// How often it is asked whether it is.
const STEP: Duration = Duration::from_millis(100);

/// Where a container's SSH is.
const SSH: u16 = 22;

/// The driver.
#[derive(Debug)]
pub struct Incus {
    layout: Layout,
    daemon: Daemon,
    /// Where Incus' and LXD's clients keep their remotes.
    clients: Vec<PathBuf>,
    open: Mutex<HashMap<String, Arc<Api>>>,
}

impl Incus {
    /// Opens it; no I/O.
    #[must_use]
    pub fn new(settings: &DriverSettings) -> Self {
        let named = settings.connect.as_ref().filter(|uri| address::is_ours(uri)).cloned();
        let uri = named.unwrap_or_else(|| {
            let socket = settings.incus.clone().unwrap_or_else(usual_socket);
            format!("{SCHEME}{}", socket.display())
        });
        let pool = settings.incus_pool.clone().unwrap_or_default();
        Incus {
            layout: settings.layout.clone(),
            daemon: Daemon { uri, pool },
            clients: settings.incus_clients.clone(),
            open: Mutex::default(),
        }
    }

    fn daemon_of<'a>(&'a self, plan: &'a GuestPlan) -> &'a Daemon {
        plan.daemon.as_ref().unwrap_or(&self.daemon)
    }

    /// The daemon at this address.
    ///
    /// # Errors
    /// [`Kind::Usage`] for an address that is none; as [`Link::find`].
    fn at(&self, uri: &str) -> Result<Arc<Api>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(api) = open.get(uri) {
            return Ok(Arc::clone(api));
        }
        let (link, project) = Link::find(address::parse(uri)?, &self.clients, usual_socket)?;
        let api = Arc::new(Api::open(link, project)?);
        open.insert(uri.to_owned(), Arc::clone(&api));
        Ok(api)
    }

    /// Has the address of a remote say which project it is: the client's own may be another one tomorrow.
    fn fix_project(&self, daemon: &mut Daemon) -> Result<()> {
        let address = address::parse(&daemon.uri)?;
        if matches!(address.place, Place::Remote(_)) && address.project.is_none() {
            let api = self.at(&daemon.uri)?;
            let project = api.project().map_or("default", BackendName::as_str);
            daemon.uri = format!("{}?project={project}", daemon.uri);
        }
        Ok(())
    }

    fn api(&self, plan: &GuestPlan) -> Result<Arc<Api>> {
        self.at(&self.daemon_of(plan).uri)
    }

    /// The guest's instance; `None` when there is none, or one of this name that is another's.
    fn instance(api: &Api, plan: &GuestPlan) -> Result<Option<Value>> {
        let there = api.find(&path(plan.name.as_str()))?;
        Ok(there.filter(|instance| instance["config"][instance::ID] == plan.id.as_str()))
    }

    /// As [`instance`](Self::instance), which must be there.
    fn defined(api: &Api, plan: &GuestPlan) -> Result<Value> {
        Self::instance(api, plan)?.ok_or_else(|| {
            Error::failed(format!("the daemon knows no guest '{}' any more", plan.name))
                .hint(format!("virga destroy {}", plan.name))
        })
    }

    /// Makes the instance out of `source`, unless it is there.
    fn make(&self, api: &Api, plan: &GuestPlan, source: &Value) -> Result<()> {
        if api.find(&path(plan.name.as_str()))?.is_some() {
            return match Self::instance(api, plan)? {
                Some(_) => Ok(()),
                None => Err(taken(plan)),
            };
        }
        let state = known::id(&self.layout)?;
        known::remember(&self.layout, self.daemon_of(plan))?;
        let container = instance::container(plan)?;
        let profiles: Vec<&str> = container.wish.profiles.iter().map(BackendName::as_str).collect();
        let mut body = json!({
            "name": plan.name,
            "type": "container",
            "source": source,
            "config": instance::config(plan, &state)?,
            "devices": instance::devices(plan, Self::root(api, &profiles)?.as_ref(), &Value::Null)?,
        });
        if !profiles.is_empty() {
            body["profiles"] = json!(profiles);
        }
        let asked = self.layout.guest_files(&plan.name).asked();
        fs::write_new(&asked, b"", 0o600)?;
        let target = container.wish.target.as_ref().map(|target| format!("?target={}", target.as_str()));
        api.change(Method::POST, &format!("/1.0/instances{}", target.unwrap_or_default()), &body)
            .map_err(|error| doing(error, format!("making the guest '{}'", plan.name)))?;
        fs::remove_file(&asked)?;
        match instance::lays_seed(api, plan)? {
            true => Ok(()),
            false => instance::lay_seed(api, plan),
        }
    }

    /// The root device that the profiles give.
    fn root(api: &Api, profiles: &[&str]) -> Result<Option<Value>> {
        let mut root = None;
        for profile in if profiles.is_empty() { &["default"][..] } else { profiles } {
            let profile = api.get(&format!("/1.0/profiles/{profile}")).map_err(|error| match error.kind() {
                Kind::NotFound => Error::not_found(format!("the daemon has no profile '{profile}'"))
                    .hint("'incus profile list' shows those that it has"),
                _ => error,
            })?;
            let devices = profile["devices"].as_object().into_iter().flatten();
            root = devices.map(|(_, device)| device).find(|device| device["path"] == "/").cloned().or(root);
        }
        Ok(root)
    }

    /// Puts an instance into another state.
    fn act(api: &Api, name: &str, action: &str, more: &Value) -> Result<()> {
        let mut body = json!({"action": action, "timeout": -1});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        api.change(Method::PUT, &format!("{}/state", path(name)), &body).map(drop)
    }

    /// Waits until the daemon is through with what it does with an instance of this name, there or not there yet: it
    /// goes on with what a killed command asked of it.
    fn settled(api: &Api, name: &str) -> Result<()> {
        let ours = |operation: &Value| {
            let resources = operation["resources"].as_object().into_iter().flatten();
            let mut paths = resources.filter_map(|(_, paths)| paths.as_array()).flatten().filter_map(Value::as_str);
            let is = |path: &str| path.split('?').next().is_some_and(|path| path.ends_with(&format!("/{name}")));
            operation["class"] == "task" && paths.any(is)
        };
        let idle = || {
            let all = api.get("/1.0/operations?recursion=1")?;
            let mut going = ["running", "pending"].into_iter().filter_map(|state| all[state].as_array()).flatten();
            Ok((!going.any(ours)).then_some(()))
        };
        match poll::until(&Deadline::after(PATIENCE), STEP, idle)? {
            Some(()) => Ok(()),
            None => Err(Error::timed_out(format!("the daemon is still at work on the guest '{name}'"))
                .hint("'incus operation list' shows what it does")),
        }
    }

    /// Ends an instance, if it runs, and removes it.
    fn take_away(api: &Api, name: &str) -> Result<()> {
        // It may end or go by itself right now.
        let _ = Self::act(api, name, "stop", &json!({"force": true}));
        match api.change(Method::DELETE, &path(name), &json!({})) {
            Err(error) if error.kind() != Kind::NotFound => Err(doing(error, format!("removing the guest '{name}'"))),
            _ => Ok(()),
        }
    }

    /// This state folder's instances at a daemon.
    fn ours(&self, api: &Api) -> Result<Vec<(GuestName, Value)>> {
        let state = known::id(&self.layout)?;
        let all = api.get("/1.0/instances?recursion=1")?;
        let all = all.as_array().into_iter().flatten();
        Ok(all.filter_map(|instance| Some((instance::label(instance, &state)?, instance.clone()))).collect())
    }

    /// The daemons that guests of this folder are, or were, at.
    fn daemons(&self) -> Result<Vec<Daemon>> {
        known::daemons(&self.layout, address::is_ours)
    }
}

/// Where an instance is in the API.
fn path(name: &str) -> String {
    format!("/1.0/instances/{name}")
}

/// Whether a daemon cannot be talked to, or must not.
fn is_away(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Refused)
}

fn taken(plan: &GuestPlan) -> Error {
    Error::new(Kind::Exists, format!("the daemon has an instance '{}' already", plan.name))
        .hint("it is none of virga's: choose another name")
}

/// Says what was being done over what the daemon said.
fn doing(error: Error, what: String) -> Error {
    if is_away(&error) || error.kind() == Kind::Interrupted {
        return error;
    }
    let said = Error::new(error.kind(), what);
    let said = error.hints().iter().fold(said, |said, hint| said.hint((*hint).to_owned()));
    match error.causes().last() {
        Some(words) => said.because(words.clone()),
        None => said.because(error.to_string()),
    }
}

/// What `look` finds once the daemon, or the member of its cluster, answers again.
fn returned<T>(look: impl Fn() -> Result<T>) -> Result<T> {
    let mut silence = None;
    let found = poll::until(&Deadline::after(api::RETURN), STEP, || match look() {
        Err(error) if error.kind() == Kind::Unavailable => {
            silence = Some(error);
            Ok(None)
        }
        found => found.map(Some),
    })?;
    found.ok_or_else(|| silence.unwrap_or_else(|| Error::unavailable("the daemon does not answer")))
}

/// Where the daemon's socket is on this host unless its environment says otherwise.
fn usual_socket() -> PathBuf {
    let places = [
        "/run/incus/unix.socket",
        "/var/lib/incus/unix.socket",
        "/var/snap/lxd/common/lxd/unix.socket",
        "/var/lib/lxd/unix.socket",
    ];
    places.into_iter().map(PathBuf::from).find(|place| place.exists()).unwrap_or_else(|| places[1].into())
}

fn unsupported(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the incus driver cannot {what}"))
}

impl Driver for Incus {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            boots: &[Boots::RootFileSystem],
            storage: Storage::BackendPool,
            seed: SeedIn::Folder,
            reached: Reached::Address,
            default_network: Network::Nat,
            host_closed: Ability::No("Incus plugs containers into networks of the host's"),
            console_log: true,
            memory_snapshots: false,
            saved_in: SavedIn::Nobody("a container's memory cannot be written out"),
            own_clock: false,
            exec: Ability::Yes,
            files: Ability::Yes,
            files_when_stopped: Ability::Yes,
            publish: Ability::Yes,
            export: Ability::Yes,
            folders: Ability::Yes,
            folders_when_running: Ability::Yes,
            ports: Ability::Yes,
            resize_when_running: Ability::Yes,
            daemon_images: Ability::Yes,
            autostart: Ability::Yes,
        }
    }

    fn daemon(&self) -> Option<Daemon> {
        Some(self.daemon.clone())
    }

    fn probe(&self, depth: ProbeDepth) -> Vec<Finding> {
        match self.at(&self.daemon.uri) {
            Ok(api) => probe::findings(&api, depth),
            Err(error) => vec![probe::bad(&error, depth)],
        }
    }

    fn complete(&self, plan: &mut GuestPlan) -> Result<()> {
        let container = instance::container(plan)?;
        if container.metadata.is_none() {
            return Err(Error::usage("the image has a root file system and no metadata, which the daemon wants").hint(
                "sync its item incus.tar.xz or lxd.tar.xz too; 'virga stream add' writes one for an image of your own",
            ));
        }
        if plan.arch != Arch::host() {
            return Err(Error::new(Kind::Unsupported, format!("containers of this machine cannot be {}", plan.arch)));
        }
        if plan.platform.tpm || plan.platform.firmware != Firmware::usual(plan.arch) {
            return Err(Error::new(Kind::Unsupported, "a container has neither firmware nor TPM"));
        }
        if let Some(daemon) = &mut plan.daemon {
            self.fix_project(daemon)?;
        }
        Ok(())
    }

    fn create(&self, plan: &GuestPlan) -> Result<()> {
        let api = self.api(plan)?;
        if api.link().is_far() && !plan.forwards.is_empty() {
            return Err(Error::new(Kind::Unsupported, "a daemon on another host cannot forward ports to this one")
                .hint(
                    "they would be on that host's loopback; connect to the guest's own address, which 'virga ip' shows",
                ));
        }
        let fingerprint = images::give(&api, plan, &known::id(&self.layout)?)?;
        self.make(&api, plan, &json!({"type": "image", "fingerprint": fingerprint}))
    }

    fn newest_machine(&self, _plan: &GuestPlan) -> Result<String> {
        Err(unsupported("change a machine type: a container has none"))
    }

    fn duplicate(&self, from: &GuestPlan, to: &GuestPlan) -> Result<()> {
        let source = json!({"type": "copy", "source": from.name, "instance_only": true});
        self.make(&*self.api(to)?, to, &source)
    }

    fn reconfigure(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        let api = self.api(new)?;
        if old.name != new.name && Self::instance(&api, old)?.is_some() {
            api.change(Method::POST, &path(old.name.as_str()), &json!({"name": new.name}))
                .map_err(|error| doing(error, format!("giving the guest '{}' the name '{}'", old.name, new.name)))?;
        }
        let container = instance::container(new)?;
        let profiles: Vec<&str> = container.wish.profiles.iter().map(BackendName::as_str).collect();
        let root = Self::root(&api, &profiles)?;
        let there = Self::defined(&api, new)?;
        let config = instance::config(new, &known::id(&self.layout)?)?;
        let changed = instance::changed(&there, config, instance::devices(new, root.as_ref(), &there)?);
        api.change(Method::PUT, &path(new.name.as_str()), &changed)
            .map_err(|error| doing(error, format!("changing the guest '{}'", new.name)))?;
        if old.name != new.name {
            instance::lay_seed(&api, new)?;
            instance::lay_host_name(&api, new)?;
        }
        Ok(())
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
        let api = self.api(plan)?;
        if instance::status(&Self::defined(&api, plan)?).is_alive() {
            return Ok(Started::default());
        }
        Self::act(&api, plan.name.as_str(), "start", &json!({}))
            .map_err(|error| doing(error, format!("guest '{}' cannot be started", plan.name)))?;
        Ok(Started::default())
    }

    fn load(&self, _plan: &GuestPlan, _from: &Saved) -> Result<()> {
        Err(unsupported("load saved machines"))
    }

    fn release(&self, plan: &GuestPlan) -> Result<()> {
        let api = self.api(plan)?;
        match instance::status(&Self::defined(&api, plan)?) {
            Status::Running => Ok(()),
            _ => Self::act(&api, plan.name.as_str(), "unfreeze", &json!({})),
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
        let api = self.api(plan)?;
        let runs = || Ok(Self::instance(&api, plan)?.is_some_and(|instance| instance::status(&instance).is_alive()));
        if !runs()? {
            return Ok(());
        }
        let (more, patience) = match how {
            Stop::Force => (json!({"force": true}), None),
            Stop::Graceful(patience) => (json!({"timeout": patience.as_secs().max(1)}), Some(patience)),
        };
        match Self::act(&api, plan.name.as_str(), "stop", &more) {
            Err(error) if error.kind() == Kind::Interrupted => Err(error),
            Err(error) if runs()? => Err(match patience {
                None => doing(error, format!("ending the guest '{}'", plan.name)),
                Some(patience) => {
                    let limit = humantime::format_duration(patience);
                    Error::timed_out(format!("guest '{}' did not shut down within {limit}", plan.name))
                        .because(error)
                        .hint("'--force' stops it at once, as if the power were cut")
                }
            }),
            _ => Ok(()),
        }
    }

    fn remove(&self, plan: &GuestPlan) -> Result<()> {
        let api = self.api(plan)?;
        let look = || {
            Self::settled(&api, plan.name.as_str())?;
            Self::instance(&api, plan)
        };
        let there = match self.layout.guest_files(&plan.name).asked().exists() {
            false => look()?,
            // What a killed command asked for may not have become an operation yet, and a daemon that was restarted in
            // the midst of it comes back.
            true => match returned(look)? {
                None => poll::until(&Deadline::after(LATE), STEP, look)?,
                there => there,
            },
        };
        match there {
            Some(_) => Self::take_away(&api, plan.name.as_str()),
            None => Ok(()),
        }
    }

    fn status(&self, plan: &GuestPlan) -> Result<Status> {
        let instance = Self::instance(&*self.api(plan)?, plan)?;
        Ok(instance.map_or(Status::Stopped, |instance| instance::status(&instance)))
    }

    fn glance(&self, plan: &GuestPlan) -> Result<Option<Status>> {
        self.status(plan).map(Some)
    }

    fn address(&self, _plan: &GuestPlan) -> Option<[Ipv4Addr; 2]> {
        None
    }

    fn endpoint(&self, plan: &GuestPlan) -> Result<Option<SocketAddr>> {
        let state = self.api(plan)?.find(&format!("{}/state", path(plan.name.as_str())))?;
        let addresses = state.map(|state| instance::addresses(&state, plan)).unwrap_or_default();
        Ok(addresses.first().map(|address| SocketAddr::new(*address, SSH)))
    }

    fn forwards(&self, plan: &GuestPlan) -> Result<Vec<Forward>> {
        let instance = Self::instance(&*self.api(plan)?, plan)?;
        Ok(instance.map_or_else(|| plan.forwards.clone(), |instance| instance::forwards(&instance, plan)))
    }

    fn console_tail(&self, plan: &GuestPlan, lines: usize) -> Result<Vec<String>> {
        let api = self.api(plan)?;
        match api.text(&format!("{}/console", path(plan.name.as_str()))) {
            Ok(text) => Ok(super::console::last(&text, lines)),
            // One that never ran has none.
            Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn sweep_images(
        &self,
        needed: &dyn Fn(&str) -> bool,
        dry_run: bool,
        away: Away<'_>,
    ) -> Result<Vec<(String, ByteSize)>> {
        let mut swept = Vec::new();
        for daemon in self.daemons()? {
            let sweep = |api: Arc<Api>| images::sweep(&api, &known::id(&self.layout)?, needed, dry_run);
            match self.at(&daemon.uri).and_then(sweep) {
                Ok(gone) => swept.extend(gone),
                Err(error) if is_away(&error) => away(error),
                Err(error) => return Err(error),
            }
        }
        // Two members of a cluster have one image.
        swept.sort();
        swept.dedup();
        Ok(swept)
    }

    fn list_owned(&self, away: Away<'_>) -> Result<Vec<Owned>> {
        let mut owned = Vec::new();
        // Where no guest of this folder ever was nobody is asked.
        for daemon in self.daemons()? {
            match self.at(&daemon.uri).and_then(|api| self.ours(&api)) {
                Ok(ours) => owned.extend(ours.into_iter().map(|(name, _)| Owned { name, pid: None, runtime: None })),
                Err(error) if is_away(&error) => away(error),
                Err(error) => return Err(error),
            }
        }
        Ok(owned)
    }

    fn remove_owned(&self, owned: &Owned) -> Result<()> {
        for daemon in self.daemons()? {
            let api = self.at(&daemon.uri)?;
            // One that is away showed nothing to remove.
            let Ok(ours) = self.ours(&api) else { continue };
            for (name, _) in ours.iter().filter(|(name, _)| *name == owned.name) {
                Self::settled(&api, name.as_str())?;
                Self::take_away(&api, name.as_str())?;
            }
        }
        Ok(())
    }
}
