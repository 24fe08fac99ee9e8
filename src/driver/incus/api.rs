//! The REST API of Incus, which LXD's is too as far as virga needs it
//! (Incus documentation, "Main API specification" and "Events").
//!
//! Long work is an operation of the daemon's: it is followed over the event
//! socket, which is opened first, so that no word of it is missed.

pub(super) mod transfer;

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode, multipart};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::link::{Bytes, Link};
use crate::base::{BackendName, Context as _, Error, Kind, Result, interrupt};

/// How often Ctrl-C is looked for while an operation goes on.
pub(super) const GLANCE: Duration = Duration::from_millis(100);

/// How long nothing may be heard of an operation before the daemon is asked how it stands: its sign of life says nothing
/// of another member of its cluster that has the operation.
const SILENCE: Duration = Duration::from_secs(5);

/// How long the answer to a question may take that is asked only to see whether anybody answers.
const ANSWER: Duration = Duration::from_secs(30);

/// How long a daemon that went away in the midst of an operation may take to come back.
pub(super) const RETURN: Duration = Duration::from_secs(10);

/// What a member of a cluster says when the one that it was to pass a request on to does not answer.
const ABSENT: [&str; 3] =
    ["Server isn't ready yet", "Missing event connection with target cluster member", "Unable to connect to"];

/// The daemon's own word that an operation ended well; from here on it has ended.
const SUCCESS: u64 = 200;

/// A daemon.
pub(super) struct Api {
    link: Link,
    client: reqwest::Client,
    /// Blocking callers take turns.
    runtime: Mutex<Runtime>,
    project: Option<BackendName>,
}

/// What the daemon answers to a request.
enum Answer {
    /// At once, with this.
    Done(Value),
    /// By beginning this operation.
    Begun(Value),
}

/// A web socket of the daemon's.
pub(super) type Line = WebSocketStream<Box<dyn Bytes>>;

