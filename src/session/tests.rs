use super::*;

fn layout(folder: &tempfile::TempDir) -> Layout {
    let layout = Layout::new(folder.path().join("state"), folder.path().join("run")).unwrap();
    fs::create_private_dir(layout.home()).unwrap();
    layout
}

fn ids(layout: &Layout) -> Vec<SessionId> {
    over(layout, Timestamp::now()).unwrap().into_iter().map(|session| session.id).collect()
}

#[test]
fn a_session_is_over_when_nobody_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    assert_eq!(ids(&layout), []);
    let session = Session::begin(&layout).unwrap();
    let id = session.id.clone();
    assert_eq!(ids(&layout), []);
    drop(session);
    assert_eq!(ids(&layout), [id]);
    let taken = over(&layout, Timestamp::now()).unwrap();
    assert_eq!(ids(&layout), [], "somebody clears it away");
    taken.into_iter().for_each(|session| session.remove().unwrap());
    assert_eq!(fs::list_dir(&layout.sessions()).unwrap(), [] as [String; 0]);
}

#[test]
fn one_with_a_time_limit_needs_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let id = lease(&layout, after(Duration::from_secs(3600)).unwrap()).unwrap();
    assert_eq!(ids(&layout), []);
    let later = Timestamp::now() + jiff::SignedDuration::from_secs(3601);
    assert_eq!(over(&layout, later).unwrap()[0].id, id);
    assert!(after(Duration::MAX).is_err());
}

#[test]
fn one_that_was_never_begun_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let session = Session::begin(&layout).unwrap();
    fs::remove_file(&session.files.record()).unwrap();
    let id = session.id.clone();
    drop(session);
    assert_eq!(ids(&layout), [id]);
}

#[test]
fn a_keeper_wakes_when_the_owner_goes_and_finds_nothing_when_that_cleared_up() {
    for clears in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(&folder);
        let session = Session::begin(&layout).unwrap();
        let id = session.id.clone();
        let (begins, begun) = std::sync::mpsc::channel();
        let keeper = std::thread::spawn({
            let (layout, id) = (layout.clone(), id.clone());
            move || {
                begins.send(()).unwrap();
                outlive(&layout, &id).unwrap().map(|session| session.id.clone())
            }
        });
        begun.recv().unwrap();
        // That it goes on waiting is no event; one that does not has the time to show it.
        crate::base::poll::sleep(Duration::from_millis(50));
        assert!(!keeper.is_finished());
        if clears {
            session.remove().unwrap()
        } else {
            drop(session)
        }
        assert_eq!(keeper.join().unwrap(), (!clears).then_some(id));
    }
}

/// What a process was writing when it was killed goes; what one is writing now stays.
#[test]
fn half_written_files_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let _held = Session::begin(&layout).unwrap();
    let [left, busy] = ["left", "busy"].map(|name| layout.sessions().join(format!("{}{name}", fs::TEMPORARY_PREFIX)));
    fs::write_new(&left, b"{", 0o600).unwrap();
    let writer = fs::create_new(&busy, 0o600).unwrap();
    writer.lock().unwrap();
    assert!(over(&layout, Timestamp::now()).unwrap().is_empty());
    assert!(!left.exists() && busy.exists());
    drop(writer);
    over(&layout, Timestamp::now()).unwrap();
    assert!(!busy.exists());
}
