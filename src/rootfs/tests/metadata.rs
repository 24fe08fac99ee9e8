use std::collections::BTreeMap;

use super::{Archive, EntryType, Place, gz, xz};
use crate::base::Kind;
use crate::rootfs::{Metadata, NewMetadata, When, incus_arch, make, stream_arch};

fn request() -> NewMetadata {
    let properties = [("os", "debian"), ("release", "bookworm"), ("description", "a: \"b\" #c"), ("version", "12")];
    NewMetadata {
        architecture: "x86_64".into(),
        creation_date: 1_700_000_000,
        properties: properties.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

#[test]
fn reads_what_it_makes_and_makes_it_again() {
    let place = Place::new();
    let bytes = make(&request()).unwrap();
    assert_eq!(bytes, make(&request()).unwrap());
    let metadata = Metadata::read(&place.file(&bytes)).unwrap();
    assert_eq!(metadata.architecture, "x86_64");
    assert_eq!(metadata.creation_date, 1_700_000_000);
    assert_eq!(metadata.properties, request().properties);
    let seed = "/var/lib/cloud/seed/nocloud-net";
    let targets: Vec<&str> = metadata.templates.keys().map(String::as_str).collect();
    let seeds = ["meta-data", "network-config", "user-data", "vendor-data"].map(|name| format!("{seed}/{name}"));
    assert_eq!(targets, [&["/etc/hostname".to_owned()][..], &seeds].concat());
    for (target, template) in &metadata.templates {
        assert_eq!(template.when, [When::Create, When::Copy], "{target}");
        assert!(!template.create_only);
    }
    let user = &metadata.templates[&format!("{seed}/user-data")];
    assert_eq!(
        user.content,
        "{% if config_get(\"cloud-init.user-data\", \"\") != \"\" %}{{ config_get(\"cloud-init.user-data\", \"\") }}\
         {% else %}#cloud-config\n{}\n{% endif %}"
    );
    // GNU tar and xz read it too.
    let list = crate::base::cmd::Cmd::new("tar").arg("-tJf").arg(place.file(&bytes)).run().unwrap().text();
    assert!(list.starts_with("metadata.yaml\ntemplates/\ntemplates/hostname.tpl\n"), "{list}");
}

/// As distributions write them.
const DOCUMENT: &str = "
architecture: amd64
creation_date: 1690000000
expiry_date: 1700000000
properties: {os: Ubuntu, version: 12, lts: true, nothing: null}
templates:
  /etc/hosts: {template: hosts.tpl, when: [create, copy, start, rename], create_only: true, properties: {n: 1}}
";

#[test]
fn reads_others_in_every_packing() {
    let place = Place::new();
    let archive = Archive::default()
        .dir("./")
        .file("./metadata.yaml", DOCUMENT)
        .dir("./templates")
        .file("./templates/hosts.tpl", "127.0.0.1 {{ instance.name }}\n")
        .file("./README", "?");
    let bytes = archive.bytes();
    for packed in [bytes.clone(), xz(&bytes), gz(&bytes)] {
        let metadata = Metadata::read(&place.file(&packed)).unwrap();
        let expected = [("os", "Ubuntu"), ("version", "12"), ("lts", "true"), ("nothing", "")];
        let expected: BTreeMap<String, String> = expected.map(|(key, value)| (key.into(), value.into())).into();
        assert_eq!((metadata.architecture.as_str(), &metadata.properties), ("amd64", &expected));
        let hosts = &metadata.templates["/etc/hosts"];
        assert!(hosts.create_only && hosts.when.len() == 4 && hosts.properties["n"] == "1");
    }
    assert_eq!(
        (stream_arch("amd64"), stream_arch("aarch64"), stream_arch("vax")),
        (Some("amd64"), Some("arm64"), None)
    );
    assert_eq!((incus_arch("amd64"), incus_arch("arm64")), (Some("x86_64"), Some("aarch64")));
}

#[test]
fn hostile_ones_are_refused() {
    let place = Place::new();
    let refused = |archive: Archive, part: &str| {
        let error = Metadata::read(&place.file(&archive.bytes())).unwrap_err();
        let said = error.causes().join(": ");
        assert!(error.kind() == Kind::Refused && said.contains(part), "{error}: {said}");
    };
    let document = |text: &str| Archive::default().file("metadata.yaml", text).file("templates/t", "");
    refused(Archive::default().dir("templates"), "no metadata.yaml");
    refused(document("architecture: x86_64").file("rootfs/bin/sh", ""), "as well");
    refused(document("architecture: x86_64").file("../x", ""), "upwards");
    refused(Archive::default().symlink("metadata.yaml", "/etc/shadow"), "neither file nor folder");
    refused(document("a: x").symlink("templates/x", "/etc/shadow"), "neither file nor folder");
    refused(Archive::default().add(EntryType::Char, "dev/null", "", ""), "neither file nor folder");
    refused(document("architecture: ''"), "no architecture");
    refused(document("- 1"), "cannot be read");
    refused(document(&"x".repeat(2 << 20)), "larger");
    for target in ["etc/hosts", "/", "/../x", "/a/../../x", "/etc/", "/a\\n"] {
        let text = format!("{{architecture: a, templates: {{\"{target}\": {{template: t}}}}}}");
        refused(document(&text), "no path of a file");
    }
    for name in ["../t", "absent", "templates/t", "/etc/shadow"] {
        refused(document(&format!("{{architecture: a, templates: {{/a: {{template: {name}}}}}}}")), "is not in it");
    }
    refused(document("{architecture: a, templates: {/a: {template: t, when: [never]}}}"), "cannot be read");
    refused(document("{architecture: a, properties: {a: [1]}}"), "no text");
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]\n";
    refused(document(&format!("{bomb}properties: {{x: *e}}")), "cannot be read");
}
