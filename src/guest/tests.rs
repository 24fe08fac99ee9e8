use super::*;
use crate::base::plan::{Accel, InstanceId};
use crate::base::{Arch, ByteSize, DigestAlgorithm};

fn layout() -> (tempfile::TempDir, Layout) {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path().join("home"), folder.path().join("run")).unwrap();
    (folder, layout)
}

pub(crate) fn record(layout: &Layout, name: &str) -> Record {
    let name: GuestName = name.parse().unwrap();
    let id = InstanceId::generate().unwrap();
    let files = layout.guest_files(&name);
    let plan = GuestPlan {
        arch: Arch::Amd64,
        memory: ByteSize(512 << 20),
        cpus: 1,
        accel: Accel::Auto,
        disks: Vec::new(),
        seed: None,
        nics: Vec::new(),
        forwards: Vec::new(),
        host_keys: Vec::new(),
        console_log: files.console_log(),
        backend_log: files.backend_log(),
        runtime: layout.runtime(id.short()),
        daemon: None,
        tuning: crate::base::plan::Tuning::default(),
        platform: Default::default(),
        container: None,
        volumes: None,
        name,
        id,
    };
    let blob = Digest::from_bytes(DigestAlgorithm::Sha256, &[7; 32]);
    Record::new(
        DriverKind::Qemu,
        Origin { image: None, blob: Some(blob), keys: BTreeMap::new(), trust: None, template: None },
        plan,
    )
}

#[test]
fn a_name_is_taken_until_it_is_given_back() {
    let (_folder, layout) = layout();
    let mut held = reserve(&layout, record(&layout, "web")).unwrap();
    let name = held.record.name().clone();
    let second = reserve(&layout, record(&layout, "web")).unwrap_err();
    assert_eq!(second.kind(), Kind::Exists);
    assert!(second.hints()[0].contains("half-made"));
    assert_eq!(get(&layout, &name).unwrap_err().kind(), Kind::Failed);

    held.record.phase = Phase::Ready;
    held.save().unwrap();
    assert_eq!(get(&layout, &name).unwrap().plan, held.record.plan);
    assert_eq!(blobs_in_use(&layout).unwrap().len(), 1);

    remove_folder(&layout, &name).unwrap();
    remove_folder(&layout, &name).unwrap();
    assert_eq!(get(&layout, &name).unwrap_err().kind(), Kind::NotFound);
    assert!(list(&layout).unwrap().is_empty());
}

#[test]
fn half_made_folders_are_listed_and_never_whole() {
    let (_folder, layout) = layout();
    fs::create_private_dir(&layout.guests().join("empty")).unwrap();
    fs::create_private_dir(&layout.guests().join("torn")).unwrap();
    fs::write_new(&layout.guests().join("torn/guest.json"), b"{\"version\": 1, \"pha", 0o600).unwrap();
    fs::create_private_dir(&layout.guests().join(".removing-x-1")).unwrap();
    let entries = list(&layout).unwrap();
    assert!(matches!(&entries[0], Entry::Broken(name, None) if name.as_str() == "empty"));
    assert!(matches!(&entries[1], Entry::Broken(name, Some(_)) if name.as_str() == "torn"));
    let stopped = blobs_in_use(&layout).expect_err("an unreadable record must stop a sweep");
    // Whoever meets it is told how to be rid of it: 'prune', 'info' and 'start' alike.
    let name = "torn".parse().unwrap();
    for error in [stopped, load(&layout, &name).unwrap_err(), get(&layout, &name).unwrap_err()] {
        assert_eq!(error.hints(), ["repair it, or remove the guest: virga destroy torn"], "{error}");
    }
    assert_eq!(sweep(&layout, true).unwrap(), 1);
    assert_eq!(sweep(&layout, false).unwrap(), 1);
    assert_eq!(sweep(&layout, false).unwrap(), 0);
}

#[test]
fn a_newer_record_is_refused() {
    let (_folder, layout) = layout();
    let mut newer = record(&layout, "web");
    newer.version = RECORD_VERSION + 1;
    let name = newer.name().clone();
    drop(reserve(&layout, newer).unwrap());
    assert!(get(&layout, &name).unwrap_err().to_string().contains("newer"));
}
