#![no_main]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("virga-fuzz-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("a temporary file");
    checks::qcow2(&path);
});
