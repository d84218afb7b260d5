//! What a certificate says.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::IdentityError;

/// From when to when a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: u64,
    /// The last second.
    pub until: u64,
}

impl Validity {
    /// What a certificate says.
    ///
    /// # Errors
    /// When it is not one.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Validity, IdentityError> {
        Ok(validity(&parse(certificate)?))
    }

    /// The moment nearest to `now` at which it is valid.
    pub fn nearest(self, now: u64) -> u64 {
        now.clamp(self.from, self.until.max(self.from))
    }
}

/// Whether a certificate should be renewed: after a third of its life, or when the clock says that it has not begun. There
/// are two thirds left to try again in.
pub fn is_due(validity: Validity, now: u64) -> bool {
    now < validity.from || now >= validity.from + validity.until.saturating_sub(validity.from) / 3
}

/// Whom a certificate was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The host's name.
    pub host: String,
    /// Which time of its joining this is from.
    pub enrolment: u64,
    /// When it is valid.
    pub validity: Validity,
}

impl Enrolled {
    /// What a host's certificate says. Whether the authority has signed it is another question.
    ///
    /// # Errors
    /// When it is not a host's certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Enrolled, IdentityError> {
        let parsed = parse(certificate)?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let name = names.and_then(|names| match names.value.general_names.as_slice() {
            [GeneralName::DNSName(name)] => name.strip_suffix(HOST_SUFFIX),
            _ => None,
        });
        let host = name.ok_or_else(|| IdentityError::unusable("a certificate", "it is not a host's"))?.to_owned();
        let serial = parsed.tbs_certificate.raw_serial();
        // A leading zero byte only says that the number is not negative.
        let serial = serial.strip_prefix(&[0]).unwrap_or(serial);
        let enrolment = match serial.first_chunk::<9>() {
            Some([SERIAL_MARK, rest @ ..]) => u64::from_be_bytes(*rest),
            _ => return Err(IdentityError::unusable("a certificate", "its serial number is none of ours")),
        };
        Ok(Enrolled { host, enrolment, validity: validity(&parsed) })
    }
}

/// What follows a host's name in its certificate.
pub(crate) const HOST_SUFFIX: &str = ".host.mayfly.internal";
/// The first byte of a serial number, which keeps it positive and of one length.
pub(crate) const SERIAL_MARK: u8 = 0x40;

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(IdentityError::unusable("a certificate", error)),
    }
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    Validity {
        from: seconds(certificate.validity().not_before.timestamp()),
        until: seconds(certificate.validity().not_after.timestamp()),
    }
}
