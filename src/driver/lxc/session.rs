//! What is done with a container that is there: see [`crate::driver::Session`].

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::{Lxc, attach, place, tools, unsupported};
use crate::base::cmd::Pipes;
use crate::base::layout::LxcFiles;
use crate::base::{BackendName, Error, GuestPath, GuestPlan, Result, SnapshotName, fs};
use crate::driver::carry::Load;
use crate::driver::{Autostart, Content, Details, Driver as _, Exec, Session, Snapshot, Status, Viewer};

/// How long `lxc-console` has to say that it cannot.
const REFUSED_WITHIN: Duration = Duration::from_millis(200);

/// The root in a snapshot's folder.
const ROOT: &str = "rootfs";

/// Copies a root to where a snapshot of it is made, and gives that its name when it is whole.
fn keep(files: &LxcFiles, name: &SnapshotName) -> Result<()> {
    fs::remove_dir_all(&files.next_snapshot())?;
    fs::create_private_dir(&files.next_snapshot())?;
    place::copy(&files.root(), &files.next_snapshot().join(ROOT))?;
    fs::create_private_dir(&files.snapshots())?;
    fs::rename_new(&files.next_snapshot(), &files.snapshots().join(name.as_str()))
}

impl Session for Lxc {
    fn suspend(&self, plan: &GuestPlan) -> Result<()> {
        tools::freeze(&self.defined(plan)?, true)
    }

    fn save_there(&self, _plan: &GuestPlan) -> Result<()> {
        Err(unsupported("save containers with their memory").hint("'virga suspend' holds one as long as the host runs"))
    }

    fn drop_saved(&self, _plan: &GuestPlan) -> Result<()> {
        Ok(())
    }

    fn set_autostart(&self, plan: &GuestPlan, wish: Option<Autostart>) -> Result<Option<String>> {
        let files = self.defined(plan)?;
        match &wish {
            Some(wish) => fs::write_json(&files.autostart(), wish, 0o600)?,
            None => fs::remove_file(&files.autostart())?,
        }
        place::configure(&files, plan, place::map(&files)?)?;
        // LXC's own service looks into LXC's own folder alone.
        let line = format!("have the host run this when it starts: lxc-autostart -P {}", files.parent().display());
        Ok(wish.map(|_| line))
    }

    fn location(&self, _plan: &GuestPlan) -> Result<Option<String>> {
        Ok(None)
    }

    fn details(&self, plan: &GuestPlan) -> Result<Details> {
        let files = self.files(plan)?;
        if !place::is_whole(&files, plan) {
            return Ok(Details::default());
        }
        let autostart = Some(files.autostart().exists());
        Ok(Details { autostart, addresses: tools::addresses(&files)?, disks: vec![files.root()], ..Details::default() })
    }

    fn snapshots(&self, plan: &GuestPlan) -> Result<Vec<Snapshot>> {
        let folder = self.files(plan)?.snapshots();
        let mut all = Vec::new();
        for name in fs::list_dir(&folder)? {
            // Nothing in it is changed any more.
            let meta = folder.join(&name).metadata().map_err(|error| fs::explain(error, "reading", &folder))?;
            let taken = meta.modified().ok().and_then(|time| Timestamp::try_from(time).ok()).unwrap_or_default();
            all.push(Snapshot { name, taken, memory: false });
        }
        all.sort_by_key(|snapshot| snapshot.taken);
        Ok(all)
    }

    /// A running guest is held meanwhile: its files are as after a power cut then, and nobody moves folders about while
    /// they are copied.
    fn take_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        let files = self.defined(plan)?;
        let held = tools::status(&files)? == Status::Running;
        if held {
            tools::freeze(&files, true)?;
        }
        let kept = keep(&files, name);
        if held {
            tools::freeze(&files, false)?;
        }
        if kept.is_err() {
            let _ = fs::remove_dir_all(&files.next_snapshot());
        }
        kept
    }

    fn restore_snapshot(&self, plan: &GuestPlan, snapshot: &Snapshot) -> Result<()> {
        let files = self.defined(plan)?;
        fs::remove_dir_all(&files.next_root())?;
        place::copy(&files.snapshots().join(&snapshot.name).join(ROOT), &files.next_root())?;
        fs::exchange(&files.next_root(), &files.root())?;
        // It may have had another name then.
        self.reconfigure(plan, plan)?;
        fs::remove_dir_all(&files.next_root())
    }

    fn remove_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        let files = self.defined(plan)?;
        // First its name: a half of it is none.
        fs::remove_dir_all(&files.next_snapshot())?;
        fs::rename(&files.snapshots().join(name.as_str()), &files.next_snapshot())?;
        fs::remove_dir_all(&files.next_snapshot())
    }

    fn console(&self, plan: &GuestPlan) -> Result<UnixStream> {
        let files = self.defined(plan)?;
        // Terminal 0 is the console; -1: no key of its own leaves it.
        let connected = tools::tool("lxc-console", &files).args(["-t", "0", "-e", "-1"]).connect(REFUSED_WITHIN);
        connected.map_err(|error| {
            let what = format!("the console of guest '{}' cannot be had", plan.name);
            Error::failed(what)
                .because(error)
                .hint(format!("what it shows is in its log: virga console --log {}", plan.name))
        })
    }

    fn exec(&self, plan: &GuestPlan, exec: &Exec, streams: Pipes<'_>) -> Result<u8> {
        attach::exec(&self.defined(plan)?, exec, streams)
    }

    fn screenshot(&self, _plan: &GuestPlan) -> Result<Vec<u8>> {
        Err(no_screen())
    }

    fn viewer(&self, _plan: &GuestPlan) -> Result<Viewer> {
        Err(no_screen())
    }
}

impl Content for Lxc {
    fn pull(&self, plan: &GuestPlan, path: &GuestPath, folders: bool, to: &mut dyn Write) -> Result<()> {
        attach::pull(&self.defined(plan)?, path, folders, to)
    }

    fn push(&self, plan: &GuestPlan, what: &Load, to: &GuestPath) -> Result<()> {
        attach::push(&self.defined(plan)?, what, to)
    }

    fn pack_root(&self, plan: &GuestPlan, to: &mut dyn Write) -> Result<()> {
        let files = self.defined(plan)?;
        place::pack(&files, place::map(&files)?, to)
    }

    fn export(&self, _plan: &GuestPlan, _to: &mut dyn Write) -> Result<()> {
        Err(unsupported("export guests"))
    }

    fn import(&self, _plan: &GuestPlan, _from: File) -> Result<()> {
        Err(unsupported("import guests"))
    }

    fn keep_image(&self, _plan: &GuestPlan, _metadata: &Path, _root: &Path, _alias: &BackendName) -> Result<String> {
        Err(unsupported("keep images: LXC has no daemon"))
    }
}

fn no_screen() -> Error {
    unsupported("show a screen: a container has none").hint("'virga console' connects to its console")
}
