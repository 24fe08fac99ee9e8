//! TLS to a daemon elsewhere: both ends show a certificate, and the server's is
//! the very one that was accepted when the remote was added.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::remotes::Identity;
use crate::base::{Context as _, Result, tls};

/// What is asked of a connection. `pinned`: the server's certificate; without it the system's authorities decide.
///
/// # Errors
/// For a client certificate that its key does not fit; without authorities.
pub(super) fn config(pinned: Option<CertificateDer<'static>>, identity: Identity) -> Result<ClientConfig> {
    let provider = tls::provider();
    let what = || format!("using the client certificate '{}'", identity.file.display());
    let verifier: Arc<dyn ServerCertVerifier> = match pinned {
        Some(certificate) => Arc::new(Pinned { certificate, algorithms: provider.signature_verification_algorithms }),
        None => Arc::new(Verifier::new(Arc::clone(&provider)).context(|| "reading the system's authorities".into())?),
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().context(what)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).context(what)?;
    // Web sockets begin as requests of this version.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts one certificate, byte for byte. Names and dates in it say nothing more: it was accepted as it is, and whoever
/// shows it has to prove that its key is theirs.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a connection failed because of the server's certificate, whatever lies over that error.
pub(super) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(TlsError::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // What such an error wraps is not its source, but itself.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    wrapped.is_some_and(|error| is_refusal(error)) || error.source().is_some_and(is_refusal)
}
