//! A certificate authority for one test.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// PEM files of one certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// An authority with its files in a directory of its own, removed when dropped.
pub struct Certificates {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// Makes a new authority and the broker's certificate for localhost and 127.0.0.1.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut params = named("Larder test authority", Vec::new());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.self_signed(&key).expect("the authority signs itself");
        fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("the directory is writable");
        let certificates = Self { directory, issuer: Issuer::new(params, key) };
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        certificates.issue("broker", named("broker", names), &[ExtendedKeyUsagePurpose::ServerAuth]);
        certificates
    }

    /// Where all the files are: ca.pem, broker.pem, broker.key, and those of the nodes.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The broker's identity.
    pub fn broker(&self) -> Identity {
        self.identity("broker")
    }

    /// Makes a client certificate with this common name.
    pub fn node(&self, name: &str) -> Identity {
        self.issue(name, named(name, Vec::new()), &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// Makes the certificate of a node that is a broker too, on localhost.
    pub fn node_with_broker(&self, name: &str) -> Identity {
        let purposes = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, named(name, vec!["localhost".to_owned()]), &purposes)
    }

    fn identity(&self, name: &str) -> Identity {
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        Identity { certificate: file("pem"), key: file("key") }
    }

    fn issue(
        &self,
        name: &str,
        mut params: CertificateParams,
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Identity {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes.to_vec();
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs");
        let identity = self.identity(name);
        fs::write(&identity.certificate, certificate.pem()).expect("the directory is writable");
        fs::write(&identity.key, key.serialize_pem()).expect("the directory is writable");
        identity
    }
}

fn named(name: &str, alternatives: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(alternatives).expect("the names are plain");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
