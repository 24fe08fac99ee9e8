//! `docs/drivers.md` says what each driver's capabilities say.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use virga::base::Layout;
use virga::base::plan::DriverKind;
use virga::driver::{self, Ability, Boots, Capabilities, DriverSettings, Reached, SavedIn, SeedIn, Storage};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/drivers.md");
const BEGIN: &str = "<!-- begin of the table: tests/drivers.rs -->\n";
const END: &str = "<!-- end of the table -->\n";

fn capabilities() -> Vec<(DriverKind, Capabilities)> {
    let layout = Layout::new("/virga".into(), "/run/virga".into()).unwrap();
    // The system's libvirt, whoever runs this test.
    let connect = Some("qemu:///system".to_owned());
    let settings = DriverSettings {
        layout,
        connect,
        pool: None,
        incus: None,
        incus_clients: Vec::new(),
        incus_pool: None,
        lxc: "/lxc".into(),
    };
    DriverKind::ALL.iter().map(|kind| (*kind, driver::open(*kind, &settings).capabilities())).collect()
}

fn yes(yes: bool) -> String {
    if yes { "yes".into() } else { "no".into() }
}

fn ability(ability: Ability) -> String {
    match ability {
        Ability::Yes => "yes".into(),
        Ability::No(reason) => format!("no: {reason}"),
    }
}

fn row(what: &str, all: &[(DriverKind, Capabilities)], cell: impl Fn(&Capabilities) -> String) -> String {
    let cells: Vec<String> = all.iter().map(|(_, capabilities)| cell(capabilities)).collect();
    format!("| {what} | {} |\n", cells.join(" | "))
}

fn table() -> String {
    let all = capabilities();
    let names: Vec<String> = all.iter().map(|(kind, _)| format!("`{kind}`")).collect();
    let mut table = format!("| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(all.len()));
    table += &row("makes guests of", &all, |c| {
        let kinds = c.boots.iter().map(|kind| match kind {
            Boots::DiskImage => "disk images",
            Boots::RootFileSystem => "root file systems",
        });
        kinds.collect::<Vec<_>>().join(", ")
    });
    table += &row("keeps their disks", &all, |c| match c.storage {
        Storage::OurPath => "in the guest's folder".into(),
        Storage::BackendPool => "in the backend's pool".into(),
    });
    table += &row("hands over the seed as", &all, |c| match c.seed {
        SeedIn::Image => "an image".into(),
        SeedIn::Folder => "documents".into(),
    });
    table += &row("SSH is at", &all, |c| match c.reached {
        Reached::LoopbackPort => "a port on 127.0.0.1".into(),
        Reached::Address => "the guest's address".into(),
    });
    table += &row("first card, unless told otherwise", &all, |c| format!("`{}`", c.default_network));
    table += &row("`--network user` keeps the guest from its host", &all, |c| ability(c.host_closed));
    table += &row("the console is logged", &all, |c| yes(c.console_log));
    table += &row("templates, `create --warm`", &all, |c| yes(c.memory_snapshots));
    table += &row("a saved guest's memory is kept by", &all, |c| match c.saved_in {
        SavedIn::OurFile => "virga".into(),
        SavedIn::Backend => "the backend".into(),
        SavedIn::Nobody(reason) => format!("nobody: {reason}"),
    });
    table += &row("a clock of its own", &all, |c| yes(c.own_clock));
    table += &row("`exec`", &all, |c| match c.exec {
        Ability::Yes => "by the backend, as root".into(),
        Ability::No(_) => "over SSH, as the guest's user".into(),
    });
    table += &row("`cp`", &all, |c| match c.files {
        Ability::Yes => "by the backend, as root".into(),
        Ability::No(_) => "over SSH, as the guest's user".into(),
    });
    table += &row("`cp` while it does not run", &all, |c| ability(c.files_when_stopped));
    table += &row("`publish`", &all, |c| ability(c.publish));
    table += &row("`publish --to daemon`", &all, |c| ability(c.daemon_images));
    table += &row("`export`, `import`", &all, |c| ability(c.export));
    table += &row("`attach --folder`", &all, |c| ability(c.folders));
    table += &row("`attach --folder` as it runs", &all, |c| ability(c.folders_when_running));
    table += &row("`port add`, `port remove`", &all, |c| ability(c.ports));
    table += &row("`resize` as it runs", &all, |c| ability(c.resize_when_running));
    table += &row("`start --autostart`", &all, |c| ability(c.autostart));
    table
}

#[test]
#[cfg_attr(not(feature = "libvirt"), ignore = "the document is of a build with every driver")]
fn the_table_in_the_documentation_is_the_drivers_own() {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the table's begin");
    let (there, after) = rest.split_once(END).expect("the table's end");
    let table = table();
    if std::env::var_os("VIRGA_WRITE_DOCS").is_some() {
        return support::write(std::path::Path::new(DOCUMENT), &format!("{before}{BEGIN}{table}{END}{after}"));
    }
    assert_eq!(there, table, "'VIRGA_WRITE_DOCS=1 cargo test --test drivers' writes it anew");
}
