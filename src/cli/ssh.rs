//! `virga ssh`.

use std::process::ExitCode;
use std::time::Duration;

use super::args::duration;
use crate::base::{Error, GuestName, Result};
use crate::ops::Env;
use crate::ops::ssh::{self, SshRequest, Tty};

/// `virga ssh`
#[derive(clap::Args, Debug)]
#[command(after_help = "Options come before the command, before or after NAME; '--' ends them.\n\
    A guest that was started just now is waited for until it lets its user in, unless '--no-wait' is given.\n\
    Ends as the command did; 255 when the connection failed.")]
pub struct Args {
    /// The guest, with another user's name before it if wanted: USER@NAME
    #[arg(value_name = "[USER@]NAME")]
    target: String,
    /// Log in as this user
    #[arg(short, long, value_name = "USER")]
    login_name: Option<String>,
    /// Ask for a terminal in the guest, also for a command
    #[arg(short, long, action = clap::ArgAction::Count)]
    tty: u8,
    /// Do not wait until a guest that was started just now lets its user in
    #[arg(long)]
    no_wait: bool,
    /// Wait no longer than this for that, as in 90s, 5m or 2h [default: 5m]
    #[arg(long, value_parser = duration, value_name = "TIME", conflicts_with = "no_wait")]
    timeout: Option<Duration>,
    #[command(flatten)]
    own: Own,
    /// A command to run instead of a shell; its words are joined by blanks and read by the guest's shell, as ssh does
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What is `ssh`'s own affair, and passed on.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Options of ssh (see 'man ssh')")]
struct Own {
    /// Lead a port of this machine to where the guest can reach HOST
    #[arg(short = 'L', value_name = "[ADDRESS:]PORT:HOST:PORT")]
    local: Vec<String>,
    /// Lead a port of the guest to where this machine can reach HOST
    #[arg(short = 'R', value_name = "[ADDRESS:]PORT[:HOST:PORT]")]
    remote: Vec<String>,
    /// A SOCKS proxy on this machine, by way of the guest
    #[arg(short = 'D', value_name = "[ADDRESS:]PORT")]
    dynamic: Vec<String>,
    /// Connect input and output with HOST, as the guest reaches it
    #[arg(short = 'W', value_name = "HOST:PORT")]
    through: Option<String>,
    /// Run nothing: for ports alone
    #[arg(short = 'N')]
    nothing: bool,
    /// Lend the guest the agent here
    #[arg(short = 'A')]
    agent: bool,
    /// Lend it no agent
    #[arg(short = 'a')]
    no_agent: bool,
    /// Lend it the display here
    #[arg(short = 'X')]
    display: bool,
    /// The same without X11's own guard
    #[arg(short = 'Y')]
    trusted_display: bool,
    /// Lend it no display
    #[arg(short = 'x')]
    no_display: bool,
    /// Let others reach ports that were led here
    #[arg(short = 'g')]
    gateway: bool,
    /// Go into the background before the command
    #[arg(short = 'f')]
    background: bool,
    /// Read nothing from the input
    #[arg(short = 'n')]
    no_input: bool,
    /// Ask for no terminal
    #[arg(short = 'T', conflicts_with = "tty")]
    no_tty: bool,
    /// The command is the name of a subsystem
    #[arg(short = 's')]
    subsystem: bool,
    /// Compress
    #[arg(short = 'C')]
    compress: bool,
    /// Offer this key too
    #[arg(short = 'i', value_name = "FILE")]
    identity: Vec<String>,
    /// The escape character
    #[arg(short = 'e', value_name = "CHAR", allow_hyphen_values = true)]
    escape: Option<String>,
    /// Write ssh's own messages to a file
    #[arg(short = 'E', value_name = "FILE")]
    log: Option<String>,
    /// Any other setting, as in ssh's configuration
    #[arg(short = 'o', value_name = "KEY=VALUE")]
    setting: Vec<String>,
    /// What virga decides
    #[arg(short = 'p', short_aliases = ['F', 'J', 'b', 'B', 'S', 'O', 'w', 'Q', 'c', 'm', 'I', 'P'], hide = true,
          value_name = "VALUE")]
    decided: Vec<String>,
    /// What virga decides
    #[arg(short = '4', short_aliases = ['6', 'M', 'G', 'K', 'k', 'y'], hide = true, action = clap::ArgAction::Count)]
    decided_too: u8,
}

impl Own {
    /// The words of `ssh`'s command line.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] for what is not the user's to say here.
    fn words(self) -> Result<Vec<String>> {
        if !self.decided.is_empty() || self.decided_too > 0 {
            return Err(Error::usage(
                "which address, port, way and ciphers lead to a guest is for virga to say: \
                 ssh's options -p, -F, -J, -b, -4, -M, -c and the like are not passed on",
            )
            .hint("ssh with all its options reaches guests as NAME.virga after: virga ssh-config --install")
            .hint("a word for the guest's own command goes behind '--'"));
        }
        let flags = [
            ("-N", self.nothing),
            ("-A", self.agent),
            ("-a", self.no_agent),
            ("-X", self.display),
            ("-Y", self.trusted_display),
            ("-x", self.no_display),
            ("-g", self.gateway),
            ("-f", self.background),
            ("-n", self.no_input),
            ("-s", self.subsystem),
            ("-C", self.compress),
        ];
        let values = [
            ("-L", self.local),
            ("-R", self.remote),
            ("-D", self.dynamic),
            ("-W", self.through.into_iter().collect()),
            ("-i", self.identity),
            ("-e", self.escape.into_iter().collect()),
            ("-E", self.log.into_iter().collect()),
            ("-o", self.setting),
        ];
        let flags = flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.to_owned());
        let pairs = values.into_iter().flat_map(|(flag, values)| values.into_iter().map(move |value| (flag, value)));
        Ok(flags.chain(pairs.flat_map(|(flag, value)| [flag.to_owned(), value])).collect())
    }
}

/// Runs `virga ssh`. Ends as the remote command did; 255 when the channel failed.
///
/// # Errors
/// As [`ssh::ssh`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let (user, name) = match args.target.rsplit_once('@') {
        Some((user, name)) => (Some(user.to_owned()), name),
        None => (None, args.target.as_str()),
    };
    if user.is_some() && args.login_name.is_some() {
        return Err(Error::usage("the user is named twice: USER@ and --login-name"));
    }
    let name: GuestName = name.parse()?;
    let tty = match (args.tty, args.own.no_tty) {
        (_, true) => Tty::Never,
        (0, false) => Tty::Auto,
        _ => Tty::Always,
    };
    let patience = (!args.no_wait).then(|| args.timeout.unwrap_or(env.settings.defaults.timeout));
    let request =
        SshRequest { user: args.login_name.or(user), tty, options: args.own.words()?, command: args.command, patience };
    Ok(ExitCode::from(ssh::ssh(env, &name, &request)?))
}
