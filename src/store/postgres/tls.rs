//! TLS to PostgreSQL by rustls, with `sslmode` as libpq defines it.
//!
//! | mode | encrypted | certificate |
//! |---|---|---|
//! | disable | no | |
//! | prefer (default) | if the server supports it | not checked |
//! | require | yes | checked as with verify-ca if there is a root certificate, else not checked |
//! | verify-ca | yes | issued by a root certificate |
//! | verify-full | yes | ... and for the host of the URL |
//!
//! The root certificates are those of `sslrootcert`, by default `~/.postgresql/root.crt`; `system` stands for
//! those of the system. Unlike OpenSSL, rustls does not look at the common name of a certificate: the host must be
//! a subject alternative name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::Environment;
use crate::data_dir::disk;

/// The value of `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            "allow" => Err("sslmode=allow is not supported; use prefer".to_owned()),
            _ => {
                Err("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned())
            }
        }
    }
}

/// The certificates that are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Roots {
    /// `~/.postgresql/root.crt`, if it exists.
    #[default]
    Default,
    /// Those of the operating system.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

impl Roots {
    /// The value of `sslrootcert`.
    pub(super) fn named(value: &str) -> Self {
        match value {
            "" => Self::Default,
            "system" => Self::System,
            path => Self::File(path.into()),
        }
    }
}

/// The parameters of TLS.
#[derive(Clone, Debug)]
pub(super) struct Ssl {
    pub(super) mode: Mode,
    pub(super) roots: Roots,
    /// PEM files of the certificate and the key by which the server authenticates this client.
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Default for Ssl {
    fn default() -> Self {
        Self {
            mode: Mode::Prefer,
            roots: Roots::Default,
            certificate: None,
            key: None,
        }
    }
}

/// The configuration for a connection. Files are read each time, because certificates are renewed.
pub(super) fn client_config(
    ssl: &Ssl,
    environment: Environment<'_>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier {
        trust: trust(ssl, environment)?,
        name: ssl.mode == Mode::VerifyFull,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&ssl.certificate, &ssl.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_slice(&read(key)?)
                .map_err(|error| cannot_read(key, &error))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| {
                    format!(
                        "cannot use the certificate {}: {error}",
                        certificate.display()
                    )
                })?
        }
        _ => builder.with_no_client_auth(),
    };
    // Required with sslnegotiation=direct.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

/// The root certificates by which the server's is checked; `None` if it is not checked.
fn trust(ssl: &Ssl, environment: Environment<'_>) -> Result<Option<Trust>, String> {
    let default = environment("HOME").map(|home| Path::new(&home).join(".postgresql/root.crt"));
    let required = matches!(ssl.mode, Mode::VerifyCa | Mode::VerifyFull);
    if !required && ssl.mode != Mode::Require {
        return Ok(None);
    }
    let path = match &ssl.roots {
        Roots::System => return system_trust().map(Some),
        Roots::File(path) => path.clone(),
        Roots::Default => match default {
            Some(path) if path.exists() => path,
            _ if !required => return Ok(None),
            _ => {
                return Err("there is no root certificate to check the server's by; name the file by sslrootcert=FILE, or the certificates of this system by sslrootcert=system".to_owned());
            }
        },
    };
    let certificates = certificates(&path)?;
    if certificates.is_empty() {
        return Err(format!("{} contains no certificate", path.display()));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    Ok(Some(Trust {
        roots,
        exact: certificates,
    }))
}

fn system_trust() -> Result<Trust, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let cause = found.errors.first().map(ToString::to_string);
        return Err(format!(
            "cannot read the root certificates of this system: {}",
            cause.unwrap_or_else(|| "none were found; install ca-certificates".to_owned())
        ));
    }
    Ok(Trust {
        roots,
        exact: Vec::new(),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| cannot_read(path, &error))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    disk::read(path).map_err(|error| cannot_read(path, &error))
}

fn cannot_read(path: &Path, cause: &dyn std::fmt::Display) -> String {
    format!("cannot read {}: {cause}", path.display())
}

#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// A server's own certificate that is in the file is trusted, too, even if it is marked as one of a
    /// certificate authority, as `openssl req -x509` does.
    exact: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Verifier {
    trust: Option<Trust>,
    /// Whether the certificate must be for the host.
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !trust.exact.contains(end_entity) {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &trust.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
