use std::path::PathBuf;

use super::super::tests::plan;
use super::*;
use crate::base::nic::{Mac, Nic};
use crate::base::plan::Forward;
use crate::driver::accel::Accelerator;

/// What an ordinary guest is.
const MACHINE: &str = "q35,usb=off,vmport=off";

fn hostile() -> PathBuf {
    PathBuf::from("/a,b/c\"d' e\\f,file=/etc/passwd")
}

#[test]
fn hostile_paths_stay_one_value_each() {
    let mut plan = plan("web", &hostile(), &hostile().join("run"));
    plan.disks[0].chain = vec![
        Layer { path: hostile().join("middle"), format: DiskFormat::Qcow2 },
        Layer { path: hostile().join("base"), format: DiskFormat::Raw },
    ];
    plan.seed = Some(hostile().join("seed"));
    let args = argv(&plan, Accelerator::Tcg, Begin::Boot).unwrap();

    let nodes: Vec<Value> = values(&args, "-blockdev").map(|arg| serde_json::from_str(arg).unwrap()).collect();
    assert_eq!(nodes.len(), 2);
    let name = |value: &Value| PathBuf::from(value["file"]["filename"].as_str().unwrap());
    assert_eq!(name(&nodes[0]), plan.disks[0].path);
    let middle = &nodes[0]["backing"];
    assert_eq!(name(middle), hostile().join("middle"));
    assert_eq!((&middle["driver"], &middle["read-only"]), (&json!("qcow2"), &json!(true)));
    let base = &middle["backing"];
    assert_eq!(name(base), hostile().join("base"));
    assert_eq!((&base["driver"], base.get("backing")), (&json!("raw"), None));
    assert_eq!((&nodes[1]["driver"], &nodes[1]["read-only"]), (&json!("raw"), &json!(true)));

    // Every comma of a path is doubled, so that splitting at single ones gives the options we meant.
    let console = values(&args, "-chardev").find(|arg| arg.contains("id=console")).unwrap();
    let split: Vec<String> = console.replace(",,", "\0").split(',').map(|part| part.replace('\0', ",")).collect();
    assert!(split.contains(&"logfile=/dev/stdout".to_owned()), "{split:?}");
    assert!(split.iter().any(|part| part.starts_with("path=") && part.ends_with("/console")), "{split:?}");
    assert_eq!(split.len(), 7, "{split:?}");

    assert_eq!(root_disk(&args).as_deref(), plan.disks[0].path.to_str());
}

#[test]
fn a_disk_without_layers_never_follows_its_own_header() {
    let plan = plan("web", Path::new("/g"), Path::new("/r"));
    let args = argv(&plan, Accelerator::Kvm, Begin::Boot).unwrap();
    let root: Value = serde_json::from_str(values(&args, "-blockdev").next().unwrap()).unwrap();
    assert_eq!(root.get("backing"), Some(&Value::Null));
}

#[test]
fn what_every_guest_has() {
    let mut plan = plan("web", Path::new("/g"), Path::new("/r"));
    plan.cpus = 3;
    plan.forwards = vec![Forward { host: 8080, guest: 80 }, Forward { host: 0, guest: 443 }];
    let args = argv(&plan, Accelerator::Tcg, Begin::Boot).unwrap();
    let has = |flag: &str, value: &str| assert!(values(&args, flag).any(|v| v == value), "{flag} {value}: {args:#?}");
    has("-uuid", plan.id.as_str());
    has("-name", "guest=web,process=virga-web");
    has("-m", "size=128M");
    has("-smp", "3");
    has("-sandbox", SANDBOX);
    has("-pidfile", "/r/pid");
    has(
        "-netdev",
        "user,id=net0,restrict=off,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:0-:443",
    );
    has("-cpu", "max");
    assert!(args.iter().all(|arg| !arg.contains("0.0.0.0") && arg != "-daemonize"));
    let kvm = argv(&plan, Accelerator::Kvm, Begin::Boot).unwrap();
    assert!(values(&kvm, "-cpu").eq(["host"]) && values(&kvm, "-accel").eq(["kvm"]));
}

