//! Warm starts: a clone of a template, resumed and made a machine of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;

use super::create::{Job, WrittenSeed};
use super::origin::Base;
use super::{Env, machine, template};
use crate::base::nic::Network;
use crate::base::plan::{InstanceId, random};
use crate::base::poll::Laps;
use crate::base::{Error, Kind, Result, UserName, fs};
use crate::driver::{Begin, Driver, Saved, Started, Status};
use crate::guest::Record;
use crate::seed;
use crate::template::renewal::{self, OrderedKey, Orders};
use crate::template::{self as store, Template};

/// A clone that is silent for so long while it is renewed is killed: nobody knows what it is.
/// Half a second is usual for all of it; a machine that runs many emulated guests takes longer.
const RENEWAL: Duration = Duration::from_secs(30);

/// The template to start from, made first where there is none. `None`, with the
/// reason told, when this guest must start cold.
///
/// # Errors
/// What stands in the way of any start.
pub(super) fn template(job: &Job<'_>) -> Result<Option<Template>> {
    let cold = why_cold(job)?;
    if !cold.is_empty() {
        job.env.reporter.note(&format!("starting cold: {}", cold.join("; ")));
        return Ok(None);
    }
    match usable(job) {
        Ok(template) => Ok(Some(template)),
        Err(error) if error.kind() == Kind::Interrupted => Err(error),
        Err(error) => {
            give_up(job.env, &error);
            Ok(None)
        }
    }
}

fn usable(job: &Job<'_>) -> Result<Template> {
    let key = template::key(job.env, job.machine, job.base, job.request.user.as_deref())?;
    let layout = &job.env.settings.layout;
    let id = key.id()?;
    // Its files are checked when it is loaded.
    if let Some(template) = store::load(layout, &id)? {
        return Ok(template);
    }
    template::refuse_outdated(job.env, &key)?;
    let refusal = layout.template_refusal(&id);
    if let Some(why) = fs::read_json::<String>(&refusal)? {
        return Err(Error::refused(format!("this image and machine make no template: {why}"))
            .hint("'virga template create' with the same options tries again"));
    }
    template::make(job.env, job.turns, job.machine, job.base, key).inspect_err(|error| {
        // A boot for nothing is enough: the next guest starts cold at once.
        if error.kind() == Kind::Failed {
            let words: Vec<String> = std::iter::once(error.to_string()).chain(error.causes()).collect();
            let _ = fs::write_json(&refusal, &words.join(": "), 0o600);
        }
    })
}

/// Says why the start will be a cold one.
pub(super) fn give_up(env: Env<'_>, error: &Error) {
    let words: Vec<String> = std::iter::once(error.to_string()).chain(error.causes()).collect();
    env.reporter.warn(&format!("no warm start, starting cold: {}", words.join(": ")));
    for hint in error.hints() {
        env.reporter.note(&format!("hint: {hint}"));
    }
}

/// What was asked for that a guest that has booted already is too late for.
fn why_cold(job: &Job<'_>) -> Result<Vec<String>> {
    let request = job.request;
    let mut reasons = Vec::new();
    if !job.env.driver(job.machine.driver).capabilities().memory_snapshots {
        reasons.push(format!("the {} driver cannot save machines", job.machine.driver));
    }
    if job.base.arch != crate::base::Arch::Amd64 {
        reasons.push("only amd64 guests can be resumed from a template".into());
    }
    reasons.extend(job.machine.why_cold().map(str::to_owned));
    if !request.start {
        reasons.push("a guest that is not to be started cannot be resumed".into());
    }
    if !request.ephemeral_disks.is_empty() {
        reasons.push("disks cannot be added to a machine that runs".into());
    }
    if request.meta_data.is_some() {
        reasons.push("meta-data of your own is for the first boot".into());
    }
    if !request.networks.iter().all(Network::in_user_space) || request.networks.len() > 1 {
        reasons.push("a saved machine has one card, on a network of its own".into());
    }
    if request.network_config.is_some() {
        reasons.push("a network-config of your own is for the first boot".into());
    }
    reasons.extend(seed::why_cold(&job.material.user_data)?);
    Ok(reasons)
}

