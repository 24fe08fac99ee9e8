//! The cryptography of TLS: one provider for the whole program.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};

/// The provider, which from here on is also that of every library that asks for the program's own.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        // Nobody else installs one; should somebody, theirs is as good.
        let _ = ring::default_provider().install_default();
        CryptoProvider::get_default().map_or_else(|| Arc::new(ring::default_provider()), Arc::clone)
    }))
}