/// What the guest sends goes out to the judge and comes back behind it: the last filter is asked first.
#[test]
fn cards_and_their_judges() {
    let mut plan = plan("web", Path::new("/g"), Path::new("/r,un"));
    let card = |network: Network| Nic { mac: Mac::generate().unwrap(), network };
    let said = |plan: &GuestPlan| {
        let args = argv(plan, Accelerator::Tcg, Begin::Boot).unwrap();
        let all = |flag, what: &str| -> Vec<String> {
            values(&args, flag).filter(|value| value.contains(what)).map(str::to_owned).collect()
        };
        (all("-netdev", "restrict="), all("-chardev", "/frames"), all("-object", "filter-"))
    };
    plan.nics = vec![card(Network::User), card(Network::Full), card(Network::None), card(Network::User)];
    let (networks, sockets, filters) = said(&plan);
    let networks: Vec<&str> = networks.iter().map(|value| value.split(",hostfwd").next().unwrap()).collect();
    assert_eq!(
        networks,
        [
            "user,id=spare,restrict=on",
            "user,id=net0,restrict=off",
            "user,id=net1,restrict=off",
            "user,id=net2,restrict=on",
            "user,id=net3,restrict=off"
        ]
    );
    assert_eq!(sockets, ["out0", "back0", "out3", "back3"].map(|id| format!("socket,id={id},path=/r,,un/frames")));
    assert_eq!(
        filters[..2],
        [
            "filter-redirector,id=judge-back0,netdev=net0,queue=rx,indev=back0",
            "filter-redirector,id=judge-out0,netdev=net0,queue=rx,outdev=out0"
        ]
    );
    assert!(filters.len() == 4 && filters[3].contains("netdev=net3,queue=rx,outdev=out3"), "{filters:?}");
    plan.nics = vec![card(Network::None)];
    let (networks, sockets, filters) = said(&plan);
    assert!(networks[1].starts_with("user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"), "{networks:?}");
    assert!(sockets.is_empty() && filters.is_empty());
}

#[test]
fn what_cannot_be_said_is_refused() {
    use std::os::unix::ffi::OsStrExt as _;
    let good = plan("web", Path::new("/g"), Path::new("/r"));
    let mut bad = good.clone();
    bad.memory = crate::base::ByteSize(1 << 19);
    assert!(argv(&bad, Accelerator::Tcg, Begin::Boot).is_err());
    let mut bad = good;
    bad.disks[0].path = std::ffi::OsStr::from_bytes(b"/g/\xff").into();
    assert!(argv(&bad, Accelerator::Tcg, Begin::Boot).is_err());
}

#[test]
fn a_long_name_is_cut_as_the_kernel_cuts_it() {
    let name: GuestName = "a-rather-long-name".parse().unwrap();
    assert_eq!(process_name(&name), "virga-a-rather-");
}

#[test]
fn how_it_begins_decides_on_memory_and_networks() {
    let plan = plan("web", Path::new("/g"), Path::new("/r"));
    let memory = Path::new("/t/mem,ory");
    let said = |begin: Begin<'_>| {
        let args = argv(&plan, Accelerator::Tcg, begin).unwrap();
        let first = |flag: &str| values(&args, flag).next().unwrap_or_default().to_owned();
        (first("-object"), first("-incoming"), first("-netdev").contains("id=spare"), first("-machine"))
    };
    let ram = "memory-backend-file,id=pc.ram,size=128M,mem-path=/t/mem,,ory";
    let with_ram = format!("{MACHINE},memory-backend=pc.ram");
    let none = String::new;
    assert_eq!(said(Begin::Boot), (none(), none(), true, MACHINE.to_owned()));
    assert_eq!(said(Begin::Empty(None)), (none(), "defer".to_owned(), true, MACHINE.to_owned()));
    let template = (format!("{ram},share=on"), none(), false, with_ram.clone());
    assert_eq!(said(Begin::BootInto(memory)), template);
    let clone = (format!("{ram},share=off,readonly=on,rom=off"), "defer".to_owned(), true, with_ram);
    assert_eq!(said(Begin::Empty(Some(memory))), clone);
}
