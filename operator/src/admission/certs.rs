//! The webhook's certificates: made here, shared by the replicas, replaced without a gap.
//!
//! # How a rotation loses no call
//! The API server must trust a certificate *before* it is served, and learns what to trust some time
//! after we say so. So an authority is published one whole period before its first use: the bundle
//! always holds the previous, the current and the **next** authority. A rotation signs a serving
//! certificate with the next one, which the API server has trusted for two thirds of a life by then,
//! and publishes the one after. Replicas that still serve the old certificate are still trusted.
//!
//! An authority signs one certificate and its key is dropped in the same step; only the next one's
//! key is kept. This file is pure: time and what is stored come in, what to store goes out.
//! [`keeper`] does the I/O.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::parse_x509_certificate;

pub use keeper::Keeper;

mod keeper;
#[cfg(test)]
mod tests;

/// An authority lives for so many lives of a serving certificate: one as the next, one as the
/// current, and twice that to spare, for operators that were away.
const AUTHORITY_LIVES: u32 = 4;
/// How many authorities the bundle holds: previous, current, next.
const BUNDLED: usize = 3;
/// Clocks of API servers may be behind ours by this.
const BACKDATE: Duration = Duration::from_secs(3600);

const BUNDLE: &str = "ca.crt";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERT: &str = "next-ca.crt";
const NEXT_KEY: &str = "next-ca.key";

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One could not be made.
    #[error("could not make a certificate for {names:?}")]
    Make {
        /// The names it was for.
        names: Vec<String>,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// What is stored is not what we store.
    #[error("the Secret's entry \"{0}\" is missing or cannot be read")]
    Unreadable(&'static str),
    /// The key and certificate do not make a server.
    #[error("the certificate cannot be served")]
    Serve(#[source] rustls::Error),
}

/// What the certificates are for.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// DNS names and addresses; the first is the subject.
    pub names: Vec<String>,
    /// For how long a serving certificate is valid.
    pub life: Duration,
}

/// Everything the replicas share. `Debug` shows no keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// What to trust, as PEM: previous, current and next authority.
    pub bundle: String,
    /// The serving certificate, as PEM.
    pub cert: String,
    key: String,
    next_cert: String,
    next_key: String,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// What to do about the material.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Replace it.
    Now,
    /// Look again after this.
    In(Duration),
}

impl Material {
    /// The first of its kind: nothing to go on from.
    ///
    /// # Errors
    /// When a name is not a name.
    pub fn first(purpose: &Purpose, now: i64) -> Result<Self, Error> {
        let current = Authority::new(purpose, now)?;
        Self::signed_by(current, purpose, now, "")
    }

    /// The material after this one. Fresh authorities are made when the next one's time is over.
    ///
    /// # Errors
    /// When a name is not a name.
    pub fn rotated(&self, purpose: &Purpose, now: i64) -> Result<Self, Error> {
        let next = Authority::stored(&self.next_cert, &self.next_key);
        let current = match next {
            Some(next) if next.not_after > now + seconds(purpose.life / 3) => next,
            _ => Authority::new(purpose, now)?,
        };
        Self::signed_by(current, purpose, now, &self.bundle)
    }

    fn signed_by(
        current: Authority,
        purpose: &Purpose,
        now: i64,
        trusted: &str,
    ) -> Result<Self, Error> {
        let next = Authority::new(purpose, now)?;
        let (cert, key) = current.sign(purpose, now)?;
        let mut bundle: Vec<String> = split(trusted)
            .filter(|cert| not_after(cert).is_some_and(|end| end > now))
            .filter(|cert| *cert != current.cert)
            .collect();
        bundle.extend([current.cert, next.cert.clone()]);
        let surplus = bundle.len().saturating_sub(BUNDLED);
        let bundle = bundle.split_off(surplus).concat();
        Ok(Material { bundle, cert, key, next_cert: next.cert, next_key: next.key })
    }

    /// When to replace it: after two thirds of its life, or at once when it names the wrong names.
    pub fn due(&self, purpose: &Purpose, now: i64) -> Due {
        let Some((start, end)) = validity(&self.cert) else { return Due::Now };
        // The start was set back, and the life may have been configured anew since.
        let life = (end - start - seconds(BACKDATE)).min(seconds(purpose.life)).max(1);
        let left_at_renewal = (life / 3).max(1);
        match end - left_at_renewal - now {
            wait if wait > 0 && self.names_are(purpose) && end - now <= life + 1 => {
                Due::In(Duration::from_secs(wait.unsigned_abs()))
            }
            _ => Due::Now,
        }
    }

    /// When the serving certificate ends, in seconds of 1970.
    pub fn not_after(&self) -> i64 {
        not_after(&self.cert).unwrap_or_default()
    }

    /// Whether what is trusted includes the authority that will sign next.
    pub fn next_is_in(&self, trusted: &str) -> bool {
        split(trusted).any(|cert| cert == self.next_cert)
    }

