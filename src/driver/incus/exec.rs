//! A program in a container, with its input, output and terminal over the daemon's web sockets
//! (Incus documentation, "Instance: execute a command").

use std::io::Read;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::api::{Api, Line};
use super::path;
use crate::base::cmd::Pipes;
use crate::base::{Error, GuestPlan, Result, interrupt};
use crate::driver::Exec;

/// What the daemon is told to pass on when Ctrl-C came (signal(7)).
const SIGINT: i32 = 2;

/// A piece of what goes in or comes out.
const PIECE: usize = 16 << 10;

/// Runs the program to its end and returns its exit code.
///
/// # Errors
/// What the daemon said; when output cannot be written.
pub(super) fn run(api: &Api, plan: &GuestPlan, exec: &Exec, streams: Pipes<'_>) -> Result<u8> {
    let environment: serde_json::Map<String, Value> =
        exec.environment.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let mut body = json!({
        "command": exec.command,
        "environment": environment,
        "wait-for-websocket": true,
        "interactive": exec.terminal.is_some(),
    });
    if let Some([width, height]) = exec.terminal {
        body["width"] = width.into();
        body["height"] = height.into();
    }
    let operation = api.begin(&format!("{}/exec", path(plan.name.as_str())), &body)?;
    let typed = typed(streams.input);
    api.attend(async {
        let mut session = Session::open(api, &operation, exec.terminal.is_some()).await?;
        session.talk(typed, streams.output, streams.errors).await
    })?;
    let ended = api.get(&format!("/1.0/operations/{}/wait", operation["id"].as_str().unwrap_or_default()))?;
    match ended["metadata"]["return"].as_i64() {
        Some(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        None => Err(Error::failed("the program could not be run in the guest")
            .because(ended["err"].as_str().unwrap_or("the daemon does not say why").to_owned())),
    }
}

/// Reads the input on a thread of its own: a read that waits cannot be called off.
fn typed(mut input: Box<dyn Read + Send>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = input.read(&mut piece) {
            if sender.blocking_send(piece[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

struct Session {
    control: Line,
    input: Line,
    /// None of its own where there is a terminal: it comes over the input's.
    output: Option<Line>,
    errors: Option<Line>,
}

impl Session {
    async fn open(api: &Api, operation: &Value, terminal: bool) -> Result<Self> {
        let further = async |which: &str| match terminal {
            true => Ok::<_, Error>(None),
            false => api.line(operation, which).await.map(Some),
        };
        let (control, input) = (api.line(operation, "control").await?, api.line(operation, "0").await?);
        Ok(Session { control, input, output: further("1").await?, errors: further("2").await? })
    }

    /// Until the program has closed all that it writes on.
    async fn talk(
        &mut self,
        mut typed: mpsc::Receiver<Vec<u8>>,
        output: &mut dyn std::io::Write,
        errors: &mut dyn std::io::Write,
    ) -> Result<()> {
        let terminal = self.output.is_none();
        let mut open = [true, !terminal, !terminal];
        let (mut typing, mut asked) = (true, false);
        let lost = |error: std::io::Error| Error::failed("passing on what the program wrote").because(error);
        while open[1] || open[2] || (terminal && open[0]) {
            tokio::select! {
                piece = typed.recv(), if typing => match piece {
                    Some(piece) => typing = self.input.send(Message::binary(piece)).await.is_ok(),
                    None => {
                        // The daemon's sign for the end of the input.
                        let _ = self.input.send(Message::text("")).await;
                        typing = false;
                    }
                },
                said = self.input.next(), if open[0] => match bytes(said) {
                    Some(bytes) => output.write_all(&bytes).and_then(|()| output.flush()).map_err(lost)?,
                    None => open[0] = false,
                },
                said = next(&mut self.output), if open[1] => match bytes(said) {
                    Some(bytes) => output.write_all(&bytes).and_then(|()| output.flush()).map_err(lost)?,
                    None => open[1] = false,
                },
                said = next(&mut self.errors), if open[2] => match bytes(said) {
                    Some(bytes) => errors.write_all(&bytes).and_then(|()| errors.flush()).map_err(lost)?,
                    None => open[2] = false,
                },
                () = tokio::time::sleep(super::api::GLANCE) => {
                    if interrupt::requested() && !asked {
                        asked = true;
                        let signal = json!({"command": "signal", "signal": SIGINT});
                        let _ = self.control.send(Message::text(signal.to_string())).await;
                    }
                }
            }
        }
        Ok(())
    }
}

async fn next(line: &mut Option<Line>) -> Option<std::result::Result<Message, tokio_tungstenite::tungstenite::Error>> {
    match line {
        Some(line) => line.next().await,
        None => None,
    }
}

/// What came; `None` at the end, which the daemon says with a text.
fn bytes(said: Option<std::result::Result<Message, tokio_tungstenite::tungstenite::Error>>) -> Option<Vec<u8>> {
    match said {
        Some(Ok(Message::Binary(bytes))) => Some(bytes.to_vec()),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Some(Vec::new()),
        _ => None,
    }
}
