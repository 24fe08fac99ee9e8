//! A container's console: a web socket of the daemon's as a plain stream.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::api::{Api, Line};
use super::path;
use crate::base::{Context as _, Error, GuestPlan, Result};

/// Connects to the console of a running container. The stream ends with it, or when its other end is closed.
///
/// # Errors
/// What the daemon said.
pub(super) fn connect(api: Arc<Api>, plan: &GuestPlan) -> Result<UnixStream> {
    let wish = json!({"type": "console", "width": 80, "height": 24});
    let operation = api.begin(&format!("{}/console", path(plan.name.as_str())), &wish)?;
    let what = || "connecting to the console".to_owned();
    let (ours, theirs) = UnixStream::pair().context(what)?;
    theirs.set_nonblocking(true).context(what)?;
    let (told, outcome) = mpsc::channel();
    // As long as the command that is connected; what is bound to a runtime stays on its thread.
    std::thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(told.send(Err(Error::failed(what()).because(error)))),
        };
        runtime.block_on(async {
            let opened = open(&api, &operation, theirs).await;
            match opened {
                Err(error) => drop(told.send(Err(error))),
                Ok((line, control, theirs)) => {
                    let _ = told.send(Ok(()));
                    pump(line, theirs).await;
                    drop(control);
                }
            }
        });
    });
    outcome.recv().unwrap_or_else(|_| Err(Error::failed(what())))?;
    Ok(ours)
}

type Opened = (Line, Line, tokio::net::UnixStream);

/// The daemon connects the console once it has both of its sockets.
async fn open(api: &Api, operation: &Value, theirs: UnixStream) -> Result<Opened> {
    let line = api.line(operation, "0").await?;
    let control = api.line(operation, "control").await?;
    let theirs = tokio::net::UnixStream::from_std(theirs).context(|| "connecting to the console".into())?;
    Ok((line, control, theirs))
}

async fn pump(mut line: Line, mut theirs: tokio::net::UnixStream) {
    let mut piece = [0; 4096];
    loop {
        tokio::select! {
            typed = theirs.read(&mut piece) => match typed {
                Ok(length @ 1..) if line.send(Message::binary(piece[..length].to_vec())).await.is_ok() => {}
                _ => break,
            },
            shown = line.next() => match shown {
                Some(Ok(Message::Binary(bytes))) if theirs.write_all(&bytes).await.is_ok() => {}
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => break,
            },
        }
    }
    let _ = line.close(None).await;
}
