//! A guest's plan as QEMU's command line.
//!
//! Values that may hold a path go in JSON where QEMU takes it (`-blockdev`,
//! `-device`), because JSON has no comma trap; elsewhere commas are doubled.

use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest as _;

use super::{network, system};
use crate::base::layout::RuntimeFiles;
use crate::base::name::hex;
use crate::base::nic::Network;
use crate::base::plan::{Disk, DiskFormat, Layer};
use crate::base::platform::Firmware;
use crate::base::{Arch, Error, GuestName, GuestPlan, Result};
use crate::driver::accel::Accelerator;
use crate::driver::{Begin, CHANNEL};

/// System calls that QEMU gives up once it is set up. QEMU forks nothing here:
/// it is not asked to daemonise, and the network is its own.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The name of the network that the card is at.
pub(super) const NETDEV: &str = "net0";

/// The node name of the disk that boots; [`root_disk`] finds it again.
pub(super) const ROOT: &str = "disk0";

/// How many disks can be attached to a guest as it runs.
pub(super) const PORTS: usize = 4;

/// The name of a port that a disk can be plugged into.
pub(super) fn port(number: usize) -> String {
    format!("port{number}")
}

/// QEMU's arguments for `plan`.
///
/// # Errors
/// For a path that is not UTF-8 and for memory that is not whole MiB.
pub(super) fn argv(plan: &GuestPlan, accel: Accelerator, begin: Begin<'_>) -> Result<Vec<String>> {
    let run = RuntimeFiles::new(&plan.runtime);
    let mut args = Args::default();
    args.add("-name", format!("guest={},process={}", comma(plan.name.as_str()), process_name(&plan.name)));
    args.add("-uuid", plan.id.as_str());
    // Nothing but what stands here: no default devices, no file of the user's.
    args.flag("-nodefaults").flag("-no-user-config");
    memory(plan, begin, &mut args)?;
    let accelerator = match accel {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,thread=multi",
    };
    args.add("-accel", accelerator).add("-cpu", system::cpu(plan.arch, accel));
    flash(plan, &mut args)?;
    tpm(plan, &run, &mut args)?;
    args.add("-smp", plan.cpus.to_string());
    args.add("-rtc", "base=utc");
    // The helper that plugs into a bridge is another program.
    let bridged = plan.nics.iter().any(|nic| network::bridge(&nic.network).is_some());
    args.add("-sandbox", if bridged { SANDBOX.replace("spawn=deny", "spawn=allow") } else { SANDBOX.to_owned() });
    args.add("-msg", "timestamp=on");
    // Only what has a boot index: no waiting for network boot.
    args.add("-boot", "strict=on");
    args.add("-display", "none").device(system::display(plan.arch));
    // Nothing listens: it is told where when somebody asks to see the screen.
    args.add("-vnc", "none");
    cards(plan, begin, &mut args)?;
    args.device(json!({"driver": "virtio-rng-pci"}));
    if plan.arch == Arch::Amd64 {
        args.device(json!({"driver": "vmgenid", "guid": plan.id.as_str()}));
    }
    disks(plan, &mut args)?;
    consoles(&run, &mut args)?;
    renewal(&run, &mut args)?;
    // Last, so that they take nobody's place: what is behind a port can come and go.
    for number in 0..PORTS {
        args.device(json!({"driver": "pcie-root-port", "id": port(number), "chassis": number + 1}));
    }
    if matches!(begin, Begin::Empty(_)) {
        args.add("-incoming", "defer");
    }
    args.add("-pidfile", text(&run.pid())?);
    Ok(args.0)
}

/// What `ps -o comm` shows; the kernel keeps 15 characters.
pub(super) fn process_name(name: &GuestName) -> String {
    format!("virga-{name}").chars().take(15).collect()
}

/// The file of the disk that boots, as an argument list of ours names it.
pub(super) fn root_disk(args: &[String]) -> Option<String> {
    let root =
        |value: Value| (value["node-name"] == ROOT).then(|| value["file"]["filename"].as_str().map(str::to_owned))?;
    values(args, "-blockdev").find_map(|arg| root(serde_json::from_str(arg).ok()?))
}

/// The values of every `flag` in an argument list.
pub(super) fn values<'a>(args: &'a [String], flag: &'a str) -> impl Iterator<Item = &'a str> {
    args.windows(2).filter(move |pair| pair[0] == flag).map(|pair| pair[1].as_str())
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn add(&mut self, flag: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([flag.into(), value.into()]);
        self
    }

    fn device(&mut self, device: Value) -> &mut Self {
        self.add("-device", device.to_string())
    }
}

