//! The talk with the service in the guest (`cloud-init/renew.py`): one JSON
//! object a line. What comes from there is a guest's word, and no more.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::name::quoted;
use crate::base::poll::Deadline;
use crate::base::{Context as _, Error, Result, interrupt};

/// Longest line: what is expected has a few hundred bytes.
const LINE_LIMIT: usize = 64 << 10;
/// A clone says less than this until it is renewed; one that never ends is none.
const WORDS: usize = 20;
/// How often it is asked whether the guest lives: that costs it more than us.
const TICK: Duration = Duration::from_millis(100);

/// What the guest says of itself before it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its kernel's release.
    pub kernel: String,
    /// TCP connections made during the boot. Zero: the kernel has not drawn the secret of its
    /// sequence numbers yet, and every clone draws its own.
    pub tcp: u64,
}

/// Who a clone is to be.
#[derive(Clone, Serialize)]
pub struct Orders {
    /// Fresh random bytes in base64.
    pub entropy: String,
    /// Its host name.
    pub hostname: String,
    /// 32 hexadecimal digits.
    pub machine_id: String,
    /// A UUID.
    pub boot_id: String,
    /// The instance id.
    pub instance: String,
    /// Its card's address.
    pub mac: String,
    /// Its IPv4 address and network mask, where they are known before they are given.
    pub address: Option<[String; 2]>,
    /// Its SSH identity.
    pub host_keys: Vec<OrderedKey>,
    /// The default user; one that the guest does not have is that of its own configuration.
    pub user: String,
    /// Who gets in as that user.
    pub authorized_keys: Vec<String>,
    /// Whether there is work for cloud-init.
    pub first_boot: bool,
    /// The documents of its seed by their names, for what cloud-init's own programs say of them; none where cloud-init runs
    /// and reads them itself.
    pub documents: BTreeMap<String, String>,
}

/// One host key.
#[derive(Clone, Serialize)]
pub struct OrderedKey {
    /// As in the file's name: `ed25519`.
    pub kind: &'static str,
    /// OpenSSH's PEM text.
    pub private: String,
    /// One line.
    pub public: String,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for OrderedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderedKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// What a clone says once it is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// SHA-256 of the first 4 KiB that its kernel's generator gave after the new entropy.
    pub drawn: String,
    /// How far its clock can be off, in seconds: half of what asking for the time took.
    pub clock: f64,
    /// Whom it lets in: a guest's word.
    #[serde(default)]
    pub user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Ready(Facts),
    /// For the time: it is about to set its clock.
    Asks(Question),
    Renewed(Receipt),
    Failed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    Time,
}

/// Waits until the guest is fit to be saved.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`]; what the guest says; what `alive` returns.
pub fn await_ready(channel: &mut UnixStream, deadline: &Deadline, alive: &dyn Fn() -> Result<()>) -> Result<Facts> {
    match listen(channel, deadline, alive)? {
        Said::Ready(facts) => Ok(facts),
        Said::Failed(why) => Err(Error::failed("the guest cannot be made a template").because(quoted(&why))),
        Said::Renewed(_) | Said::Asks(_) => Err(nonsense()),
    }
}

/// Tells a clone who it is, and waits until it is. It asks for the time when it is about to set its clock.
/// Its cable is to be out until then. `patience` is for its silence: each word of it begins that anew.
///
/// # Errors
/// As [`await_ready`].
pub fn renew(
    channel: &mut UnixStream,
    orders: &Orders,
    patience: Duration,
    alive: &dyn Fn() -> Result<()>,
) -> Result<Receipt> {
    tell(channel, orders, patience)?;
    for _ in 0..WORDS {
        match listen(channel, &Deadline::after(patience), alive)? {
            Said::Renewed(receipt) => return Ok(receipt),
            Said::Asks(Question::Time) => tell(channel, &Time::now()?, patience)?,
            Said::Failed(why) => {
                return Err(Error::failed("the guest could not be renewed").because(quoted(&why)));
            }
            Said::Ready(_) => return Err(nonsense()),
        }
    }
    Err(nonsense())
}

#[derive(Serialize)]
struct Time {
    /// Seconds since 1970.
    time: f64,
}

impl Time {
    fn now() -> Result<Self> {
        let time = SystemTime::UNIX_EPOCH.elapsed().context(|| "reading the clock".into())?.as_secs_f64();
        Ok(Time { time })
    }
}

fn tell(channel: &mut UnixStream, what: &impl Serialize, patience: Duration) -> Result<()> {
    let mut line = serde_json::to_vec(what).context(|| "writing to the guest".into())?;
    line.push(b'\n');
    channel.set_write_timeout(Some(patience)).map_err(broken)?;
    channel.write_all(&line).map_err(broken)
}

fn listen(channel: &mut UnixStream, deadline: &Deadline, alive: &dyn Fn() -> Result<()>) -> Result<Said> {
    let mut line = Vec::new();
    channel.set_read_timeout(Some(TICK)).map_err(broken)?;
    loop {
        interrupt::check()?;
        if deadline.passed() {
            let limit = humantime::format_duration(deadline.limit());
            return Err(Error::timed_out(format!("the guest said nothing on its channel within {limit}")));
        }
        let mut piece = [0; 4096];
        match channel.read(&mut piece) {
            Ok(0) => return Err(Error::failed("the guest ended")),
            Ok(count) => line.extend_from_slice(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => alive()?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            return serde_json::from_slice(&line[..end]).map_err(|error| nonsense().because(error));
        }
        if line.len() > LINE_LIMIT {
            return Err(nonsense());
        }
    }
}

fn nonsense() -> Error {
    Error::failed("the guest says something on its channel that makes no sense")
}

fn broken(error: std::io::Error) -> Error {
    Error::failed("talking to the guest over its channel").because(error)
}
