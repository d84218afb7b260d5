//! `mayfly certificate …`.

use std::path::PathBuf;

use clap::Subcommand;
use mayfly_model::{ServiceName, Thumbprint};

#[derive(Subcommand)]
pub enum CertificateCommand {
    /// Give a service a certificate with its private key; configurations name it by its thumbprint, which is printed
    Add {
        /// The service
        service: ServiceName,
        /// A PKCS #12 archive (.pfx, .p12), or certificate and key as PEM
        file: PathBuf,
        /// The file whose first line opens the archive [default: the password is empty]
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List the certificates of a service
    List {
        /// The service
        service: ServiceName,
    },
    /// Delete a certificate that no deployment uses
    Delete {
        /// The service
        service: ServiceName,
        /// Its thumbprint
        thumbprint: Thumbprint,
    },
    /// Encrypt the password on standard input to a certificate, as AccountEncryptedPassword has it
    Encrypt {
        /// The service
        service: ServiceName,
        /// The thumbprint of the certificate that the role calls PasswordEncryption
        thumbprint: Thumbprint,
    },
}
