//! TLS of a check: whom it trusts, whom it asks for, who it is.
//!
//! Files are read with the configuration: one that cannot be used is an error
//! before anything begins. Without `ca` the system's certificates count (by
//! `rustls-native-certs`), not a set that is built in: a company's own CA is there,
//! and what the system stops trusting the agent does too, without a new version.
//!
//! Sessions are not resumed. A resumed one shows no certificate, and a check is to see
//! what a new client sees: that it has expired, or is another's. Who wants it cheap
//! reuses connections.

use std::{fmt, fs, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::config::{error::Fault, raw, scalar::word};

/// How a check encrypts.
#[derive(Clone)]
pub struct Tls {
    sni: Option<ServerName<'static>>,
    verify: bool,
    client: Arc<ClientConfig>,
    /// What the files held, so that a renewed certificate is a change.
    files: Vec<Vec<u8>>,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.sni == other.sni
            && self.verify == other.verify
            && self.client.alpn_protocols == other.client.alpn_protocols
            && self.files == other.files
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest holds a private key.
        f.debug_struct("Tls")
            .field("sni", &self.sni)
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// The name that is asked for and must be in the certificate, unless it is the host.
    pub fn sni(&self) -> Option<&ServerName<'static>> {
        self.sni.as_ref()
    }
    /// Must the certificate be good?
    pub fn verify(&self) -> bool {
        self.verify
    }
    /// All of it, for a handshake.
    pub fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    /// Offers protocols by ALPN.
    pub(super) fn offer(&mut self, protocols: &[&[u8]]) {
        let mut client = ClientConfig::clone(&self.client);
        client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        self.client = Arc::new(client);
    }

    pub(super) fn parse(field: &str, raw: &raw::Tls) -> Result<Self, Fault> {
        let sni = match &raw.sni {
            Some(text) => Some(name(&format!("{field}.sni"), text)?),
            None => None,
        };
        let verify = word(
            &format!("{field}.verify"),
            raw.verify.as_deref().unwrap_or("true"),
            &[
                ("true", true),
                ("on", true),
                ("false", false),
                ("off", false),
            ],
        )?;
        let provider = Arc::new(ring::default_provider());
        let verifier = verifier(field, raw, verify, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(field, &error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut client = match (&raw.certificate, &raw.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(chain), Some(key)) => {
                let chain = certificates(&format!("{field}.certificate"), chain)?;
                let field = format!("{field}.key");
                let file = absolute(&field, key)?;
                let parsed = PrivateKeyDer::from_pem_slice(&read(&field, file)?)
                    .map_err(|error| not_pem(&field, key, &error, "a private key"))?;
                builder
                    .with_client_auth_cert(chain, parsed)
                    .map_err(|error| {
                        let accepted = "the private key of `certificate`";
                        Fault::new(field, key, error.to_string(), accepted)
                    })?
            }
            (Some(_), None) | (None, Some(_)) => {
                return Err(Fault::absent(
                    field,
                    "one of `certificate` and `key` without the other",
                    "both, or neither",
                ));
            }
        };
        client.resumption = Resumption::disabled();
        let mut files = Vec::new();
        for (key, file) in [
            ("ca", &raw.ca),
            ("certificate", &raw.certificate),
            ("key", &raw.key),
        ] {
            let field = format!("{field}.{key}");
            files.push(match file {
                Some(file) => read(&field, absolute(&field, file)?)?,
                None => Vec::new(),
            });
        }
        Ok(Self {
            sni,
            verify,
            client: Arc::new(client),
            files,
        })
    }
}

fn verifier(
    field: &str,
    raw: &raw::Tls,
    verify: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Fault> {
    if !verify {
        if let Some(ca) = &raw.ca {
            return Err(Fault::new(
                format!("{field}.ca"),
                ca,
                "with verify: false nothing is verified",
                "no `ca`, or verify: true",
            ));
        }
        return Ok(Arc::new(Anybody(Arc::clone(provider))));
    }
    let mut roots = RootCertStore::empty();
    match &raw.ca {
        Some(file) => {
            let field = format!("{field}.ca");
            for certificate in certificates(&field, file)? {
                roots.add(certificate).map_err(|error| {
                    let accepted = "certificates of authorities, PEM";
                    Fault::new(&field, file, error.to_string(), accepted)
                })?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            // One that nobody can read is not the agent's business; none at all is.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(Fault::absent(
                    format!("{field}.ca"),
                    "the system has no certificates of authorities (/etc/ssl/certs)",
                    "a file of them, or verify: false",
                ));
            }
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
        .build()
        .map_err(|error| unusable(field, &error))?;
    Ok(verifier)
}

fn unusable(field: &str, error: &impl fmt::Display) -> Fault {
    Fault::absent(field, error.to_string(), "TLS settings that fit together")
}

/// A name as it stands in a certificate.
fn name(field: &str, text: &str) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        Fault::new(
            field,
            text,
            "not a name that a certificate could have",
            "a DNS name or an IP address",
        )
    })
}

fn absolute<'a>(field: &str, file: &'a str) -> Result<&'a Path, Fault> {
    let path = Path::new(file);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Fault::new(
        field,
        file,
        "not an absolute path",
        "an absolute path as /etc/probe/ca.pem",
    ))
}

fn read(field: &str, file: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(file).map_err(|error| {
        Fault::new(
            field,
            file.display(),
            format!("cannot be read: {error}"),
            "a file in PEM",
        )
    })
}

fn not_pem(field: &str, file: &str, error: &impl fmt::Display, what: &str) -> Fault {
    Fault::new(field, file, error.to_string(), format!("{what}, PEM"))
}

fn certificates(field: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let bytes = read(field, absolute(field, file)?)?;
    let list = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| not_pem(field, file, &error, "certificates"))?;
    if list.is_empty() {
        return Err(Fault::new(
            field,
            file,
            "holds no certificate",
            "certificates, PEM",
        ));
    }
    Ok(list)
}

/// Takes any certificate. That its owner holds the key is still shown.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
