//! Large items into a file: resumed where they stopped, verified while they come.

use std::io::SeekFrom;
use std::path::Path;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::download::Download;
use super::http::{redirected, refused, status_failure, transport_failure, validators};
use super::pipeline::Sink;
use super::retry::{Failure, Pace, Retries, stalled};
use super::{Fetcher, Shared, Target, Validators, blocking, local_size, small};
use crate::base::progress::Transfer;
use crate::base::{Digest, Error, Kind, Result, fs};

/// What an item must be, as its signed description says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Length in bytes.
    pub size: u64,
    /// Digest of its bytes.
    pub digest: Digest,
}

/// A verified item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// SHA-256 of the bytes, whatever digest was announced.
    pub sha256: Digest,
    /// How many bytes an earlier call had left and this one built upon.
    pub resumed_from: u64,
    /// Bytes of content that came from the server, repeats included.
    pub bytes_received: u64,
}

/// How an attempt without an error ended.
enum Step {
    Done,
    /// The server will not continue from here.
    StartOver(&'static str),
}

impl Fetcher {
    /// Fetches an item into the file `partial` and verifies it. On success the
    /// file holds exactly the announced bytes, not yet synced to the disk.
    ///
    /// `places` are tried in turn: any that has the announced bytes will do.
    /// What an earlier call, or a place that then failed, left in `partial` is
    /// continued from. A note is kept beside it in `<partial>.json`. The caller
    /// must be the only writer: hold a lock. `transfer` is told the bytes that are there, in all.
    ///
    /// After an error the partial stays to be continued from, except when the
    /// item was refused or nothing had come.
    ///
    /// # Errors
    /// Of the first place: [`Kind::Refused`] when size or digest are not as
    /// announced, or a redirect is forbidden; `NotFound` for 404 and 410;
    /// `TimedOut` for a silent server; else `Failed`: network, other answers, no
    /// space. At once: `Interrupted` on Ctrl-C, `Usage` for another scheme or no place at all.
    pub async fn item(
        &self,
        places: &[Url],
        want: &Expected,
        partial: &Path,
        transfer: &dyn Transfer,
    ) -> Result<Fetched> {
        let mut failed: Option<Error> = None;
        for url in places {
            match self.item_from(url, want, partial, transfer).await {
                Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Usage) => return Err(error),
                Err(error) => {
                    tracing::info!(%error, "this place does not have the item");
                    failed = Some(match failed {
                        Some(first) => first.hint(format!("elsewhere: {error}")),
                        None => error,
                    });
                }
                fetched => {
                    self.shared.budget.refund();
                    return fetched;
                }
            }
        }
        Err(failed.unwrap_or_else(|| Error::usage("nothing says where the item is")))
    }

    async fn item_from(&self, url: &Url, want: &Expected, partial: &Path, transfer: &dyn Transfer) -> Result<Fetched> {
        let target = Target::new(url)?;
        if want.size <= small::LIMIT && target.local.is_none() && !partial.exists() {
            return self.small_item(&target, want, partial, transfer).await;
        }
        let download = {
            let (path, want, stop) = (partial.to_owned(), want.clone(), self.shared.stop);
            blocking(move || Download::open(&path, &want, stop)).await?
        };
        let mut run = Run { fetcher: self, target: &target, want, transfer, download, resumed_from: 0, received: 0 };
        let fetched = run.verified().await;
        if let Err(error) = &fetched
            && (error.kind() == Kind::Refused || run.download.at() == 0)
            && let Err(error) = run.download.discard()
        {
            tracing::warn!(%error, "the partial download stays");
        }
        fetched
    }
}

/// One item under way.
struct Run<'a> {
    fetcher: &'a Fetcher,
    target: &'a Target,
    want: &'a Expected,
    transfer: &'a dyn Transfer,
    download: Download,
    resumed_from: u64,
    received: u64,
}

