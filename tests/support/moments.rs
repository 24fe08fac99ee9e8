//! SIGKILL at random moments.

use std::process::{Command, Stdio};
use std::time::Duration;

/// Random moments; a failure names the seed.
pub struct Moments(u32);

impl Moments {
    pub fn new() -> Self {
        Moments(std::process::id().wrapping_mul(2_654_435_761) | 1)
    }

    pub fn next(&mut self, up_to: Duration) -> (u32, Duration) {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0, up_to.mul_f64(f64::from(self.0 >> 8) / f64::from(1 << 24)))
    }
}

/// Runs a command and kills it after a while. Returns whether it was still at work.
pub fn killed_after(delay: Duration, command: &mut Command) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    let hit = child.try_wait().unwrap().is_none();
    super::end(&mut child);
    hit
}
