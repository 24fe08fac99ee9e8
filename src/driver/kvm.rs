//! Does KVM really run code, and at speed?
//!
//! Opening `/dev/kvm` proves little: on hosts whose KVM is a software one,
//! small programs run, and operating systems hang without a word. What tells
//! is speed: 10,000 rounds of `dec; jnz` take about 0.005 ms on hardware, and
//! some 10 ms where every instruction is emulated.
//!
//! A virtual processor that hangs in the kernel cannot be stopped from its own
//! process, so the measurement is made by a child with a time limit: this very
//! program, called with [`CHILD_ARGUMENT`] alone.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::cmd::Cmd;
use crate::base::{Error, Kind, Result, fs, poll};

/// The program whose first argument this is must return [`child_main`]'s exit
/// code and do nothing else: no settings, no logging, no state.
pub const CHILD_ARGUMENT: &str = "__kvm-probe";

/// The device that KVM is reached by.
const DEVICE: &str = "/dev/kvm";

/// A child that takes longer hangs: it has some milliseconds of work. A host that is drowning needs seconds for them, and
/// a guest that is then emulated for all its life is twenty times slower.
const LIMIT: Duration = Duration::from_secs(20);

/// Slower than this for [`ROUNDS`], code is emulated.
const SLOW_MICROS: u64 = 500;

/// About what hardware needs for [`ROUNDS`].
const HARDWARE_MICROS: u64 = 5;

/// Rounds of the measured loop.
const ROUNDS: u32 = 10_000;

/// How KVM stands on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "lowercase")]
pub enum Kvm {
    /// It runs code at speed.
    Fast {
        /// Time for the measured loop.
        micros: u64,
    },
    /// It runs code, far too slowly for an operating system.
    Emulated {
        /// Time for the measured loop.
        micros: u64,
    },
    /// There is none.
    Absent,
    /// It is there, and this user may not use it.
    Denied,
    /// It is there and does not work.
    Broken {
        /// What happened.
        reason: String,
    },
}

impl Kvm {
    /// Whether guests can run on it.
    #[must_use]
    pub fn usable(&self) -> bool {
        matches!(self, Kvm::Fast { .. })
    }

    /// One sentence without a full stop.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Kvm::Fast { .. } => "KVM runs code at full speed".into(),
            Kvm::Emulated { micros } => {
                format!("KVM is there but runs code {} times too slowly (emulated)", micros / HARDWARE_MICROS)
            }
            Kvm::Absent => format!("there is no KVM on this machine ({DEVICE} is missing)"),
            Kvm::Denied => format!("this user may not use KVM ({DEVICE}: permission denied)"),
            Kvm::Broken { reason } => format!("KVM is there but does not work: {reason}"),
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Kvm::Fast { .. } => None,
            Kvm::Emulated { .. } | Kvm::Broken { .. } => Some(
                "this machine is most likely a virtual one without nested virtualisation: make guests with '--accel tcg'",
            ),
            Kvm::Absent => Some(
                "switch on virtualisation in the firmware, or nested virtualisation if this is a virtual machine, and load kvm_intel or kvm_amd; guests that are made with '--accel tcg' do without",
            ),
            Kvm::Denied => Some("join the group that owns the device ('sudo usermod -aG kvm $USER') and log in again"),
        }
    }
}

/// Looks at KVM: takes as long as it takes to start a program, at most 20 s where it hangs.
///
/// # Errors
/// [`Kind::Interrupted`] only; whatever is wrong with KVM is the answer.
pub fn look() -> Result<Kvm> {
    match open() {
        Ok(_) => ask(Cmd::new("/proc/self/exe").arg(CHILD_ARGUMENT), LIMIT),
        Err(error) => Ok(unopened(&error)),
    }
}

fn open() -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// As [`look`], but how fast the very same device was since the host started is read from `memory`, where it was noted.
///
/// # Errors
/// As [`look`].
pub fn recall(memory: &Path) -> Result<Kvm> {
    let device = match open() {
        Ok(device) => device,
        Err(error) => return Ok(unopened(&error)),
    };
    let now = Place::of(&device);
    if let (Some(now), Ok(Some(noted))) = (&now, fs::read_json::<Noted>(memory))
        && noted.place == *now
    {
        return Ok(noted.found);
    }
    let found = look()?;
    // Who waited for one that hangs need not do so again before the host is another.
    let known = matches!(found, Kvm::Fast { .. } | Kvm::Emulated { .. }) || found == hangs(LIMIT);
    if let (Some(place), true) = (now, known) {
        // It is for speed alone.
        let noted = Noted { place, found: found.clone() };
        let _ = fs::create_private_dir(fs::folder_of(memory)).and_then(|()| fs::write_json(memory, &noted, 0o600));
    }
    Ok(found)
}

