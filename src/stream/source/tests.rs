use super::*;
use crate::base::Kind;

const UBUNTU_KEY: &str = "4A3CE3CD565D7EB5C810E2B97FF3F408476CF100";

fn parse(text: &str) -> Result<Source> {
    Source::parse("own", text, Path::new("/etc/virga/streams"))
}

#[test]
fn the_built_in_sources_are_ubuntus() {
    let sources = Sources::load(&[]).unwrap();
    let urls: Vec<(&str, &str)> = sources
        .iter()
        .filter(|source| source.name.starts_with("ubuntu"))
        .map(|source| (source.name.as_str(), source.url.reveal()))
        .collect();
    let root = "https://cloud-images.ubuntu.com";
    assert_eq!(
        urls,
        [
            ("ubuntu", &*format!("{root}/releases/")),
            ("ubuntu-daily", &*format!("{root}/daily/")),
            ("ubuntu-minimal", &*format!("{root}/minimal/releases/")),
            ("ubuntu-minimal-daily", &*format!("{root}/minimal/daily/")),
        ]
    );
    for source in sources.iter().filter(|source| source.name.starts_with("ubuntu")) {
        assert_eq!(source.signing, Signing::Required);
        assert_eq!(source.fingerprints, [UBUNTU_KEY]);
        assert_eq!(source.keyrings, [Path::new("/usr/share/keyrings/ubuntu-cloudimage-keyring.gpg")]);
        assert!(source.filters.names("ftype") && source.filters.names("datatype") && !source.filters.names("arch"));
        assert!(source.keyring_hint().contains("'ubuntu-keyring' or 'ubuntu-cloudimage-keyring'"));
    }
    let path = "streams/v1/com.ubuntu.cloud:released:download.sjson".parse().unwrap();
    let url = sources.get("ubuntu").unwrap().url_of(&path);
    assert_eq!(url.reveal(), format!("{root}/releases/streams/v1/com.ubuntu.cloud:released:download.sjson"));
    let error = sources.get("debian").unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hints()[0].contains("ubuntu-minimal-daily"));
}

#[test]
fn files_of_the_user_replace_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write_atomic(&folder.path().join(name), text.as_bytes(), 0o644).unwrap();
    write("ubuntu.toml", "url = 'http://mirror.example/u'\nkeyring = ['a.gpg', '/b.gpg']\nsigned = true");
    write(
        "lab.toml",
        "url = 'file:///srv/stream/'\nsigned = false\npath = 'streams/v1/index.json'\nfilters = ['os=debian']",
    );
    write("README", "no source");
    let sources = Sources::load(&[folder.path().join("absent"), folder.path().to_owned()]).unwrap();
    let ubuntu = sources.get("ubuntu").unwrap();
    assert_eq!(ubuntu.url, "http://mirror.example/u/");
    assert_eq!(ubuntu.keyrings, [folder.path().join("a.gpg"), PathBuf::from("/b.gpg")]);
    assert_eq!(ubuntu.path.as_str(), DEFAULT_PATH);
    let lab = sources.get("lab").unwrap();
    assert!(lab.signing == Signing::Waived && lab.filters.names("os"));
    write("Bad Name.toml", "");
    let error = Sources::load(&[folder.path().to_owned()]).unwrap_err();
    assert!(error.to_string().contains("Bad Name.toml"), "{error}");
}

#[test]
fn wrong_files_are_explained() {
    for (text, part) in [
        ("url = 'https://x/'", "names no keyring"),
        ("signed = false", "missing field `url`"),
        ("url = 'https://x/'\nkeyrings = 'a'", "unknown field `keyrings`"),
        ("url = 'https://x/'\nkeyring = 3", "a string or a list of strings"),
        ("url = 'ftp://x/'\nsigned = false", "neither http, https nor file"),
        ("url = 'x/y'\nsigned = false", "is not a URL"),
        ("url = 'https:///x'\nsigned = false", "has no host"),
        ("url = 'file://x/y'\nsigned = false", "not an absolute file URL"),
        ("url = 'https://x/?a=b'\nsigned = false", "has a query"),
        ("url = 'https://x/a b'\nsigned = false", "blanks"),
        ("url = 'https://x/'\nsigned = false\npath = '../x'", "not a plain relative path"),
        ("url = 'https://x/'\nsigned = false\nfingerprints = ['1234']", "'1234' is not a key's fingerprint"),
        ("url = 'https://x/'\nsigned = false\nfilters = ['no ble']", "'no ble' is not a filter"),
        ("url = 'https://x/'\nsigned = false\nmirrors = ['http://y/']", "is reached in another way"),
        ("url = 'https://x/'\nsigned = false\nmirrors = ['file:///y']", "is reached in another way"),
        ("url = 'https://x/'\nsigned = false\nmax-age = 'soon'", "'soon' is not a time"),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        let said = format!("{error}: {}", error.causes().join(": "));
        assert!(said.contains(part), "{text}\n{said}");
    }
    for name in ["", "-a", "A", "a/b", "..", &"a".repeat(42)] {
        assert!(Source::parse(name, "url = 'https://x/'\nsigned = false", Path::new("/")).is_err(), "{name}");
    }
}

