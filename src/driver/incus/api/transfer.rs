//! Files of an instance over the daemon's API, whether it runs or not
//! (Incus documentation, "Instances: files").

use std::io::Read;

use reqwest::header::{CONTENT_LENGTH, HeaderMap, LAST_MODIFIED};
use reqwest::{Method, Response};
use serde_json::Value;

use super::{Answer, Api, id_of, interruptible};
use crate::base::{Context as _, Error, Kind, Result, interrupt};

/// What is at a path.
#[derive(Debug)]
pub(in super::super) enum There<'a> {
    /// A file of so many bytes, and them.
    File(u64, Body<'a>),
    /// A folder, and the names in it.
    Folder(Vec<String>),
    /// A link, and where it leads.
    Link(String),
}

/// What an answer goes on with, read as it comes.
#[derive(Debug)]
pub(in super::super) struct Body<'a> {
    api: &'a Api,
    response: Response,
    piece: bytes::Bytes,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            let next = self.api.wait(interruptible(async {
                self.response.chunk().await.context(|| "reading what the daemon sends".into())
            }));
            match next.map_err(std::io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// What is written into an instance.
#[derive(Debug)]
pub(in super::super) enum Written<'a> {
    Folder,
    File(std::fs::File),
    Link(&'a str),
}

fn files(instance: &str, path: &str) -> String {
    format!("/1.0/instances/{instance}/files?path={}", escaped(path))
}

/// A path for a URL's query (RFC 3986): all but what is never special.
pub(in super::super) fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let either = [format!("x-incus-{name}"), format!("x-lxd-{name}")];
    either.iter().find_map(|name| headers.get(name)).and_then(|value| value.to_str().ok())
}

impl Api {
    /// What is at a path of an instance, with its mode and when it was changed; `None` when nothing is.
    ///
    /// # Errors
    /// What the daemon said.
    pub(in super::super) fn file(&self, instance: &str, path: &str) -> Result<Option<(There<'_>, u32, u64)>> {
        let request = self.request(Method::GET, &files(instance, path));
        let response = match self.wait(self.answered(request)) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            other => other?,
        };
        let headers = response.headers();
        let mode = header(headers, "mode").and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o644);
        let modified = headers.get(LAST_MODIFIED).and_then(|value| value.to_str().ok());
        let modified = header(headers, "modified").or(modified);
        let mtime = modified.and_then(seconds).unwrap_or(0);
        let what = header(headers, "type").unwrap_or("file").to_owned();
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = Body { api: self, response, piece: bytes::Bytes::new() };
        let mut text = || {
            let mut text = String::new();
            let read = body.by_ref().take(64 << 20).read_to_string(&mut text);
            read.context(|| "reading the daemon's answer".into()).map(|_| text)
        };
        let there = match what.as_str() {
            "directory" => There::Folder(names(&text()?)?),
            "symlink" => There::Link(text()?.trim_end_matches('\n').to_owned()),
            _ => match length {
                Some(length) => There::File(length, body),
                None => return Err(Error::failed("the daemon does not say how large a file is")),
            },
        };
        Ok(Some((there, mode, mtime)))
    }

    /// Writes something into an instance, as root's. A file that is there is replaced.
    ///
    /// # Errors
    /// What the daemon said.
    pub(in super::super) fn lay(&self, instance: &str, path: &str, mode: u32, what: Written<'_>) -> Result<()> {
        let kind = match what {
            Written::Folder => "directory",
            Written::File(_) => "file",
            Written::Link(_) => "symlink",
        };
        let mode = format!("{mode:04o}");
        let mut request = self.request(Method::POST, &files(instance, path));
        for (name, value) in [("type", kind), ("mode", &mode), ("uid", "0"), ("gid", "0"), ("write", "overwrite")] {
            request = request.header(format!("x-incus-{name}"), value).header(format!("x-lxd-{name}"), value);
        }
        self.wait(async {
            let request = match what {
                Written::Folder => request,
                Written::Link(target) => request.body(target.to_owned()),
                Written::File(file) => {
                    let length = file.metadata().context(|| "reading a file".into())?.len();
                    request.header(CONTENT_LENGTH, length).body(tokio::fs::File::from_std(file))
                }
            };
            self.ask(request).await.map(drop)
        })
    }

    /// Writes what is at `path` into `to`.
    ///
    /// # Errors
    /// What the daemon said; when `to` cannot be written.
    pub(in super::super) fn download(&self, path: &str, to: &mut dyn std::io::Write) -> Result<()> {
        let response = self.wait(self.answered(self.request(Method::GET, path)))?;
        let mut body = Body { api: self, response, piece: bytes::Bytes::new() };
        let copied = std::io::copy(&mut body, to);
        interrupt::check()?;
        copied.map(drop).context(|| "passing on what the daemon sends".into())
    }

    /// Has the daemon make an instance of a backup: the file from where it stands.
    ///
    /// # Errors
    /// What the daemon said.
    pub(in super::super) fn upload_instance(&self, name: &str, pool: Option<&str>, from: std::fs::File) -> Result<()> {
        self.wait(async {
            let mut events = self.events().await?;
            let mut request = self.request(Method::POST, "/1.0/instances");
            request = request.header("content-type", "application/octet-stream");
            request = request.header("x-incus-name", name).header("x-lxd-name", name);
            if let Some(pool) = pool {
                request = request.header("x-incus-pool", pool).header("x-lxd-pool", pool);
            }
            match self.ask(request.body(tokio::fs::File::from_std(from))).await? {
                Answer::Done(_) => Ok(()),
                Answer::Begun(operation) => self.follow(&mut events, id_of(&operation)?).await.map(drop),
            }
        })
    }

    /// Sends a request and hands out the answer to be read.
    async fn answered(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        let response = interruptible(async { request.send().await.map_err(|error| self.away(&error)) }).await?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(self.refused(response).await),
        }
    }
}

/// The daemon's list of a folder.
fn names(text: &str) -> Result<Vec<String>> {
    let said: Value = serde_json::from_str(text).context(|| "reading the daemon's answer".into())?;
    let names = said["metadata"].as_array().into_iter().flatten().filter_map(Value::as_str);
    // They come from the guest.
    let plain = |name: &&str| !name.is_empty() && !name.contains(['/', '\0']) && !matches!(*name, "." | "..");
    Ok(names.filter(plain).map(str::to_owned).collect())
}

/// A time as HTTP or Go write it.
fn seconds(text: &str) -> Option<u64> {
    let rfc = jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp());
    // 2006-01-02 15:04:05.999 +0000 UTC
    let go = || {
        let mut words = text.split(' ');
        let (date, time, zone) = (words.next()?, words.next()?, words.next()?);
        format!("{date}T{time}{zone}").parse::<jiff::Timestamp>().ok()
    };
    u64::try_from(rfc.or_else(go)?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_daemons_and_guests_say_is_read() {
        assert_eq!(seconds("Wed, 01 Jan 2025 00:00:01 GMT"), Some(1_735_689_601));
        assert_eq!(seconds("2025-01-01 00:00:01.5 +0000 UTC"), Some(1_735_689_601));
        assert_eq!(seconds("yesterday"), None);
        assert_eq!(escaped("/a b/c&d=\u{e4}%"), "/a%20b/c%26d%3D%C3%A4%25");
        assert_eq!(names(r#"{"metadata": ["a", "..", "b/c", ".", ""]}"#).unwrap(), ["a"]);
    }
}
