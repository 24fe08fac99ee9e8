//! What is tried again, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::{Shared, Stop};
use crate::base::{Error, Kind, Result};

/// Longest wait that a server may ask for.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Longest wait between two tries when the server asks for none.
const DELAY_MAX: Duration = Duration::from_secs(15);
/// New bytes that make an attempt a fruitful one.
const FRUITFUL: u64 = 1 << 20;

/// Why one attempt failed. Transient errors have no source: all is in their message.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Error,
    pub transient: bool,
    /// The wait that the server asked for.
    pub wait: Option<Duration>,
}

impl Failure {
    /// One that may be gone at the next try.
    pub fn transient(error: Error) -> Self {
        Failure { error, transient: true, wait: None }
    }
}

impl From<Error> for Failure {
    /// One that another try would not mend.
    fn from(error: Error) -> Self {
        Failure { error, transient: false, wait: None }
    }
}

/// The retries that all transfers of a fetcher have together.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU32,
    most: u32,
}

impl Budget {
    pub fn new(most: u32) -> Self {
        Budget { left: AtomicU32::new(most), most }
    }

    /// Takes one; `false` when there is none.
    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Gives one back: something succeeded.
    pub fn refund(&self) {
        // An error says that nothing is missing.
        let _ =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left < self.most).then(|| left + 1));
    }
}

/// Counts the tries of one transfer.
pub(super) struct Retries {
    budget: Arc<Budget>,
    delays: ExponentialBuilder,
    left: <ExponentialBuilder as backon::BackoffBuilder>::Backoff,
    tries: u32,
    furthest: u64,
}

impl Retries {
    pub fn new(shared: &Shared) -> Self {
        let settings = &shared.settings;
        let delays = ExponentialBuilder::new()
            .with_min_delay(settings.first_delay)
            .with_max_delay(DELAY_MAX)
            .with_max_times(settings.retries as usize)
            .with_jitter();
        Retries { budget: Arc::clone(&shared.budget), delays, left: delays.build(), tries: 0, furthest: 0 }
    }

    /// Tells how far the transfer is. Only bytes never reached before count, so
    /// that a server that breaks off each time at one place is given up.
    pub fn reached(&mut self, at: u64) {
        if at >= self.furthest.saturating_add(FRUITFUL) {
            self.furthest = at;
            self.tries = 0;
            self.left = self.delays.build();
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself when another try would not help or none is left; [`Kind::Interrupted`].
    pub async fn pause(&mut self, failure: Failure, stop: Stop) -> Result<()> {
        self.tries += 1;
        if !failure.transient {
            return Err(failure.error);
        }
        let Some(delay) = self.left.next().filter(|_| self.budget.take()) else {
            return Err(given_up(&failure.error, self.tries));
        };
        let delay = failure.wait.map_or(delay, |asked| asked.min(RETRY_AFTER_MAX).max(delay));
        tracing::info!(error = %failure.error, ?delay, "trying again");
        stop.guard(tokio::time::sleep(delay)).await
    }
}

fn given_up(error: &Error, tries: u32) -> Error {
    let message = if tries > 1 { format!("{error} (tried {tries} times)") } else { error.to_string() };
    error.hints().into_iter().fold(Error::new(error.kind(), message), Error::hint)
}

/// Sees to it that a server does not trickle for ever: `read_timeout` alone
/// is content with one byte now and then.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Bytes that a second must bring on average.
    const FLOOR: u64 = 1 << 10;

    pub fn new(window: Duration) -> Self {
        Self::begun(window, Instant::now())
    }

    pub(super) fn begun(window: Duration, now: Instant) -> Self {
        Pace { window, since: now, bytes: 0 }
    }

    /// Counts `bytes` that have come; `false` when it goes too slowly.
    pub fn keeps_up(&mut self, bytes: usize) -> bool {
        self.keeps_up_at(bytes, Instant::now())
    }

    pub(super) fn keeps_up_at(&mut self, bytes: usize, now: Instant) -> bool {
        self.bytes += bytes as u64;
        if now.duration_since(self.since) < self.window {
            return true;
        }
        let least = u128::from(Self::FLOOR) * self.window.as_millis() / 1000;
        let enough = u128::from(self.bytes) >= least;
        (self.since, self.bytes) = (now, 0);
        enough
    }
}

/// The error of a server that went silent or trickles.
pub(super) fn stalled(shown: &str, window: Duration) -> Failure {
    Failure::transient(
        Error::new(Kind::TimedOut, format!("{shown}: the server sent next to nothing for {window:?}"))
            .hint("the line or the server is overloaded: try again later; the download continues where it stopped"),
    )
}