impl Api {
    /// Opens it; talks to nobody yet.
    ///
    /// # Errors
    /// When the system has no thread or file to give.
    pub(super) fn open(link: Link, project: Option<BackendName>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Api {
            client: link.client()?,
            runtime: Mutex::new(runtime.context(|| "setting up the connection to the daemon".into())?),
            link,
            project,
        })
    }

    /// The way to the daemon.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The project that guests are in; `None`: the usual one.
    pub(super) fn project(&self) -> Option<&BackendName> {
        self.project.as_ref()
    }

    /// Runs what talks over web sockets; other requests wait meanwhile.
    ///
    /// # Errors
    /// What `work` returns.
    pub(super) fn attend<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.wait(work)
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.lock().unwrap_or_else(std::sync::PoisonError::into_inner).block_on(work)
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when nothing is, [`Kind::Unavailable`] without a daemon; what the daemon said.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.wait(async {
            match self.ask(self.request(Method::GET, path)).await? {
                Answer::Done(value) => Ok(value),
                Answer::Begun(_) => Err(Error::failed(format!("the daemon began something when asked for '{path}'"))),
            }
        })
    }

    /// As [`get`](Self::get); `None` when nothing is there.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path) {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// The text at `path`, which is no JSON.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn text(&self, path: &str) -> Result<String> {
        self.wait(async {
            let response = self.request(Method::GET, path).send().await.map_err(|error| self.away(&error))?;
            if !response.status().is_success() {
                return Err(self.refused(response).await);
            }
            let bytes = response.bytes().await.map_err(|error| self.away(&error))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
    }

    /// Changes what is at `path` and returns when that is done: what the daemon, or its operation, said.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when nothing is there, [`Kind::Exists`] for a name that is taken; what the daemon said.
    pub(super) fn change(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        self.wait(async {
            let mut events = self.events().await?;
            let request = self.request(method, path).header("content-type", "application/json").body(body.to_string());
            match self.ask(request).await? {
                Answer::Done(value) => Ok(value),
                Answer::Begun(operation) => self.follow(&mut events, id_of(&operation)?).await,
            }
        })
    }

    /// Begins an operation that is talked with over web sockets, and returns it.
    ///
    /// # Errors
    /// What the daemon said.
    pub(super) fn begin(&self, path: &str, body: &Value) -> Result<Value> {
        self.wait(async {
            let request = self.request(Method::POST, path).header("content-type", "application/json");
            match self.ask(request.body(body.to_string())).await? {
                Answer::Begun(operation) => Ok(operation),
                Answer::Done(_) => Err(Error::failed("the daemon began no operation")),
            }
        })
    }

    /// One of an operation's web sockets.
    ///
    /// # Errors
    /// What the daemon said.
    pub(super) async fn line(&self, operation: &Value, which: &str) -> Result<Line> {
        let secret = operation["metadata"]["fds"][which].as_str();
        let secret = secret.ok_or_else(|| Error::failed("the daemon opens no web socket"))?;
        self.web_socket(&format!("/1.0/operations/{}/websocket?secret={secret}", id_of(operation)?)).await
    }

    /// Writes a file into an instance, whether it runs or not.
    ///
    /// # Errors
    /// What the daemon said.
    pub(super) fn write_file(&self, instance: &str, path: &str, mode: &str, bytes: Vec<u8>) -> Result<()> {
        let path = format!("/1.0/instances/{instance}/files?path={path}");
        let request = |kind: &'static str| {
            let owner = [("x-incus-uid", "0"), ("x-incus-gid", "0"), ("x-lxd-uid", "0"), ("x-lxd-gid", "0")];
            let request = self.request(Method::POST, &path).header("x-incus-type", kind).header("x-lxd-type", kind);
            owner.into_iter().fold(request, |request, (name, value)| request.header(name, value))
        };
        self.wait(async {
            let request = match mode {
                "directory" => request("directory").header("x-incus-mode", "0755").header("x-lxd-mode", "0755"),
                mode => request("file").header("x-incus-mode", mode).header("x-lxd-mode", mode).body(bytes),
            };
            self.ask(request).await.map(drop)
        })
    }

    /// Gives the daemon an image, and returns its fingerprint as the daemon computed it.
    ///
    /// # Errors
    /// When a file cannot be read; what the daemon said.
    pub(super) fn push_image(&self, metadata: &Path, root: &Path, properties: &str) -> Result<String> {
        self.wait(async {
            let part = async |path: &Path, name: &str| {
                let part = multipart::Part::file(path).await.context(|| format!("reading '{}'", path.display()))?;
                Ok::<_, Error>(part.file_name(name.to_owned()))
            };
            let form = multipart::Form::new()
                .part("metadata", part(metadata, "metadata.tar.xz").await?)
                .part("rootfs", part(root, "rootfs").await?);
            let mut events = self.events().await?;
            let request = self
                .request(Method::POST, "/1.0/images")
                .header("x-incus-properties", properties)
                .header("x-lxd-properties", properties)
                .multipart(form);
            let said = match self.ask(request).await? {
                Answer::Done(value) => value,
                Answer::Begun(operation) => self.follow(&mut events, id_of(&operation)?).await?,
            };
            let fingerprint = said["fingerprint"].as_str();
            fingerprint.map(str::to_owned).ok_or_else(|| Error::failed("the daemon does not say which image it took"))
        })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{}", self.link.base(), self.in_project(path)))
    }

    fn in_project(&self, path: &str) -> String {
        match &self.project {
            None => path.to_owned(),
            Some(project) => {
                let sign = if path.contains('?') { '&' } else { '?' };
                format!("{path}{sign}project={project}")
            }
        }
    }

    /// Sends a request and reads the answer's envelope.
    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = interruptible(async { request.send().await.map_err(|error| self.away(&error)) }).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let bytes = response.bytes().await.map_err(|error| self.away(&error))?;
        let said: Value = serde_json::from_slice(&bytes).context(|| "reading the daemon's answer".into())?;
        match said["type"].as_str() {
            Some("async") => Ok(Answer::Begun(said["metadata"].clone())),
            Some("error") => Err(self.spoken(&said, StatusCode::BAD_REQUEST)),
            _ => Ok(Answer::Done(said["metadata"].clone())),
        }
    }

    async fn events(&self) -> Result<Line> {
        self.web_socket("/1.0/events?type=operation").await
    }

    async fn web_socket(&self, path: &str) -> Result<Line> {
        let stream = self.link.dial().await?;
        // The connection is made: its scheme does not matter any more, its host does.
        let url = format!("{}{}", self.link.base().replacen("http", "ws", 1), self.in_project(path));
        let opened = tokio::time::timeout(ANSWER, tokio_tungstenite::client_async(url, stream)).await;
        let opened = opened.map_err(|_| self.link.unreachable(&std::io::Error::from(std::io::ErrorKind::TimedOut)))?;
        let (line, _) = opened.map_err(|error| match error {
            tokio_tungstenite::tungstenite::Error::Http(response) => self.denied(response.status().as_u16()),
            other => self.link.unreachable(&other),
        })?;
        Ok(line)
    }

    /// Returns once the operation has ended. Ctrl-C cancels it where it can be.
    async fn follow(&self, events: &mut Line, id: &str) -> Result<Value> {
        let mut heard = Instant::now();
        loop {
            if let Err(stop) = interrupt::check() {
                // Not every operation can be: what it makes is undone by whoever asked for it.
                let _ = self.request(Method::DELETE, &format!("/1.0/operations/{id}")).send().await;
                self.settled(id).await;
                return Err(stop);
            }
            let message = match tokio::time::timeout(GLANCE, events.next()).await {
                Err(_) if heard.elapsed() < SILENCE => continue,
                Ok(Some(Ok(message))) if heard.elapsed() < SILENCE => message,
                // The line is dead, or may be.
                _ => match self.recover(id).await? {
                    Stands::Ended(said) => return Ok(said),
                    Stands::GoesOn(line) => {
                        (*events, heard) = (*line, Instant::now());
                        continue;
                    }
                },
            };
            let Message::Text(text) = message else { continue };
            let event: Value = serde_json::from_str(text.as_str()).context(|| "reading an event".into())?;
            let operation = &event["metadata"];
            if operation["id"] != id {
                continue;
            }
            heard = Instant::now();
            if operation["status_code"].as_u64() >= Some(SUCCESS) {
                return self.ended(operation).await;
            }
        }
    }

    /// How an operation stands of which nothing is heard any more. A daemon that went away is given time to come back.
    async fn recover(&self, id: &str) -> Result<Stands> {
        let began = Instant::now();
        loop {
            // Listening first, so that no word is missed.
            let stands = async {
                let line = self.events().await?;
                Ok::<_, Error>((line, self.plain(&format!("/1.0/operations/{id}")).await?))
            };
            match stands.await {
                Ok((_, state)) if state["status_code"].as_u64() >= Some(SUCCESS) => {
                    return self.ended(&state).await.map(Stands::Ended);
                }
                Ok((line, _)) => return Ok(Stands::GoesOn(Box::new(line))),
                // Operations are not kept: those of before a restart are unknown after it.
                Err(error) if error.kind() == Kind::NotFound => {
                    return Err(Error::unavailable("the daemon was restarted in the midst of this").hint("try again"));
                }
                Err(error) if error.kind() == Kind::Refused => return Err(error),
                Err(error) if began.elapsed() > RETURN => {
                    return Err(Error::unavailable("the daemon went away in the midst of this").because(error));
                }
                Err(_) => {}
            }
            interrupt::check()?;
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Waits a moment for a cancelled operation to end: what it left can be removed then.
    async fn settled(&self, id: &str) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            let Ok(state) = self.plain(&format!("/1.0/operations/{id}")).await else { return };
            if state["status_code"].as_u64() >= Some(SUCCESS) {
                return;
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// What is at `path`, also after Ctrl-C.
    async fn plain(&self, path: &str) -> Result<Value> {
        let request = self.request(Method::GET, path).timeout(ANSWER);
        let response = request.send().await.map_err(|error| self.away(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let bytes = response.bytes().await.map_err(|error| self.away(&error))?;
        let mut said: Value = serde_json::from_slice(&bytes).context(|| "reading the daemon's answer".into())?;
        Ok(said["metadata"].take())
    }

    fn away(&self, error: &reqwest::Error) -> Error {
        self.link.unreachable(error)
    }

    async fn ended(&self, operation: &Value) -> Result<Value> {
        if operation["status_code"].as_u64() == Some(SUCCESS) {
            return Ok(operation["metadata"].clone());
        }
        let words = operation["err"].as_str().unwrap_or_default();
        if is_absent(words) {
            return Err(self.absent(words).await);
        }
        Err(of_words(words, Error::failed("the daemon could not do it")).because(words.to_owned()))
    }

    async fn refused(&self, response: reqwest::Response) -> Error {
        let status = response.status();
        let said: Value = match response.bytes().await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => json!({}),
        };
        match said["error"].as_str() {
            Some(words) if is_absent(words) => self.absent(words).await,
            _ => self.spoken(&said, status),
        }
    }

    fn spoken(&self, said: &Value, status: StatusCode) -> Error {
        let words = said["error"].as_str().unwrap_or("the daemon gave no reason").to_owned();
        let error = match status {
            StatusCode::NOT_FOUND => Error::not_found("the daemon has no such thing"),
            StatusCode::CONFLICT => Error::new(Kind::Exists, "the daemon has this already"),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => self.denied(status.as_u16()),
            StatusCode::SERVICE_UNAVAILABLE => Error::unavailable("the daemon cannot do this now"),
            _ => of_words(&words, Error::failed("the daemon refused this")),
        };
        error.because(words)
    }

    fn denied(&self, status: u16) -> Error {
        Error::unavailable(format!("the daemon does not let this user in (HTTP {status})")).hint(self.link.entry())
    }

    /// Which members of the daemon's cluster do not answer: it says only that one does not. It learns that from those
    /// that are asked through it, and notes it by itself some twenty seconds later.
    async fn absent(&self, words: &str) -> Error {
        let ask = async |path: String| {
            let response = self.request(Method::GET, &path).timeout(ANSWER).send().await.ok()?;
            let status = response.status();
            let said: Value = serde_json::from_slice(&response.bytes().await.ok()?).ok()?;
            Some((status, said["metadata"].clone()))
        };
        let members = ask("/1.0/cluster/members?recursion=1".into()).await.map(|(_, members)| members);
        let mut down = Vec::new();
        for member in members.as_ref().and_then(Value::as_array).into_iter().flatten() {
            let Some(name) = member["server_name"].as_str().and_then(|name| name.parse::<BackendName>().ok()) else {
                continue;
            };
            let state = ask(format!("/1.0/cluster/members/{name}/state")).await;
            // An older daemon has no such thing, and says nothing of it.
            let silent = !state.is_some_and(|(status, _)| status.is_success() || status == StatusCode::NOT_FOUND);
            if silent || member["status"] == "Offline" {
                down.push(format!("'{name}'"));
            }
        }
        let error = match down.as_slice() {
            [] => return Error::unavailable("the daemon cannot do this now").because(words.to_owned()),
            [one] => Error::unavailable(format!("the member {one} of the cluster does not answer")),
            more => Error::unavailable(format!("the members {} of the cluster do not answer", more.join(", "))),
        };
        error.because(words.to_owned()).hint("'incus cluster list' shows how its members stand")
    }
}

/// How an operation stands of which nothing was heard.
enum Stands {
    /// It has ended well, with this.
    Ended(Value),
    /// Word of it will come here.
    GoesOn(Box<Line>),
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("link", &self.link.to_string()).finish_non_exhaustive()
    }
}

fn id_of(operation: &Value) -> Result<&str> {
    operation["id"].as_str().ok_or_else(|| Error::failed("an operation of the daemon's has no id"))
}

/// Gives up on Ctrl-C.
async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(GLANCE, &mut work).await {
            Ok(done) => return done,
            Err(_) => interrupt::check()?,
        }
    }
}

fn is_absent(words: &str) -> bool {
    ABSENT.iter().any(|known| words.contains(known))
}

/// The daemon's operations and older requests say only in words what was wrong.
fn of_words(words: &str, error: Error) -> Error {
    match words {
        words if words.contains("already exists") || words.contains("already in use") => error.with_kind(Kind::Exists),
        words if words.contains("not found") => error.with_kind(Kind::NotFound),
        _ => error,
    }
}
