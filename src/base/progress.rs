//! How long work reports to whoever watches, without knowing the terminal.

/// Receives what an operation has to say. Implementations must not block.
pub trait Reporter: Send + Sync {
    /// One line of talk: a step taken, a fallback and its reason.
    fn note(&self, text: &str);

    /// Something the user should know although the work goes on.
    fn warn(&self, text: &str);

    /// Begins showing a transfer; `total` in bytes when it is known.
    fn transfer(&self, label: &str, total: Option<u64>) -> Box<dyn Transfer>;

    /// Begins showing a wait, with its current stage; ends when dropped.
    fn wait(&self, label: &str) -> Box<dyn Stage>;
}

/// One transfer being shown; dropping it ends the display.
pub trait Transfer: Send + Sync {
    /// `bytes` have arrived in all (bytes found on disk included).
    fn at(&self, bytes: u64);
}

/// One wait being shown; dropping it ends the display.
pub trait Stage: Send + Sync {
    /// What is being waited for now.
    fn stage(&self, text: &str);
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Reporter for Silent {
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn transfer(&self, _: &str, _: Option<u64>) -> Box<dyn Transfer> {
        Box::new(Silent)
    }
    fn wait(&self, _: &str) -> Box<dyn Stage> {
        Box::new(Silent)
    }
}

impl Transfer for Silent {
    fn at(&self, _: u64) {}
}

impl Stage for Silent {
    fn stage(&self, _: &str) {}
}
