//! `uvt-kvm wait`: an address, an SSH server, a script that ends well. One
//! deadline for all three, and a guest that stops ends it at once.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::guests::{Entry, Way};
use super::libvirt;
use crate::base::cmd::{Output, last_words};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Result};
use crate::driver::libvirt::uvtool::{Machine, Uvtool};
use crate::ops::Env;
use crate::ssh::probe::Prober;
use crate::ssh::session::{Style, Tty, exit_code, ssh_command};

/// How often libvirt is asked for the address.
const STEP: Duration = Duration::from_millis(200);
/// How often libvirt is asked whether the guest runs and is still where it was.
const GLANCE: Duration = Duration::from_secs(1);
/// How often connections are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Between two logins of which the first was refused: OpenSSH counts them (`PerSourcePenalties`, sshd_config(5)).
const LOGIN_PAUSE: Duration = Duration::from_secs(2);

/// What is run in the guest unless the user has a script: ends once cloud-init is through.
const SCRIPT: &str = "until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.2; done\n";

/// For what to wait, and how long.
#[derive(Clone, Debug)]
pub struct Request {
    /// The domain.
    pub name: String,
    /// For all of it.
    pub timeout: Duration,
    /// What the script is told as the interval and as the timeout.
    pub told: [String; 2],
    /// The script that must end with 0; `None`: one that waits for cloud-init.
    pub script: Option<Vec<u8>>,
    /// How to get in; `None`: it is enough that the SSH server answers.
    pub entry: Option<Entry>,
}

/// Waits. `said` is given what the script wrote, whether it ended well or not.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a domain, [`crate::base::Kind::TimedOut`] saying for what it waited,
/// [`crate::base::Kind::Failed`] when it does not run, ends, has no card, or the script fails.
pub fn wait(env: Env<'_>, request: &Request, said: impl FnOnce(&Output)) -> Result<()> {
    let deadline = Deadline::after(request.timeout);
    let (libvirt, name) = (libvirt(env), &request.name);
    let machine = libvirt.machine(name)?;
    if !machine.running {
        return Err(Error::failed(format!("libvirt domain '{name}' is not running.")));
    }
    let Some(mac) = machine.macs.first() else {
        return Err(Error::failed(format!("libvirt domain '{name}' has no NIC MACs available.")));
    };
    let way = request.entry.as_ref().map(|entry| Way::find(env, &machine, entry)).transpose()?;
    let stage = env.reporter.wait(name);
    let mut watch = Watch { libvirt: &libvirt, machine: &machine, last: Instant::now() };

    stage.stage("its address");
    let address = poll::until(&deadline, STEP, || match libvirt.addresses(&machine)?.first() {
        None => watch.alive().map(|_| None),
        found => Ok(found.copied()),
    })?;
    let address = address.ok_or_else(|| Error::timed_out(format!("timed out waiting for dnsmasq lease for {mac}.")))?;

    stage.stage("its SSH server");
    let address = watch.answer(address, &deadline)?;

    let Some(way) = way else { return Ok(()) };
    stage.stage(if request.script.is_some() { "the script" } else { "cloud-init" });
    let output = watch.script(request, &way, address, &deadline)?;
    drop(stage);
    said(&output);
    match exit_code(output.status) {
        0 => Ok(()),
        code => Err(Error::failed(format!("the remote wait script failed with exit code {code}"))),
    }
}

struct Watch<'a> {
    libvirt: &'a Uvtool,
    machine: &'a Machine,
    last: Instant,
}

impl Watch<'_> {
    /// Fails once the guest does not run any more. `true` when it was looked at; that is not done each time.
    fn alive(&mut self) -> Result<bool> {
        if self.last.elapsed() < GLANCE {
            return Ok(false);
        }
        self.last = Instant::now();
        match self.libvirt.is_running(&self.machine.name)? {
            true => Ok(true),
            false => Err(Error::failed(format!("libvirt domain '{}' is not running.", self.machine.name))
                .hint("it ran when the wait began")),
        }
    }

    /// Waits for an SSH server there, or where the guest is by then. Returns where it answered.
    fn answer(&mut self, first: IpAddr, deadline: &Deadline) -> Result<IpAddr> {
        let mut address = first;
        let at = |address: IpAddr| Prober::new((address, 22).into());
        let mut prober = at(address);
        let answered = poll::until(deadline, TICK, || {
            if prober.tick()?.is_some() {
                return Ok(Some(()));
            }
            if self.alive()? {
                let now = self.libvirt.addresses(self.machine)?;
                if let Some(best) = now.first().filter(|_| !now.contains(&address)) {
                    address = *best;
                    prober = at(address);
                }
            }
            Ok(None)
        })?;
        answered.map(|()| address).ok_or_else(|| {
            Error::timed_out(format!("timed out waiting for ssh to open on {address}."))
                .because(prober.answer().to_string())
        })
    }

    /// Runs the script, again where no login was possible yet, to its end.
    fn script(&mut self, request: &Request, way: &Way, address: IpAddr, deadline: &Deadline) -> Result<Output> {
        let [interval, timeout] = &request.told;
        let command = format!("exec env UVTOOL_WAIT_INTERVAL={interval} UVTOOL_WAIT_TIMEOUT={timeout} sh -");
        let script = request.script.as_deref().unwrap_or(SCRIPT.as_bytes());
        let late = |last: Option<String>| {
            let error = Error::timed_out(format!("timed out waiting for the remote wait script on {address}."));
            match last {
                Some(last) => error.because(last),
                None => error,
            }
        };
        let mut last = None;
        loop {
            let target = way.to(address);
            let mut running = ssh_command(&target, Style::Batch, Tty::Never)?.arg(&command).spawn()?;
            running.feed(script.to_vec());
            let output = poll::until(deadline, TICK, || match running.poll()? {
                None => self.alive().map(|_| None),
                ended => Ok(ended),
            })?;
            let Some(output) = output else { return Err(late(last)) };
            match no_login(&output)? {
                None => return Ok(output),
                Some(why) => last = Some(why),
            }
            let pause = Deadline::after(LOGIN_PAUSE);
            poll::until(deadline, TICK, || match pause.passed() {
                true => Ok(Some(())),
                false => self.alive().map(|_| None),
            })?
            .ok_or_else(|| late(last.clone()))?;
        }
    }
}

/// Why no login was possible; `None`: there was one.
fn no_login(output: &Output) -> Result<Option<String>> {
    // ssh's own code.
    if exit_code(output.status) != 255 {
        return Ok(None);
    }
    let words = last_words(&output.stderr);
    if words.contains("ost key verification failed") || words.contains("no matching host key type") {
        return Err(Error::refused("the guest shows a host key that is not the one stored for it").because(words));
    }
    Ok(Some(words))
}
