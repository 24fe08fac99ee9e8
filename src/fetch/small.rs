//! Small items: into memory and then to the file in one go. Threads, notes and
//! resuming would cost more than fetching the whole again.

use std::path::Path;

use reqwest::StatusCode;
use reqwest::header::ACCEPT_ENCODING;

use super::http::{redirected, status_failure, transport_failure};
use super::item::{Expected, Fetched, wrong_digest, wrong_size};
use super::pipeline::Hashes;
use super::retry::{Failure, Pace, Retries, stalled};
use super::{Fetcher, Shared, Target};
use crate::base::progress::Transfer;
use crate::base::{Result, fs};

/// The longest item that is taken this way, in bytes.
pub(super) const LIMIT: u64 = 256 << 10;

impl Fetcher {
    /// As [`Fetcher::item`], from one server.
    pub(super) async fn small_item(
        &self,
        target: &Target,
        want: &Expected,
        partial: &Path,
        transfer: &dyn Transfer,
    ) -> Result<Fetched> {
        let mut retries = Retries::new(&self.shared);
        let bytes = loop {
            match self.small_attempt(target, want).await {
                Ok(bytes) => break bytes,
                Err(failure) => retries.pause(failure, self.shared.stop).await?,
            }
        };
        let mut hashes = Hashes::new(want.digest.algorithm());
        hashes.update(&bytes);
        let (sha256, found) = hashes.digests();
        if found != want.digest {
            return Err(wrong_digest(target, &want.digest, &found));
        }
        fs::write_new(partial, &bytes, 0o600)?;
        transfer.at(want.size);
        Ok(Fetched { sha256, resumed_from: 0, bytes_received: want.size })
    }

    async fn small_attempt(&self, target: &Target, want: &Expected) -> Result<Vec<u8>, Failure> {
        let Shared { stop, settings, .. } = &*self.shared;
        let request = self.get(target)?.header(ACCEPT_ENCODING, "identity");
        let sent = stop.guard(request.send()).await?;
        let mut response = sent.map_err(|error| transport_failure(target, settings, &error))?;
        if response.status() != StatusCode::OK {
            return Err(status_failure(target, &response));
        }
        if let Some(length) = response.content_length().filter(|length| *length != want.size) {
            let what = format!("the server has {length} bytes{}", redirected(target, &response));
            return Err(wrong_size(target, what, want).into());
        }
        let mut pace = Pace::new(settings.stall_timeout);
        let mut bytes = Vec::new();
        loop {
            let read = stop.guard(response.chunk()).await?;
            let Some(chunk) = read.map_err(|error| transport_failure(target, settings, &error))? else { break };
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > want.size {
                return Err(wrong_size(target, "the body is longer".into(), want).into());
            }
            if !pace.keeps_up(chunk.len()) {
                return Err(stalled(&target.shown, settings.stall_timeout));
            }
        }
        if (bytes.len() as u64) < want.size {
            // Looks the same as a line that was cut when the server gave no length, so try again.
            let what = format!("the body ended after {} bytes", bytes.len());
            return Err(Failure::transient(wrong_size(target, what, want)));
        }
        Ok(bytes)
    }
}
