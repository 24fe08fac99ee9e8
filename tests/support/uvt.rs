//! A home with uvtool's folder in it, and a libvirt of the test's own with the one and only pool `uvtool`.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::sandbox::Sandbox;
use super::{Home, VIRGA, names, run, small_image, text, write};

pub const KVM: &str = "uvt-kvm";
pub const STREAMS: &str = "uvt-simplestreams-libvirt";

/// A home with uvtool's folder in it, and a libvirt.
pub struct Uvt {
    // Before the sandbox: its guests go while there is still a daemon.
    pub home: Home,
    sandbox: Sandbox,
}

impl Uvt {
    pub fn new() -> Self {
        let home = Home::with_key();
        let sandbox = Sandbox::new(&home.path("home"));
        let home = home.inside(&sandbox);
        // QEMU's user has to get to the disks.
        std::fs::set_permissions(home.path(""), std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::create_dir(home.path("bin")).unwrap();
        for tool in [KVM, STREAMS] {
            symlink(VIRGA, home.path("bin").join(tool)).unwrap();
        }
        Uvt { home, sandbox }
    }

    fn command(&self, tool: &str, args: &[&str]) -> Command {
        self.program(&self.home.path("bin").join(tool), args)
    }

    /// Any program, where the tools run and as they do.
    pub fn program(&self, program: &Path, args: &[&str]) -> Command {
        let like = self.home.virga(args);
        let mut command = self.home.beside(program.to_str().unwrap());
        command.args(args).env_clear().stdin(Stdio::null()).current_dir(self.home.path(""));
        for (name, value) in like.get_envs() {
            command.env(name, value.unwrap());
        }
        command.env("VIRGA_UVTOOL_HOME", self.home.path("uvt"));
        command
    }

    pub fn run(&self, tool: &str, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(tool, args).output().unwrap();
        let (stdout, stderr) = (text(&stdout), text(&stderr));
        assert!(!stderr.contains("panicked") && !stderr.contains("Traceback"), "{stderr}");
        (status.code().unwrap(), stdout, stderr)
    }

    /// Ends with 0; returns stdout.
    #[track_caller]
    pub fn ok(&self, tool: &str, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(tool, args);
        assert_eq!(code, 0, "{tool} {args:?}: {stdout}{stderr}");
        stdout
    }

    /// Ends with 1, says nothing on stdout, and this as the first line of stderr.
    #[track_caller]
    pub fn fails(&self, tool: &str, args: &[&str], message: &str) -> String {
        let (code, stdout, stderr) = self.run(tool, args);
        assert_eq!((code, stdout.as_str()), (1, ""), "{tool} {args:?}: {stderr}");
        let first = stderr.lines().find(|line| line.starts_with(tool)).unwrap_or_else(|| panic!("{stderr}"));
        assert_eq!(first, format!("{tool}: error: {message}"), "{tool} {args:?}");
        stderr
    }

    #[track_caller]
    pub fn virsh(&self, args: &[&str]) -> String {
        self.sandbox.run("virsh", &[&["-c", "qemu:///system"], args].concat())
    }

    pub fn volumes(&self) -> Vec<String> {
        names(&self.home.path("uvt/images"))
    }

    pub fn metadata(&self) -> Vec<String> {
        names(&self.home.path("uvt/metadata"))
    }

    pub fn in_pool(&self, name: &str) -> PathBuf {
        self.home.path("uvt/images").join(name)
    }

    /// The pool by hand, as uvtool's package makes it.
    pub fn make_pool(&self) {
        let images = self.home.path("uvt/images");
        std::fs::create_dir_all(&images).unwrap();
        std::fs::create_dir_all(self.home.path("uvt/metadata")).unwrap();
        self.virsh(&["pool-define-as", "uvtool", "dir", "--target", images.to_str().unwrap()]);
        self.virsh(&["pool-start", "uvtool"]);
    }

    /// A volume by hand.
    pub fn volume(&self, name: &str, file: &Path) {
        let size = file.metadata().unwrap().len().to_string();
        self.virsh(&["vol-create-as", "uvtool", name, &size, "--format", "qcow2"]);
        self.virsh(&["vol-upload", "--pool", "uvtool", name, file.to_str().unwrap()]);
    }

    /// An image by hand, as uvtool writes it.
    pub fn image_by_hand(&self, name: &str, version: &str, release: &str) {
        let file = self.home.path("by-hand.qcow2");
        small_image(&file, "3M");
        self.volume(name, &file);
        let python = "import json, sys; json.dump(dict(a.split('=', 1) for a in sys.argv[2:]), open(sys.argv[1], 'w'), indent=4)";
        let path = self.home.path("uvt/metadata").join(name);
        let (version, release) = (format!("version_name={version}"), format!("release={release}"));
        let product = format!("product_name=local.virga:server:{}:amd64", &release["release=".len()..]);
        let keys =
            [product.as_str(), &version, &release, "arch=amd64", "label=release", "os=ubuntu", "ftype=disk1.img"];
        run("python3", ["-c", python, path.to_str().unwrap()].into_iter().chain(keys));
    }

    /// A domain by hand, with these disks and devices; it does not run.
    pub fn domain(&self, name: &str, devices: &str) {
        let file = self.home.path("domain.xml");
        let head = "<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>";
        write(&file, &format!("<domain type='qemu'><name>{name}</name>{head}<devices>{devices}</devices></domain>"));
        self.virsh(&["define", file.to_str().unwrap()]);
    }
}

impl Drop for Uvt {
    fn drop(&mut self) {
        let domains = self.sandbox.command("virsh").args(["-c", "qemu:///system", "list", "--all", "--name"]).output();
        for name in text(&domains.unwrap().stdout).lines().filter(|name| name.starts_with("vu-")) {
            let _ = self.run(KVM, &["destroy", name]);
        }
    }
}

/// `x-uvt-b64-` and what another program makes of it.
pub fn volume_name(text: &str) -> String {
    let python = "import base64, sys; print('x-uvt-b64-' + base64.urlsafe_b64encode(sys.argv[1].encode()).decode())";
    run("python3", ["-c", python, text]).trim().to_owned()
}
