//! Undo: every step of a many-step operation pushes how to take it back;
//! leaving without [`Undo::commit`] runs them backwards.

use super::{Result, interrupt};

type Step = (String, Box<dyn FnOnce() -> Result<()> + Send>);

/// A stack of undo steps, run in reverse when dropped uncommitted: on an
/// error, on Ctrl-C, on a panic.
#[derive(Default)]
pub struct Undo {
    steps: Vec<Step>,
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|(what, _)| what)).finish()
    }
}

impl Undo {
    /// An empty stack.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers how to take the last step back. `what` is for the log.
    pub fn push(&mut self, what: impl Into<String>, step: impl FnOnce() -> Result<()> + Send + 'static) {
        self.steps.push((what.into(), Box::new(step)));
    }

    /// All went well: nothing will be undone.
    pub fn commit(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some((what, step)) = self.steps.pop() {
            // One failing step must not keep the others from running.
            match interrupt::shielded(step) {
                Ok(()) => tracing::debug!(what, "undone"),
                Err(error) => tracing::warn!(what, %error, "undoing failed"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn runs_backwards_unless_committed() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        for commit in [false, true] {
            let mut undo = Undo::new();
            for n in [1, 2, 3] {
                let seen = Arc::clone(&seen);
                undo.push(format!("step {n}"), move || {
                    seen.lock().unwrap().push(n);
                    Ok(())
                });
            }
            if commit {
                undo.commit();
            }
        }
        assert_eq!(*seen.lock().unwrap(), [3, 2, 1]);
    }
}