/// What was found, and of what.
#[derive(Serialize, Deserialize)]
struct Noted {
    place: Place,
    found: Kvm,
}

/// One device in one life of the host: a module that is loaded anew makes another.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Place {
    boot: String,
    inode: u64,
    changed: [i64; 2],
}

impl Place {
    fn of(device: &std::fs::File) -> Option<Self> {
        let boot = fs::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 128).ok()?;
        let meta = device.metadata().ok()?;
        let changed = [meta.ctime(), meta.ctime_nsec()];
        Some(Place { boot: boot.trim().to_owned(), inode: meta.ino(), changed })
    }
}

fn ask(child: Cmd, limit: Duration) -> Result<Kvm> {
    let broken = |reason: String| Kvm::Broken { reason };
    match child.timeout(limit).output() {
        Ok(output) => Ok(serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| broken(format!("the probe ended without an answer ({})", output.status)))),
        Err(error) if error.kind() == Kind::Interrupted => Err(error),
        Err(error) if error.kind() == Kind::TimedOut => Ok(hangs(limit)),
        Err(error) => Ok(broken(error.to_string())),
    }
}

fn hangs(limit: Duration) -> Kvm {
    Kvm::Broken { reason: format!("a small program did not end within {}", humantime::format_duration(limit)) }
}