/// QEMU saves what its networks know, the leases of guests among it, by their order. A clone is another
/// guest and gets the first address only from a network that has never seen one: so there is a second
/// network that nothing is at, first in all guests but those that become templates.
fn cards(plan: &GuestPlan, begin: Begin<'_>, args: &mut Args) -> Result<()> {
    const SPARE: &str = "user,id=spare,restrict=on";
    if network::in_user_space(plan) {
        // Port 0: QEMU picks the SSH port and tells it (`info usernet`), so no two guests can race for one.
        let first = plan.nics.first().map_or(&Network::User, |nic| &nic.network);
        let mut netdev = format!("{},hostfwd=tcp:127.0.0.1:0-:22", own_network(NETDEV, first));
        for forward in &plan.forwards {
            netdev += &format!(",hostfwd=tcp:127.0.0.1:{}-:{}", forward.host, forward.guest);
        }
        let becomes_template = matches!(begin, Begin::BootInto(_));
        for network in if becomes_template { [&netdev, SPARE] } else { [SPARE, &netdev] } {
            args.add("-netdev", network);
        }
    }
    for (number, nic) in plan.nics.iter().enumerate() {
        let (mac, id) = (nic.mac.to_string(), format!("net{number}"));
        let mut card = json!({"driver": "virtio-net-pci", "netdev": id, "mac": mac, "romfile": ""});
        if number == 0 {
            // A fixed slot, so that the card's name in the guest does not change with the number of disks.
            card["addr"] = json!("0x2");
        }
        match network::bridge(&nic.network) {
            Some(bridge) => {
                let helper = network::helper()?;
                args.add("-netdev", format!("bridge,id={id},br={bridge},helper={helper}"));
            }
            // The first one stands above.
            None if number > 0 => {
                args.add("-netdev", own_network(&id, &nic.network));
            }
            None => {}
        }
        args.device(card);
    }
    judges(plan, args)
}

/// A network of QEMU's own. With `restrict` only forwarded ports lead through it.
fn own_network(id: &str, network: &Network) -> String {
    let restrict = if *network == Network::None { "on" } else { "off" };
    format!("user,id={id},restrict={restrict}")
}

/// The way of what the guest sends leads through whoever judges it (`egress.rs`). QEMU asks the last filter first; what
/// comes back begins behind the one that it comes back by.
fn judges(plan: &GuestPlan, args: &mut Args) -> Result<()> {
    let path = comma(text(&RuntimeFiles::new(&plan.runtime).frames())?);
    for number in network::judged(plan) {
        for way in ["out", "back"] {
            // They are told apart by this order.
            args.add("-chardev", format!("socket,id={way}{number},path={path}"));
        }
        for (way, end) in [("back", "indev"), ("out", "outdev")] {
            let id = format!("{way}{number}");
            args.add("-object", format!("filter-redirector,id=judge-{id},netdev=net{number},queue=rx,{end}={id}"));
        }
    }
    Ok(())
}

/// The node name of the disk with this number. Those that come and go are told by what they are.
pub(super) fn node(number: usize, disk: &Disk) -> String {
    if number == 0 { ROOT.to_owned() } else { node_name(disk) }
}

/// A disk as `qemu-img` takes it in place of a file name, for what concerns its own file alone: with its format said,
/// and without the layers beneath it, which are then not looked at.
///
/// # Errors
/// For a path that is not UTF-8.
pub(super) fn image(disk: &Disk) -> Result<String> {
    let file = json!({"driver": "file", "filename": text(&disk.path)?});
    Ok(format!("json:{}", json!({"driver": disk.format.name(), "file": file, "backing": null})))
}

fn disks(plan: &GuestPlan, args: &mut Args) -> Result<()> {
    for (number, disk) in plan.disks.iter().enumerate() {
        let node = node(number, disk);
        args.add("-blockdev", block_node(disk, &node)?.to_string());
        let mut device = json!({"driver": "virtio-blk-pci", "drive": node});
        if number == 0 {
            device["bootindex"] = json!(1);
        }
        args.device(device);
    }
    if let Some(seed) = &plan.seed {
        // Not a CD-ROM: Debian's cloud kernel has no driver for the SATA one. cloud-init finds it by label.
        let layer = Layer { path: seed.clone(), format: DiskFormat::Raw };
        let mut node = read_only(&layer, &[])?;
        node["node-name"] = json!("seed");
        args.add("-blockdev", node.to_string());
        args.device(json!({"driver": "virtio-blk-pci", "drive": "seed"}));
    }
    Ok(())
}

/// The name of a further disk's node: the same whatever other disks there are.
pub(super) fn node_name(disk: &Disk) -> String {
    let digest = sha2::Sha256::digest(disk.path.as_os_str().as_encoded_bytes());
    format!("disk-{}", hex(&digest[..8]))
}

/// A disk as a node of this name. What the guest frees, the host gets back.
///
/// # Errors
/// For a path that is not UTF-8.
pub(super) fn block_node(disk: &Disk, node: &str) -> Result<Value> {
    if disk.read_only {
        let mut value = read_only(&Layer { path: disk.path.clone(), format: disk.format }, &disk.chain)?;
        value["node-name"] = json!(node);
        return Ok(value);
    }
    let file = json!({"driver": "file", "filename": text(&disk.path)?, "discard": "unmap"});
    let mut value = json!({"driver": disk.format.name(), "node-name": node, "discard": "unmap", "file": file});
    if disk.format == DiskFormat::Qcow2 {
        value["backing"] = backing(&disk.chain)?;
    }
    Ok(value)
}