impl Run<'_> {
    async fn verified(&mut self) -> Result<Fetched> {
        self.resumed_from = self.download.at();
        self.transfer.at(self.download.at());
        let mut last_chance = false;
        loop {
            let joined = self.fill().await?;
            let (sha256, found) = self.download.digests();
            if found == self.want.digest {
                return Ok(Fetched { sha256, resumed_from: self.resumed_from, bytes_received: self.received });
            }
            if last_chance || !joined {
                return Err(wrong_digest(self.target, &self.want.digest, &found));
            }
            tracing::info!(url = self.target.shown, "the pieces do not add up: once more from the start");
            self.start_over()?;
            last_chance = true;
        }
    }

    /// Brings the file to its announced size, over as many attempts as that
    /// takes. Returns whether it was joined from several answers: then a
    /// wrong digest may be the fault of the join.
    async fn fill(&mut self) -> Result<bool> {
        let stop = self.fetcher.shared.stop;
        let mut retries = Retries::new(&self.fetcher.shared);
        let (mut ranges, mut joined) = (true, self.download.at() > 0);
        while !self.download.complete() {
            let step = match &self.target.local {
                Some(path) => self.copy(path).await,
                None => self.attempt(ranges).await,
            };
            match step {
                Ok(Step::Done) => {}
                Ok(Step::StartOver(reason)) => {
                    tracing::info!(url = self.target.shown, reason, "starting from zero");
                    ranges = false;
                }
                Err(failure) => {
                    joined = true;
                    retries.reached(self.download.at());
                    retries.pause(failure, stop).await?;
                }
            }
        }
        Ok(joined)
    }

    fn start_over(&mut self) -> Result<()> {
        if self.download.at() > 0 {
            self.download.restart()?;
        }
        self.resumed_from = 0;
        self.transfer.at(0);
        Ok(())
    }

    /// One request and its body.
    async fn attempt(&mut self, ranges: bool) -> Result<Step, Failure> {
        let (target, Shared { stop, settings, .. }) = (self.target, &*self.fetcher.shared);
        let mut request = self.fetcher.get(target)?.header(ACCEPT_ENCODING, "identity");
        let known = self.download.validators(target).cloned().unwrap_or_default();
        let asked = ranges && self.download.at() > 0;
        if asked {
            request = request.header(RANGE, format!("bytes={}-", self.download.at()));
            if let Some(validator) = if_range(&known) {
                request = request.header(IF_RANGE, validator);
            }
        }
        let sent = stop.guard(request.send()).await?;
        let response = sent.map_err(|error| transport_failure(target, settings, &error))?;
        let offered = validators(response.headers());
        match response.status() {
            StatusCode::PARTIAL_CONTENT if asked => {
                let headers = response.headers();
                if let Err(reason) = continues(headers, self.download.at(), self.want.size, &known, &offered) {
                    return Ok(Step::StartOver(reason));
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if asked => return Ok(Step::StartOver("416 Range Not Satisfiable")),
            StatusCode::OK => self.start_over()?,
            _ => return Err(status_failure(target, &response)),
        }
        let at = self.download.at();
        if let Some(length) = response.content_length().filter(|length| *length != self.want.size - at) {
            let what = format!("the server has {} bytes{}", at + length, redirected(target, &response));
            return Err(wrong_size(target, what, self.want).into());
        }
        if at == 0 {
            self.download.note(target, offered)?;
        }
        let sink = self.download.sink()?;
        let pumped = self.pump(response, &sink).await;
        self.download.absorb(sink).await?;
        pumped.map(|()| Step::Done)
    }

    /// Moves a body into the sink; never a byte more than announced.
    async fn pump(&mut self, mut response: Response, sink: &Sink) -> Result<(), Failure> {
        let (target, Shared { stop, settings, .. }) = (self.target, &*self.fetcher.shared);
        let mut pace = Pace::new(settings.stall_timeout);
        let mut at = self.download.at();
        loop {
            let read = stop.guard(response.chunk()).await?;
            let Some(chunk) = read.map_err(|error| transport_failure(target, settings, &error))? else {
                break;
            };
            let count = chunk.len();
            self.received += count as u64;
            at += count as u64;
            if at > self.want.size {
                return Err(wrong_size(target, "the body is longer".into(), self.want).into());
            }
            if !sink.send(chunk).await {
                // Writing failed; whoever ends the sink learns why.
                return Ok(());
            }
            self.transfer.at(at);
            if !pace.keeps_up(count) {
                return Err(stalled(&target.shown, settings.stall_timeout));
            }
        }
        if at < self.want.size {
            // Looks the same as a line that was cut when the server gave no length, so try again.
            let what = format!("the body ended after {at} bytes");
            return Err(Failure::transient(wrong_size(target, what, self.want)));
        }
        Ok(())
    }

    /// As [`attempt`](Self::attempt), from a local file.
    async fn copy(&mut self, path: &Path) -> Result<Step, Failure> {
        let size = local_size(self.target, path)?;
        if size != self.want.size {
            return Err(wrong_size(self.target, format!("the file has {size} bytes"), self.want).into());
        }
        self.download.note(self.target, Validators::default())?;
        let sink = self.download.sink()?;
        let copied = self.read(path, &sink).await;
        self.download.absorb(sink).await?;
        copied?;
        Ok(Step::Done)
    }

    async fn read(&mut self, path: &Path, sink: &Sink) -> Result<()> {
        let explain = |error| fs::explain(error, "reading", path);
        let mut at = self.download.at();
        let mut file = tokio::fs::File::open(path).await.map_err(explain)?;
        file.seek(SeekFrom::Start(at)).await.map_err(explain)?;
        let mut file = file.take(self.want.size - at);
        while at < self.want.size {
            let mut chunk = Vec::with_capacity(1 << 20);
            let count = self.fetcher.shared.stop.guard(file.read_buf(&mut chunk)).await?.map_err(explain)?;
            if count == 0 {
                return Err(wrong_size(self.target, format!("the file ended after {at} bytes"), self.want));
            }
            at += count as u64;
            self.received += count as u64;
            if !sink.send(chunk.into()).await {
                break;
            }
            self.transfer.at(at);
        }
        Ok(())
    }
}

/// The validator for `If-Range`: a strong entity tag, else the date; a weak
/// tag may not be used there (RFC 9110 section 13.1.5).
fn if_range(known: &Validators) -> Option<&String> {
    known.etag.as_ref().filter(|etag| !etag.starts_with("W/")).or(known.last_modified.as_ref())
}

/// Whether a 206 continues our bytes; else why not.
fn continues(
    headers: &HeaderMap,
    at: u64,
    size: u64,
    known: &Validators,
    offered: &Validators,
) -> Result<(), &'static str> {
    let range = headers.get(CONTENT_RANGE).and_then(|value| content_range(value.to_str().ok()?));
    match range {
        Some((start, end, total)) if start == at && end + 1 == size && total.is_none_or(|total| total == size) => {}
        _ => return Err("the server sent another range than asked for"),
    }
    // A server that ignores If-Range.
    match (&known.etag, &offered.etag) {
        (Some(known), Some(offered)) if known != offered => Err("the server has another file now"),
        _ => Ok(()),
    }
}

/// First byte, last byte and whole length of a `Content-Range` (RFC 9110 section 14.4).
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let end: u64 = end.parse().ok()?;
    (end < u64::MAX).then_some((start.parse().ok()?, end, total))
}

pub(super) fn wrong_size(target: &Target, what: String, want: &Expected) -> Error {
    refused(target, format!("{what}, announced are {}", want.size))
        .hint("the server may be in the middle of an update: try again later, or use another source")
}

pub(super) fn wrong_digest(target: &Target, announced: &Digest, found: &Digest) -> Error {
    refused(target, format!("the bytes are not what was announced: announced {announced}, received {found}"))
        .hint("the server may be in the middle of an update, or somebody altered the file: try again later, or use another source")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for bad in ["", "bytes */10", "bytes 5-9", "items 5-9/10", "bytes 5-/10", "bytes 0-18446744073709551615/*"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn if_range_takes_no_weak_tag() {
        let known = |etag: &str| Validators { etag: Some(etag.into()), last_modified: Some("date".into()) };
        assert_eq!(if_range(&known("\"a\"")).unwrap(), "\"a\"");
        assert_eq!(if_range(&known("W/\"a\"")).unwrap(), "date");
        assert_eq!(if_range(&Validators::default()), None);
    }
}