/// What the child does: measures and writes the answer as one line of JSON on standard output.
#[must_use]
pub fn child_main() -> ExitCode {
    // Should the one who started it be killed, it does not stay in a machine that hangs.
    std::thread::spawn(|| {
        poll::sleep(2 * LIMIT);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    let answer = serde_json::to_string(&measure()).unwrap_or_default();
    match writeln!(std::io::stdout(), "{answer}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn unopened(error: &std::io::Error) -> Kvm {
    match error.kind() {
        std::io::ErrorKind::NotFound => Kvm::Absent,
        std::io::ErrorKind::PermissionDenied => Kvm::Denied,
        // ENODEV, ENXIO: a device node without a driver behind it.
        _ if matches!(error.raw_os_error(), Some(19 | 6)) => Kvm::Absent,
        _ => Kvm::Broken { reason: format!("opening {DEVICE}: {error}") },
    }
}

/// Measures in this process; may hang where KVM does.
fn measure() -> Kvm {
    // The best of some: a busy host takes the processor away now and then, and the way in and out costs something too.
    let mut best = Duration::MAX;
    for _ in 0..5 {
        match machine::run_loop(Path::new(DEVICE), ROUNDS) {
            Ok(time) => best = best.min(time),
            Err(error) => return Kvm::Broken { reason: with_cause(&error) },
        }
        if best < Duration::from_micros(SLOW_MICROS) {
            break;
        }
    }
    let micros = u64::try_from(best.as_micros()).unwrap_or(u64::MAX);
    if micros > SLOW_MICROS { Kvm::Emulated { micros } } else { Kvm::Fast { micros } }
}

fn with_cause(error: &Error) -> String {
    let causes = error.causes();
    std::iter::once(error.to_string()).chain(causes).collect::<Vec<_>>().join(": ")
}

#[cfg(not(target_arch = "x86_64"))]
mod machine {
    use super::*;

    pub(super) fn run_loop(_: &Path, _: u32) -> Result<Duration> {
        Err(Error::new(Kind::Unsupported, "it is measured on x86-64 only"))
    }
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use kvm_bindings::kvm_userspace_memory_region;
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

    use crate::base::{Context as _, Error, Result};

    /// Where the program stands in the small machine's memory.
    const START: u64 = 0x1000;

    /// The whole memory of the small machine.
    #[repr(C, align(4096))]
    struct Page([u8; 4096]);

    /// Runs `rounds` of `dec; jnz` in a machine of one page and returns how long it took.
    pub(super) fn run_loop(device: &Path, rounds: u32) -> Result<Duration> {
        let mut page = Box::new(Page([0; 4096]));
        // Real mode: mov ecx, rounds; again: dec ecx; jnz again; hlt
        page.0[..2].copy_from_slice(&[0x66, 0xb9]);
        page.0[2..6].copy_from_slice(&rounds.to_le_bytes());
        page.0[6..11].copy_from_slice(&[0x66, 0x49, 0x75, 0xfc, 0xf4]);

        let device = std::ffi::CString::new(device.as_os_str().as_encoded_bytes()).context(|| "naming KVM".into())?;
        let kvm = Kvm::new_with_path(&device).context(|| "opening KVM".into())?;
        // No interrupt controller in the kernel: HLT would sleep there for good.
        let vm = kvm.create_vm().context(|| "making a machine".into())?;
        // Old Intel processors need a place for a task segment to run real mode; others do not mind.
        let _ = vm.set_tss_address(0xfffb_d000);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: START,
            memory_size: size_of::<Page>() as u64,
            userspace_addr: std::ptr::from_mut::<Page>(&mut page) as u64,
        };
        // SAFETY: the region is exactly `page`: page-aligned, of that size, and
        // not looked at again. It is dropped after `vcpu` and `vm`, declared later,
        // so the machine cannot write to it once it is freed.
        unsafe { vm.set_user_memory_region(region) }.context(|| "giving the machine memory".into())?;
        let mut vcpu = vm.create_vcpu(0).context(|| "making a processor".into())?;
        point_at_start(&vcpu)?;
        let begin = Instant::now();
        match vcpu.run().context(|| "running code".into())? {
            VcpuExit::Hlt => Ok(begin.elapsed()),
            other => Err(Error::failed(format!("the processor stopped unexpectedly ({other:?})"))),
        }
    }

    fn point_at_start(vcpu: &VcpuFd) -> Result<()> {
        let mut segments = vcpu.get_sregs().context(|| "reading the processor".into())?;
        segments.cs.base = 0;
        segments.cs.selector = 0;
        vcpu.set_sregs(&segments).context(|| "setting the processor".into())?;
        let mut registers = vcpu.get_regs().context(|| "reading the processor".into())?;
        registers.rip = START;
        // Bit 1 is always set (Intel SDM volume 1, section 3.4.3).
        registers.rflags = 2;
        vcpu.set_regs(&registers).context(|| "setting the processor".into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::base::poll::LONG;

    #[test]
    fn measures_in_this_process() {
        // Not every machine has KVM; what it says must fit what the device says.
        let begin = Instant::now();
        let opened = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE);
        let found = measure();
        let took = begin.elapsed();
        std::io::stderr().write_all(format!("KVM here: {found:?} in {took:?}\n").as_bytes()).unwrap();
        match opened {
            Ok(_) => assert!(!matches!(found, Kvm::Absent | Kvm::Denied), "{found:?}"),
            Err(error) => assert!(!unopened(&error).usable() && !found.usable(), "{found:?}"),
        }
    }

    #[test]
    fn a_fast_loop_is_told_from_a_slow_one() {
        // The best of some: a busy host takes the processor away now and then, and a signal ends a run with an error.
        let best = |rounds| (0..10).filter_map(|_| machine::run_loop(Path::new(DEVICE), rounds).ok()).min();
        let Some(few) = best(1_000) else {
            // Where there is no KVM that works, there is nothing to measure, and that is what is found.
            std::io::stderr().write_all(b"no loop was run here\n").unwrap();
            return assert!(open().is_err() || matches!(measure(), Kvm::Broken { .. }));
        };
        // As long as the measured time grows with the rounds, the loop is really run. How many it takes to be seen
        // beside the way in and out differs by the thousand between hardware and emulation.
        let found = (4..=9).filter_map(|zeros| best(10_u32.pow(zeros))).find(|took| *took > few * 5);
        assert!(found.is_some(), "the time for a thousand million rounds is that for a thousand: {few:?}");
    }

    #[test]
    fn a_child_that_hangs_or_babbles_is_an_answer() {
        let limit = Duration::from_millis(100);
        let hung = ask(Cmd::new("sleep").arg("60"), limit).unwrap();
        assert!(matches!(&hung, Kvm::Broken { reason } if reason.contains("did not end")), "{hung:?}");
        for babble in ["running 0 tests", "", "{}"] {
            let broken = ask(Cmd::new("echo").arg(babble), LONG).unwrap();
            assert!(matches!(broken, Kvm::Broken { .. }), "{broken:?}");
        }
        let said = ask(Cmd::new("echo").arg(r#"{"kvm":"fast","micros":50}"#), LONG).unwrap();
        assert_eq!(said, Kvm::Fast { micros: 50 });
    }

    #[test]
    fn absent_and_denied_are_told_apart() {
        let of = |code| unopened(&std::io::Error::from_raw_os_error(code));
        assert_eq!(of(2), Kvm::Absent);
        assert_eq!(of(6), Kvm::Absent);
        assert_eq!(of(13), Kvm::Denied);
        assert!(matches!(of(5), Kvm::Broken { .. }));
        assert_eq!(Kvm::Emulated { micros: 10_000 }.describe().split(' ').nth(6), Some("2000"));
        for bad in [Kvm::Absent, Kvm::Denied, Kvm::Emulated { micros: 9 }] {
            assert!(bad.hint().is_some() && !bad.usable());
        }
    }
}
