//! The one error type: a kind that decides the exit code, a message, hints,
//! and the error beneath it.
//!
//! One struct instead of an enum a part: callers branch on [`Kind`], people
//! read the message, and a new cause needs no new variant.

use std::fmt;

/// What went wrong, as far as a caller or a script can act on it.
///
/// The order is that of the exit codes in `docs/exit-codes.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Anything that no other kind names. Exit 1.
    Failed,
    /// The name is taken. Exit 1.
    Exists,
    /// The driver cannot do this at all. Exit 1.
    Unsupported,
    /// The request itself is wrong. Exit 2.
    Usage,
    /// No such image, guest, source or key. Exit 3.
    NotFound,
    /// A deadline passed. Exit 4.
    TimedOut,
    /// Verification refused: signature, size, hash, rollback, hostile image. Exit 5.
    Refused,
    /// The backend (QEMU, a daemon, KVM) cannot be used. Exit 6.
    Unavailable,
    /// Ctrl-C or SIGTERM. Exit 130.
    Interrupted,
}

impl Kind {
    /// The process exit code of this kind.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed | Kind::Exists | Kind::Unsupported => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::TimedOut => 4,
            Kind::Refused => 5,
            Kind::Unavailable => 6,
            Kind::Interrupted => 130,
        }
    }
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    hints: Vec<String>,
    source: Option<Source>,
}

/// An error: kind, one lower-case message without a full stop, hints, source.
///
/// `Display` is the message alone; it never repeats the source.
#[derive(Debug)]
pub struct Error(Box<Inner>);

impl Error {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), hints: Vec::new(), source: None }))
    }

    /// Shorthand for [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Shorthand for [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Shorthand for [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Shorthand for [`Kind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Shorthand for [`Kind::TimedOut`].
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(Kind::TimedOut, message)
    }

    /// Shorthand for [`Kind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// Adds one piece of advice: what the user can type or change.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(hint.into());
        self
    }

    /// Sets the error beneath this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Every hint of this error and of the virga errors beneath it, outermost first.
    #[must_use]
    pub fn hints(&self) -> Vec<&str> {
        let mut hints: Vec<&str> = self.0.hints.iter().map(String::as_str).collect();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            if let Some(ours) = error.downcast_ref::<Error>() {
                hints.extend(ours.0.hints.iter().map(String::as_str));
            }
            next = error.source();
        }
        hints
    }

    /// The messages of the errors beneath, outermost first, each once.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let text = error.to_string();
            // Libraries like to repeat their source in their own text.
            if causes.last() != Some(&text) && !self.0.message.ends_with(&text) {
                causes.push(text);
            }
            next = error.source();
        }
        causes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

/// Puts a sentence about what was being done over an error.
pub trait Context<T> {
    /// Wraps the error under `message`. A virga error keeps its kind; others become [`Kind::Failed`].
    ///
    /// # Errors
    /// The wrapped error.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let kind = (&error as &dyn std::error::Error).downcast_ref::<Error>().map_or(Kind::Failed, Error::kind);
            Error::new(kind, message()).because(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_kind_and_hints_come_along() {
        let inner: Result<()> = Err(Error::refused("bad signature").hint("try another keyring"));
        let outer = inner.context(|| "reading the index".into()).unwrap_err();
        assert_eq!(outer.kind(), Kind::Refused);
        assert_eq!(outer.to_string(), "reading the index");
        assert_eq!(outer.causes(), ["bad signature"]);
        assert_eq!(outer.hints(), ["try another keyring"]);
    }

    #[test]
    fn a_cause_already_in_the_message_is_not_repeated() {
        let io = std::io::Error::other("no space");
        let error = Error::failed("writing x: no space").because(io);
        assert!(error.causes().is_empty());
    }
}
