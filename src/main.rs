//! The `virga` program. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The KVM probe runs as a child of ours, so that a hanging one can be killed.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == virga::driver::kvm::CHILD_ARGUMENT) {
        return virga::driver::kvm::child_main();
    }
    virga::cli::run()
}