/// Resumes the clone and renews it. When that fails it is for the caller to
/// remove it: it must not be handed out.
///
/// # Errors
/// What went wrong, in QEMU or in the guest.
pub(super) fn start(
    job: &Job<'_>,
    driver: &dyn Driver,
    record: &Record,
    template: &Template,
    seed: &WrittenSeed,
    laps: &mut Laps,
) -> Result<(Started, Option<UserName>)> {
    let saved = Saved { state: template.files.state(), memory: Some(template.files.memory()) };
    let started = std::thread::scope(|scope| {
        // Meanwhile QEMU gets ready. It runs nothing of the template before all of that is known to be what was saved.
        let checked = scope.spawn(|| template.verify());
        let started = driver.start(&record.plan, Begin::Empty(saved.memory.as_deref()));
        checked.join().unwrap_or_else(|_| Err(Error::failed("checking the template broke off")))?;
        started
    })?;
    laps.lap("start");
    driver.load(&record.plan, &saved)?;
    laps.lap("load");
    for note in &started.notes {
        job.env.reporter.note(note);
    }
    let orders = orders(job, record, template, seed)?;
    // Before it runs: what it says is not lost.
    let mut channel = driver.channel(&record.plan)?;
    driver.release(&record.plan)?;
    let alive = || match driver.glance(&record.plan)?.is_none_or(Status::is_alive) {
        true => Ok(()),
        false => Err(Error::failed("the guest ended while it was renewed")),
    };
    let receipt = renewal::renew(&mut channel, &orders, RENEWAL, &alive).map_err(|error| {
        template::evidence(job.env, driver, &record.plan, &error);
        error.hint(format!("if it happens each time, make a new template: virga template remove {}", template.id))
    })?;
    // Nobody reached it before, nor it anybody.
    driver.connect(&record.plan)?;
    laps.lap("renewal");
    tracing::debug!(guest = %record.name(), drawn = receipt.drawn, clock = receipt.clock, "renewed");
    let other = (receipt.user != orders.user).then(|| receipt.user.parse().ok()).flatten();
    Ok((started, other))
}

fn orders(job: &Job<'_>, record: &Record, template: &Template, seed: &WrittenSeed) -> Result<Orders> {
    let Job { request, material, .. } = *job;
    let plan = &record.plan;
    let key = |key: &seed::HostKey| OrderedKey {
        kind: key.kind.name(),
        private: key.private_openssh.clone(),
        public: key.public_openssh.clone(),
    };
    let first_boot = !(material.user_data.is_empty()
        && material.scripts.is_empty()
        && request.packages.is_empty()
        && request.password.is_none());
    let text = |(name, bytes): &(String, Vec<u8>)| (name.clone(), String::from_utf8_lossy(bytes).into_owned());
    Ok(Orders {
        // As much as the generator holds, many times over: it is mixed, not trusted to be spread.
        entropy: base64::engine::general_purpose::STANDARD.encode(random::<512>()?),
        hostname: plan.name.to_string(),
        machine_id: InstanceId::generate()?.to_string().replace('-', ""),
        boot_id: InstanceId::generate()?.to_string(),
        instance: plan.id.to_string(),
        mac: plan.nics.first().map(|nic| nic.mac.to_string()).unwrap_or_default(),
        address: job.env.driver(record.driver).address(plan).map(|pair| pair.map(|part| part.to_string())),
        host_keys: seed.host_keys.iter().map(key).collect(),
        user: template.record.key.user.clone(),
        authorized_keys: material.authorized.keys.clone(),
        first_boot,
        documents: if first_boot { BTreeMap::new() } else { seed.documents.iter().map(text).collect() },
    })
}

/// The default user of a guest made of this image.
pub(super) fn default_user(base: &Base, wanted: Option<&str>) -> String {
    // Of an image that nobody knows, whoever wants to log in as somebody knows who is there.
    machine::image_user(&base.keys).or(wanted).unwrap_or(machine::GIVEN_USER).to_owned()
}
