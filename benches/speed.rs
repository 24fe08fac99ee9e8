//! `make bench`: virga against named tools, in one run, as a table of medians
//! and ratios. The targets are those that the project sets itself.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench runs tools and prints a table")]

mod table;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use table::{Row, median, tool};
use virga::base::ByteSize;
use virga::base::nic::Mac;
use virga::base::plan::{DiskFormat, InstanceId};
use virga::{disk, seed, stream};

const VIRGA: &str = env!("CARGO_BIN_EXE_virga");

fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let base = dir.path().join("base.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &base.display().to_string(), "2G"]);

    table::head();
    for row in [overlay(dir.path(), &base), seed_image(dir.path()), products()] {
        row.print();
    }
    for row in commands(dir.path(), &base) {
        row.print();
    }
}

fn overlay(dir: &Path, base: &Path) -> Row {
    let (ours, theirs) = (dir.join("ours.qcow2"), dir.join("theirs.qcow2"));
    let backing = disk::Backing { path: base.to_owned(), format: DiskFormat::Qcow2, virtual_size: 2 << 30 };
    let our_time = median(200, || {
        let _ = std::fs::remove_file(&ours);
        disk::create_overlay(&ours, &backing, ByteSize(8 << 30)).expect("an overlay");
    });
    let (base, theirs_text) = (base.display().to_string(), theirs.display().to_string());
    let their_time = median(20, || {
        let _ = std::fs::remove_file(&theirs);
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &theirs_text, "8G"]);
    });
    Row::against("overlay of 8 GiB", our_time, "qemu-img create", their_time, 20.0)
}

fn seed_image(dir: &Path) -> Row {
    let request = seed::SeedRequest {
        name: "bench".parse().expect("a name"),
        instance_id: InstanceId::generate().expect("an id"),
        macs: vec![Mac::generate().expect("an address")],
        cards_have_names: false,
        host_keys: Vec::new(),
        authorized_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx0 bench".into()],
        password: None,
        packages: vec!["hello".into()],
        run_scripts_once: Vec::new(),
        user_data: Vec::new(),
        meta_data: None,
        network_config: None,
    };
    let built = seed::build(&request).expect("a seed");
    let ours = dir.join("ours.img");
    let our_time = median(200, || {
        let image = seed::build(&request).and_then(|seed| seed.to_iso()).expect("an image");
        std::fs::write(&ours, image).expect("written");
    });
    let folder = dir.join("seed");
    std::fs::create_dir(&folder).expect("a folder");
    let mut args: Vec<String> = ["-quiet", "-V", "cidata", "-R", "-J", "-o"].map(str::to_owned).to_vec();
    args.push(dir.join("theirs.img").display().to_string());
    for (name, bytes) in &built.files {
        std::fs::write(folder.join(name), bytes).expect("written");
        args.push(folder.join(name).display().to_string());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let their_time = median(20, || tool("genisoimage", &args));
    Row::against("seed image", our_time, "genisoimage", their_time, 10.0)
}

/// A products file of 10 MB, shaped as Ubuntu's.
fn products() -> Row {
    let mut text = String::from(
        "{\"format\":\"products:1.0\",\"content_id\":\"com.example:bench\",\"datatype\":\"image-downloads\",\"products\":{",
    );
    let mut product = 0;
    while text.len() < 10_000_000 {
        let comma = if product == 0 { "" } else { "," };
        text.push_str(&format!(
            "{comma}\"com.example:server:{product}:amd64\":{{\"arch\":\"amd64\",\"os\":\"ubuntu\",\"release\":\"r{product}\",\"versions\":{{"
        ));
        for version in 0..20 {
            let comma = if version == 0 { "" } else { "," };
            text.push_str(&format!("{comma}\"202611{version:02}\":{{\"label\":\"release\",\"items\":{{"));
            for item in 0..5 {
                let comma = if item == 0 { "" } else { "," };
                text.push_str(&format!(
                    "{comma}\"i{item}\":{{\"ftype\":\"disk1.img\",\"path\":\"p{product}/v{version}/i{item}\",\"size\":123456,\"sha256\":\"{:064x}\",\"md5\":\"{:032x}\"}}",
                    product * 1000 + version * 10 + item,
                    item
                ));
            }
            text.push_str("}}");
        }
        text.push_str("}}");
        product += 1;
    }
    text.push_str("}}");
    let bytes = text.into_bytes();
    let time = median(10, || {
        stream::product::parse_products(&bytes, None, "bench").expect("parsed");
    });
    Row::under("parse of 10 MB of products", time, Duration::from_millis(50))
}

fn commands(dir: &Path, base: &Path) -> Vec<Row> {
    let virga = |args: &[&str]| {
        let output = Command::new(VIRGA)
            .args(args)
            .env("VIRGA_HOME", dir.join("state"))
            .env("VIRGA_RUNTIME_DIR", dir.join("run"))
            .env("HOME", dir)
            .output()
            .expect("virga");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let image = base.display().to_string();
    // Makes the pool's blob and virga's own key: what a second create finds.
    virga(&["create", "first", "--no-start", "--image", &image]);
    let mut number = 0;
    let create = median(20, || {
        number += 1;
        virga(&["create", &format!("g{number}"), "--no-start", "--image", &image]);
    });
    let list = median(20, || virga(&["list"]));
    for number in 1..=number {
        virga(&["destroy", &format!("g{number}")]);
    }
    virga(&["destroy", "first"]);
    vec![
        Row::under("create --no-start, whole command", create, Duration::from_millis(50)),
        Row::under("list of 22 guests, whole command", list, Duration::from_millis(10)),
    ]
}
