//! What runs a guest's instructions on this machine.

use super::kvm;
use crate::base::layout::RuntimeFiles;
use crate::base::plan::Accel;
use crate::base::{Arch, Error, GuestPlan, Result};

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

/// Settles a plan's `auto` by how KVM stands; the second value says why it fell back. Foreign guests are emulated.
///
/// # Errors
/// [`Kind::Unavailable`] when KVM is demanded and cannot be used.
pub(super) fn settle(plan: &GuestPlan) -> Result<(Accelerator, Option<String>)> {
    let (accel, arch) = (plan.accel, plan.arch);
    if accel == Accel::Kvm && arch != Arch::host() {
        return Err(Error::unavailable(format!("KVM does not run {arch} guests on this machine"))
            .hint("guests that are made with '--accel tcg' are emulated"));
    }
    if accel == Accel::Tcg || arch != Arch::host() {
        return Ok((Accelerator::Tcg, None));
    }
    let found = kvm::recall(&RuntimeFiles::new(&plan.runtime).kvm())?;
    decide(accel, &found)
}

pub(super) fn decide(accel: Accel, found: &kvm::Kvm) -> Result<(Accelerator, Option<String>)> {
    if accel == Accel::Tcg {
        return Ok((Accelerator::Tcg, None));
    }
    if found.usable() {
        return Ok((Accelerator::Kvm, None));
    }
    if accel == Accel::Auto {
        return Ok((Accelerator::Tcg, Some(format!("{}: using TCG", found.describe()))));
    }
    let error = Error::unavailable(found.describe());
    Err(match found.hint() {
        Some(hint) if hint.contains("--accel tcg") => error.hint(hint),
        Some(hint) => error.hint(hint).hint("guests that are made with '--accel tcg' do without it"),
        None => error,
    })
}
