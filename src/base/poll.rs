//! Waiting: deadlines and bounded polling. The only place that sleeps.
#![allow(clippy::disallowed_methods, reason = "this is the place that the rule sends others to")]

use std::time::{Duration, Instant};

use super::{Result, interrupt};

/// A stopwatch: how long each stage of some work took.
#[derive(Clone, Debug)]
pub struct Laps {
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// Begins the first stage.
    #[must_use]
    pub fn begin() -> Self {
        Laps { last: Instant::now(), laps: Vec::new() }
    }

    /// Ends the stage that is called so, and begins the next.
    pub fn lap(&mut self, stage: &'static str) {
        self.laps.push((stage, self.last.elapsed()));
        self.last = Instant::now();
    }

    /// The stages in their order.
    #[must_use]
    pub fn stages(self) -> Vec<(&'static str, Duration)> {
        self.laps
    }
}

/// A moment after which waiting is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Instant,
    limit: Duration,
    #[cfg(test)]
    called: Option<&'static std::sync::atomic::AtomicBool>,
}

impl Deadline {
    /// `limit` from now.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Deadline {
            start: Instant::now(),
            limit,
            #[cfg(test)]
            called: None,
        }
    }

    /// One that has passed when the test raises the flag: after an event, not after a time.
    #[cfg(test)]
    pub(crate) fn called_by(flag: &'static std::sync::atomic::AtomicBool) -> Self {
        Deadline { called: Some(flag), ..Deadline::after(LONG) }
    }

    /// Time since it was set.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Time left, zero when it has passed.
    #[must_use]
    pub fn left(&self) -> Duration {
        #[cfg(test)]
        if self.called.is_some_and(|flag| flag.load(std::sync::atomic::Ordering::SeqCst)) {
            return Duration::ZERO;
        }
        self.limit.saturating_sub(self.elapsed())
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }

    /// The whole span that was set.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

/// A limit on silence, not on duration: for work whose length depends on how much there is to do.
#[derive(Clone, Debug)]
pub struct Silence<T> {
    limit: Duration,
    since: Instant,
    looked: Instant,
    at: Option<T>,
}

impl<T: PartialEq> Silence<T> {
    /// Begins now.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Silence { limit, since: Instant::now(), looked: Instant::now(), at: None }
    }

    /// Takes note of how far the work is, now and then: to look may cost something. Returns whether it has been there
    /// for the whole limit.
    pub fn lasts(&mut self, at: impl FnOnce() -> T) -> bool {
        const LOOK: Duration = Duration::from_millis(500);
        if self.at.is_some() && self.looked.elapsed() < LOOK.min(self.limit / 2) {
            return false;
        }
        self.looked = Instant::now();
        let at = Some(at());
        if self.at == at {
            return self.since.elapsed() >= self.limit;
        }
        (self.at, self.since) = (at, self.looked);
        false
    }
}

/// So long that only a fault takes it: the limit of a test for what ends by itself, however slow the machine is.
#[cfg(test)]
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// Waits in a test until `holds`; that it never does is the test's failure, which says `what` was waited for.
#[cfg(test)]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Deadline::after(LONG);
    while !holds() {
        assert!(!begun.passed(), "{what} did not come within {LONG:?}");
        sleep(Duration::from_millis(2));
    }
}

/// Does nothing for this long, whatever comes.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// Calls `probe` at once and then every `step` until it returns `Some`;
/// `None` when the deadline passed. Ends on Ctrl-C within `step`.
///
/// # Errors
/// What `probe` returns, and [`super::Kind::Interrupted`].
pub fn until<T>(
    deadline: &Deadline,
    step: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    // After the probe: what is to be had at once is had by clean-up too, which runs because of Ctrl-C.
    to_the_end(deadline, step, || match probe()? {
        None => interrupt::check().map(|()| None),
        found => Ok(found),
    })
}

/// As [`until`], whatever was interrupted: for what must not be left half-done.
///
/// # Errors
/// What `probe` returns.
pub fn to_the_end<T>(
    deadline: &Deadline,
    step: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    loop {
        if let Some(found) = probe()? {
            return Ok(Some(found));
        }
        if deadline.passed() {
            return Ok(None);
        }
        std::thread::sleep(step.min(deadline.left()));
    }
}
