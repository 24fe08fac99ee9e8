//! Small documents into memory, conditionally.

use bytes::Bytes;
use reqwest::header::{CACHE_CONTROL, CONTENT_ENCODING, IF_MODIFIED_SINCE, IF_NONE_MATCH};
use reqwest::{Response, StatusCode, Url};

use super::http::{redirected, refused, status_failure, transport_failure, validators};
use super::retry::{Failure, Pace, Retries, stalled};
use super::{Fetcher, Shared, Target, Validators, blocking, local_size};
use crate::base::{ByteSize, Result, fs};

/// What became of a request for a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// The state that the caller knows is the newest.
    NotModified,
    /// The document.
    Fresh {
        /// All of it.
        bytes: Bytes,
        /// What recognises this state the next time.
        validators: Validators,
    },
}

impl Fetcher {
    /// Fetches a document of at most `limit` bytes into memory; with `known`
    /// validators the server may answer that nothing changed. Tries again as
    /// the settings say. A `file` URL is read each time.
    ///
    /// # Errors
    /// [`Kind::Refused`](crate::base::Kind::Refused) for a longer document or a
    /// forbidden redirect, `NotFound` for 404 and 410, `TimedOut` for a silent
    /// server, `Interrupted` on Ctrl-C, `Usage` for another scheme, else `Failed`.
    pub async fn metadata(&self, url: &Url, known: Option<&Validators>, limit: u64) -> Result<Metadata> {
        let target = Target::new(url)?;
        if target.local.is_some() {
            return blocking(move || read_local(&target, limit)).await;
        }
        let mut retries = Retries::new(&self.shared);
        loop {
            match self.ask(&target, known, limit).await {
                Ok(answer) => {
                    self.shared.budget.refund();
                    return Ok(answer);
                }
                Err(failure) => retries.pause(failure, self.shared.stop).await?,
            }
        }
    }

    async fn ask(&self, target: &Target, known: Option<&Validators>, limit: u64) -> Result<Metadata, Failure> {
        // A cache on the way must ask the server: what it remembers may be what we doubt.
        let mut request = self.get(target)?.header(CACHE_CONTROL, "no-cache");
        if let Some(etag) = known.and_then(|known| known.etag.as_ref()) {
            request = request.header(IF_NONE_MATCH, etag);
        }
        if let Some(date) = known.and_then(|known| known.last_modified.as_ref()) {
            request = request.header(IF_MODIFIED_SINCE, date);
        }
        let Shared { stop, settings, .. } = &*self.shared;
        let sent = stop.guard(request.send()).await?;
        let response = sent.map_err(|error| transport_failure(target, settings, &error))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if known.is_some() => return Ok(Metadata::NotModified),
            _ => return Err(status_failure(target, &response)),
        }
        if let Some(coding) = response.headers().get(CONTENT_ENCODING).filter(|coding| *coding != "identity") {
            let what = format!("the server encodes the document ({coding:?}) though not asked to");
            return Err(refused(target, what).into());
        }
        let validators = validators(response.headers());
        Ok(Metadata::Fresh { bytes: self.collect(target, response, limit).await?, validators })
    }

    async fn collect(&self, target: &Target, mut response: Response, limit: u64) -> Result<Bytes, Failure> {
        let Shared { stop, settings, .. } = &*self.shared;
        let from = redirected(target, &response);
        let too_long = || refused(target, format!("longer than {}, the most that is taken{from}", ByteSize(limit)));
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long().into());
        }
        let mut pace = Pace::new(settings.stall_timeout);
        let mut bytes = Vec::new();
        loop {
            let read = stop.guard(response.chunk()).await?;
            let Some(chunk) = read.map_err(|error| transport_failure(target, settings, &error))? else {
                return Ok(bytes.into());
            };
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_long().into());
            }
            if !pace.keeps_up(chunk.len()) {
                return Err(stalled(&target.shown, settings.stall_timeout));
            }
            bytes.extend_from_slice(&chunk);
        }
    }
}

fn read_local(target: &Target, limit: u64) -> Result<Metadata> {
    let path = target.local.as_deref().unwrap_or(std::path::Path::new(""));
    if local_size(target, path)? > limit {
        return Err(refused(target, format!("longer than {}, the most that is taken", ByteSize(limit))));
    }
    Ok(Metadata::Fresh { bytes: fs::read(path, limit)?.into(), validators: Validators::default() })
}
