//! What cargo runs before it builds virga with the feature `libvirt`.
//!
//! The crate `virt` asks to be linked with libvirt. Here the linker finds a
//! library of that name with nothing in it, a script without commands: all
//! functions are those of `src/driver/libvirt/library.rs`, which load the real
//! library when they are first needed. One that is missing there is an error of
//! the linker's. Where it finds the real library first, that is loaded at the
//! start of each command, and all works as well.
#![allow(clippy::disallowed_methods, reason = "runs before there is anything of virga's to use")]

fn main() {
    println!("cargo::rerun-if-changed=packaging/build.rs");
    if std::env::var_os("CARGO_FEATURE_LIBVIRT").is_none() {
        return;
    }
    let folder = std::env::var("OUT_DIR").expect("cargo says where to write");
    std::fs::write(format!("{folder}/libvirt.so"), "/* see packaging/build.rs */\n").expect("cargo's folder is ours");
    println!("cargo::rustc-link-search=native={folder}");
}