fn read_only(layer: &Layer, beneath: &[Layer]) -> Result<Value> {
    let file = json!({"driver": "file", "filename": text(&layer.path)?, "read-only": true});
    let mut value = json!({"driver": layer.format.name(), "read-only": true, "file": file});
    if layer.format == DiskFormat::Qcow2 {
        value["backing"] = backing(beneath)?;
    }
    Ok(value)
}

/// Always said, `null` included: QEMU then never follows what the file's own header names.
fn backing(chain: &[Layer]) -> Result<Value> {
    match chain {
        [] => Ok(Value::Null),
        [layer, beneath @ ..] => read_only(layer, beneath),
    }
}

fn consoles(run: &RuntimeFiles, args: &mut Args) -> Result<()> {
    // A socket that also logs: whether or not somebody is connected. It does so to its standard output, which is the
    // keeper's (`keeper.rs`): a file would grow without end.
    let console = comma(text(&run.console())?);
    args.add(
        "-chardev",
        format!("socket,id=console,path={console},server=on,wait=off,logfile=/dev/stdout,logappend=on"),
    );
    args.add("-serial", "chardev:console");
    let qmp = comma(text(&run.qmp())?);
    args.add("-chardev", format!("socket,id=qmp,path={qmp},server=on,wait=off"));
    args.add("-mon", "chardev=qmp,mode=control");
    Ok(())
}

/// The machine and its memory. `pc.ram` is the name that the memory has without
/// an object of its own as well: what was saved with one loads without, and the other way round.
fn memory(plan: &GuestPlan, begin: Begin<'_>, args: &mut Args) -> Result<()> {
    let size = mebibytes(plan)?;
    args.add("-m", format!("size={size}M"));
    // Private: what a guest writes goes to pages of its own, and the file stays as it is.
    let (path, access) = match begin {
        Begin::BootInto(path) => (path, "share=on"),
        Begin::Empty(Some(path)) => (path, "share=off,readonly=on,rom=off"),
        Begin::Boot | Begin::Empty(None) => {
            args.add("-machine", system::machine(plan));
            return Ok(());
        }
    };
    let path = comma(text(path)?);
    args.add("-object", format!("memory-backend-file,id=pc.ram,size={size}M,mem-path={path},{access}"));
    args.add("-machine", format!("{},memory-backend=pc.ram", system::machine(plan)));
    Ok(())
}

/// The TPM, at the socket of its own process.
fn tpm(plan: &GuestPlan, run: &RuntimeFiles, args: &mut Args) -> Result<()> {
    if !plan.platform.tpm {
        return Ok(());
    }
    args.add("-chardev", format!("socket,id=tpm,path={}", comma(text(&run.tpm())?)));
    args.add("-tpmdev", "emulator,id=tpm0,chardev=tpm");
    args.device(json!({"driver": system::tpm(plan.arch), "tpmdev": "tpm0"}));
    Ok(())
}

/// The firmware and its variables, as the two chips that [`system::machine`] names.
fn flash(plan: &GuestPlan, args: &mut Args) -> Result<()> {
    let Some(flash) = &plan.platform.flash else { return Ok(()) };
    let node = |name: &str, path: &Path, format: DiskFormat, read_only: bool| -> Result<String> {
        let file = json!({"driver": "file", "filename": text(path)?, "read-only": read_only});
        let mut node = json!({"driver": format.name(), "node-name": name, "read-only": read_only, "file": file});
        if format == DiskFormat::Qcow2 {
            node["backing"] = Value::Null;
        }
        Ok(node.to_string())
    };
    args.add("-blockdev", node("firmware", &flash.code, flash.code_format, true)?);
    args.add("-blockdev", node("variables", &flash.vars, flash.vars_format, false)?);
    if plan.platform.firmware == Firmware::UefiSecure && plan.arch == Arch::Amd64 {
        args.add("-global", "driver=cfi.pflash01,property=secure,value=on");
    }
    Ok(())
}

/// The way to the service in the guest that makes a resumed one a machine of its own.
fn renewal(run: &RuntimeFiles, args: &mut Args) -> Result<()> {
    let path = comma(text(&run.renewal())?);
    args.add("-chardev", format!("socket,id=renewal,path={path},server=on,wait=off"));
    args.device(json!({"driver": "virtio-serial-pci", "max_ports": 2}));
    args.device(json!({"driver": "virtserialport", "chardev": "renewal", "name": CHANNEL}));
    Ok(())
}

/// Escapes a value for QEMU's `key=value,…` lists.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::usage(format!("the path {path:?} is not UTF-8")))
}

fn mebibytes(plan: &GuestPlan) -> Result<u64> {
    const MIB: u64 = crate::base::ByteSize::MIB;
    if plan.memory.0 == 0 || !plan.memory.0.is_multiple_of(MIB) {
        return Err(Error::usage(format!("memory of {} bytes is not a whole number of MiB", plan.memory.0)));
    }
    Ok(plan.memory.0 / MIB)
}

#[cfg(test)]
mod tests;
