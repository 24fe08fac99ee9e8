#![no_main]
mod checks;

use std::sync::LazyLock;

use virga::stream::key::Keyring;

static KEYRING: LazyLock<Keyring> =
    LazyLock::new(|| Keyring::from_bytes(include_bytes!("../keyring.gpg")).expect("the test's own keyring"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::clearsigned(bytes, &KEYRING));