    fn names_are(&self, purpose: &Purpose) -> bool {
        let Ok(wanted) = CertificateParams::new(purpose.names.clone()) else { return false };
        let Some(der) = der(&self.cert) else { return false };
        let Ok((_, cert)) = parse_x509_certificate(&der) else { return false };
        let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
        names.value.general_names.len() == wanted.subject_alt_names.len()
            && purpose
                .names
                .iter()
                .all(|name| names.value.general_names.iter().any(|there| names_equal(there, name)))
    }

    /// Reads what a Secret holds.
    ///
    /// # Errors
    /// When an entry is missing or is not what we write.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self, Error> {
        let text = |name: &'static str| {
            let bytes = data.get(name).ok_or(Error::Unreadable(name))?;
            String::from_utf8(bytes.0.clone()).map_err(|_| Error::Unreadable(name))
        };
        let material = Material {
            bundle: text(BUNDLE)?,
            cert: text(CERT)?,
            key: text(KEY)?,
            next_cert: text(NEXT_CERT)?,
            next_key: text(NEXT_KEY)?,
        };
        material.server_config()?;
        Ok(material)
    }

    /// What to write into the Secret.
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        [
            (BUNDLE, &self.bundle),
            (CERT, &self.cert),
            (KEY, &self.key),
            (NEXT_CERT, &self.next_cert),
            (NEXT_KEY, &self.next_key),
        ]
        .map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())))
        .into()
    }

    /// A TLS server with the serving certificate: TLS 1.2 or newer, our one provider.
    ///
    /// # Errors
    /// When key and certificate do not fit.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, Error> {
        let cert = der(&self.cert).ok_or(Error::Unreadable(CERT))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|_| Error::Unreadable(KEY))?;
        let provider = rustls::crypto::ring::default_provider().into();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::Serve)?
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .map_err(Error::Serve)?;
        config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
        Ok(config)
    }
}

/// An authority that has not signed yet.
struct Authority {
    cert: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: i64,
}

impl Authority {
    fn new(purpose: &Purpose, now: i64) -> Result<Self, Error> {
        let make = |source| Error::Make { names: purpose.names.clone(), source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        // A name of its own, so that verifiers find the right one of the bundle at once.
        let tail = key.public_key_raw().iter().rev().take(8);
        let id: String = tail.map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("holdfast-webhook-ca-{id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let not_after = now + seconds(purpose.life * AUTHORITY_LIVES);
        span(&mut params, now, not_after);
        let cert = params.self_signed(&key).map_err(make)?.pem();
        let key_pem = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        Ok(Authority { cert, key: key_pem, issuer, not_after })
    }

    /// One that was published earlier, if it can be used.
    fn stored(cert: &str, key: &str) -> Option<Self> {
        let issuer = Issuer::from_ca_cert_pem(cert, KeyPair::from_pem(key).ok()?).ok()?;
        let not_after = not_after(cert)?;
        Some(Authority { cert: cert.to_owned(), key: key.to_owned(), issuer, not_after })
    }

    /// A serving certificate and its key. It never outlives its authority.
    fn sign(&self, purpose: &Purpose, now: i64) -> Result<(String, String), Error> {
        let make = |source| Error::Make { names: purpose.names.clone(), source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::new(purpose.names.clone()).map_err(make)?;
        let subject = purpose.names.first().map_or("holdfast-webhook", String::as_str);
        // A subject has at most 64 characters; clients look at the alternative names.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.get(..64).unwrap_or(subject));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        span(&mut params, now, (now + seconds(purpose.life)).min(self.not_after));
        let cert = params.signed_by(&key, &self.issuer).map_err(make)?;
        Ok((cert.pem(), key.serialize_pem()))
    }
}

fn span(params: &mut CertificateParams, now: i64, not_after: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |s: i64| epoch + Duration::from_secs(s.max(0).unsigned_abs());
    params.not_before = at(now - seconds(BACKDATE));
    params.not_after = at(not_after);
}

fn seconds(duration: Duration) -> i64 {
    duration.as_secs().try_into().unwrap_or(i64::MAX / 8)
}

fn der(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

fn validity(pem: &str) -> Option<(i64, i64)> {
    let der = der(pem)?;
    let (_, cert) = parse_x509_certificate(&der).ok()?;
    Some((cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp()))
}

fn not_after(pem: &str) -> Option<i64> {
    validity(pem).map(|(_, end)| end)
}

/// The certificates of a bundle, each as PEM.
fn split(bundle: &str) -> impl Iterator<Item = String> + '_ {
    const END: &str = "-----END CERTIFICATE-----";
    bundle.split_inclusive(END).filter(|part| part.contains(END)).map(|part| {
        let mut cert = part.trim_start().to_owned();
        cert.push('\n');
        cert
    })
}

fn names_equal(there: &x509_parser::prelude::GeneralName<'_>, name: &str) -> bool {
    use x509_parser::prelude::GeneralName;
    match there {
        GeneralName::DNSName(dns) => *dns == name,
        GeneralName::IPAddress(bytes) => match name.parse() {
            Ok(std::net::IpAddr::V4(ip)) => *bytes == ip.octets(),
            Ok(std::net::IpAddr::V6(ip)) => *bytes == ip.octets(),
            Err(_) => false,
        },
        _ => false,
    }
}