#[test]
fn fingerprints_are_taken_as_gpg_prints_them() {
    let text =
        "url = 'https://x/'\nkeyring = 'k'\nfingerprints = ['4a3c e3cd 565d 7eb5 c810  e2b9 7ff3 f408 476c f100']";
    assert_eq!(parse(text).unwrap().fingerprints, [UBUNTU_KEY]);
}

#[test]
fn urls_become_sources() {
    for (url, root, path) in [
        ("https://h.example/a", "https://h.example/a/", DEFAULT_PATH),
        ("HTTP://h.example:8000/a/streams/v1/x.json", "http://h.example:8000/a/", "streams/v1/x.json"),
        ("http://h.example/streams/v1/sub/x.sjson", "http://h.example/", "streams/v1/sub/x.sjson"),
        ("file:///srv/stream", "file:///srv/stream/", DEFAULT_PATH),
        ("https://h.example/a/streams/v1/", "https://h.example/a/", DEFAULT_PATH),
        ("https://h.example/streams/v1", "https://h.example/", DEFAULT_PATH),
    ] {
        let source = Source::from_url(url, None).unwrap();
        assert_eq!((source.url.reveal(), source.path.as_str()), (root, path));
        assert_eq!(source.fingerprints, [UBUNTU_KEY]);
        assert_eq!(source.signing, Signing::Required);
        check_name(&source.name).unwrap();
    }
    let name = |url: &str| Source::from_url(url, Some(Path::new("/k.gpg"))).unwrap().name;
    assert!(name("https://h.example:8000/a").starts_with("h-example-8000-"));
    assert_eq!(name("https://user:secret@h.example/"), name("https://h.example/"));
    assert_eq!(name("https://user:changed@h.example/"), name("https://other@h.example/"));
    assert!(name("file:///srv").starts_with("file-"));
    assert_eq!(name("https://h/a"), name("https://h/a/"));
    assert_ne!(name("https://h/a"), name("https://h/b"));
    check_name(&name(&format!("https://{}/", "x.".repeat(100)))).unwrap();
    check_name(&name("https://[::1]/")).unwrap();
    assert!(Source::from_url("https://h/streams/v1/../x", None).is_err());
    assert_eq!(Source::from_url("https://h/a", Some(Path::new("/k.gpg"))).unwrap().fingerprints, [""; 0]);
}

#[test]
fn what_nobody_signs_is_no_decision_of_the_users() {
    let sources = Sources::load(&[]).unwrap();
    for name in ["linuxcontainers", "lxd-images"] {
        let source = sources.get(name).unwrap();
        assert_eq!(source.signing, Signing::Absent);
        assert!(source.url.reveal().starts_with("https://") && source.unsigned_hint().contains("--unsigned"));
    }
    let folder = tempfile::tempdir().unwrap();
    let own = "url = 'https://images.linuxcontainers.org/'\nsigned = false";
    fs::write_atomic(&folder.path().join("linuxcontainers.toml"), own.as_bytes(), 0o644).unwrap();
    let sources = Sources::load(&[folder.path().to_owned()]).unwrap();
    assert_eq!(sources.get("linuxcontainers").unwrap().signing, Signing::Waived);
}

#[test]
fn an_item_may_lie_at_several_places() {
    let path: RelPath = "a/b".parse().unwrap();
    let mirrors =
        ["https://m/x", "http://weak/", "file:///etc", "../up", "https://h/?q", "https://h/a"].map(str::to_owned);
    let source = parse("url = 'https://h/a'\nkeyring = 'k'\nmirrors = ['https://two/']\nmax-age = '14d'").unwrap();
    assert_eq!(source.places(&path, &mirrors), ["https://h/a/a/b", "https://two/a/b", "https://m/x/a/b"]);
    assert_eq!(source.max_age, Some(Duration::from_secs(14 * 86_400)));
    let plain = parse("url = 'http://h/a'\nkeyring = 'k'").unwrap();
    assert_eq!(plain.places(&path, &mirrors[..2]), ["http://h/a/a/b", "https://m/x/a/b", "http://weak/a/b"]);
}

