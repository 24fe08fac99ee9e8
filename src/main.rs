//! The `virga` program. Everything is in the library.

fn main() {}
