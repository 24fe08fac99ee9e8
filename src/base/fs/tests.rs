use super::*;

#[test]
fn what_is_named_in_a_hint_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path();
    assert_eq!(nearest(&there.join("a/b/c")), there);
    assert_eq!(nearest(there), there);
    assert_eq!(nearest(Path::new("virga-has-no-such/x")), Path::new("."));
    let denied = explain(io::ErrorKind::PermissionDenied.into(), "making", &there.join("a/b/c"));
    let shown = format!("'ls -ld {}'", there.display());
    assert!(denied.hints()[0].contains(&shown), "{:?}", denied.hints());
}

#[test]
fn a_file_system_that_is_read_only_has_a_way_round() {
    let error = explain(io::ErrorKind::ReadOnlyFilesystem.into(), "writing", Path::new("/x"));
    assert!(error.hints()[0].contains("VIRGA_HOME=FOLDER"), "{:?}", error.hints());
    let folder = tempfile::tempdir().unwrap();
    assert!(unwritable(&folder.path().join("not/yet")).is_none());
}