#[test]
fn no_user_name_and_password_is_printed() {
    let source = Source::from_url("https://user:s3cret@h.example/a", None).unwrap();
    assert_eq!(source.url.reveal(), "https://user:s3cret@h.example/a/");
    assert_eq!(source.description, "https://h.example/a/");
    let path: RelPath = "x".parse().unwrap();
    assert!(!format!("{source:?} {} {:?}", source.url_of(&path), source.places(&path, &[])).contains("s3cret"));
    for wrong in
        ["https://user:s3cret@h.example/?token=s3cret", "ftp://u:s3cret@h/", "https://u:s3cret@h/a b", "u:s3cret@h"]
    {
        let error = Source::from_url(wrong, None).unwrap_err();
        assert!(!error.to_string().contains("s3cret") && error.to_string().contains('h'), "{error}");
    }
    let error = Sources::load(&[]).unwrap().get("u:s3cret@h").unwrap_err();
    assert!(!error.to_string().contains("s3cret"), "{error}");
    // What reads the file quotes its lines.
    for text in [
        "url = 'https://u:s3cret@h/'\nmirorrs = ['https://u:s3cret@k/']",
        "url = 'https://u:s3cret@h/'\nmirrors = 'https://u:s3cret@k/'",
        "url = 'https://u:s3cret@h/'\nkeyring = 'k'\nmirrors = ['http://u:s3cret@k/']",
        "url = 'https://u:s3cret@h/' x",
    ] {
        let error = parse(text).unwrap_err();
        assert!(!format!("{error} {:?}", error.causes()).contains("s3cret"), "{error} {:?}", error.causes());
    }
}

#[test]
fn ubuntus_key_is_shipped_and_the_pin_decides() {
    use crate::stream::key::Keyring;
    for source in Sources::load(&[]).unwrap().iter() {
        assert_eq!(source.shipped.is_some(), source.is_signed(), "{}", source.name);
        let Some(shipped) = source.shipped else { continue };
        let keyring = Keyring::from_bytes(shipped).unwrap();
        let pin = UBUNTU_KEY.parse().unwrap();
        assert_eq!(keyring.fingerprints(), [pin]);
        assert!(!source.content_ids.is_empty(), "{}", source.name);
    }
    let text = format!("url = 'https://x/'\nkeyring = 'k'\nfingerprints = ['{UBUNTU_KEY}']");
    assert!(parse(&text).unwrap().shipped.is_none(), "a source of the user's has the user's keys");
    assert!(Source::from_url("https://h/", None).unwrap().shipped.is_some());
    assert!(Source::from_url("https://h/", Some(Path::new("/k"))).unwrap().shipped.is_none());
}

#[test]
fn a_source_lists_what_its_pins_say() {
    let source = parse("url = 'https://x/'\nkeyring = 'k'\ncontent-id = ['a:released:*', 'b']").unwrap();
    for (id, lists) in [("a:released:download", true), ("a:daily:download", false), ("b", true), ("bb", false)] {
        assert_eq!(source.lists(id), lists, "{id}");
    }
    assert!(parse("url = 'https://x/'\nkeyring = 'k'").unwrap().lists("anything"));
    // Whether it is named or its address is given.
    let daily = Source::from_url("https://cloud-images.ubuntu.com/daily/", None).unwrap();
    assert!(daily.max_age.is_some() && daily.lists("com.ubuntu.cloud:daily:download"));
    assert!(!daily.lists("com.ubuntu.cloud:released:download"));
    let other = Source::from_url("https://mirror.example/", None).unwrap();
    assert!(other.lists("any") && other.max_age.is_none() && !other.filters.names("label"));
}

#[test]
fn a_place_is_one_however_it_is_spelled() {
    let source = |url: &str| Source::from_url(url, None).unwrap();
    let daily = source("https://cloud-images.ubuntu.com/daily/");
    for url in [
        "https://cloud-images.ubuntu.com/daily",
        "http://cloud-images.ubuntu.com/daily/",
        "https://Cloud-Images.Ubuntu.COM:443/daily/",
        "http://joe:secret@cloud-images.ubuntu.com:80/daily/",
        "https://cloud-images.ubuntu.com/daily/streams/v1/index.json",
    ] {
        let other = source(url);
        assert_eq!(
            (other.place(), &other.content_ids, other.max_age),
            (daily.place(), &daily.content_ids, daily.max_age)
        );
    }
    let named = built_in().map(Result::unwrap).find(|source| source.name == "ubuntu-daily").unwrap();
    assert_eq!(named.place(), daily.place());
    for url in
        ["https://cloud-images.ubuntu.com/releases/", "https://cloud-images.ubuntu.com:8443/daily/", "file:///daily/"]
    {
        assert_ne!(source(url).place(), daily.place(), "{url}");
    }
    assert!(daily.place().starts_with("cloud-images-ubuntu-com-daily-"), "{}", daily.place());
}

#[test]
fn unsigned_runs_have_a_name_that_no_source_can_have() {
    let mut source = parse("url = 'https://x/'\nkeyring = 'k'").unwrap();
    assert_eq!(source.store(), "own");
    source.signing = Signing::Waived;
    assert!(check_name(&source.store()).is_err() && source.store().starts_with("own"));
}
