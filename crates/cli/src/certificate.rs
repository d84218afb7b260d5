//! `mayfly certificate`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mayfly_api::{CertificateFormat, CertificateRequest};
use mayfly_model::{ServiceName, Thumbprint};
use mayfly_secrets::envelope::{self, Cipher};

use crate::arguments::CertificateCommand;
use crate::connection::Connection;
use crate::output;

/// Most bytes of a file that is taken for a certificate.
const FILE_BYTES_MAX: u64 = 256 << 10;

pub async fn run(connection: &Connection, command: CertificateCommand) -> anyhow::Result<()> {
    let client = &connection.client;
    match command {
        CertificateCommand::Add { service, file, password_file } => {
            let request = read(&file, password_file.as_deref())?;
            let added = client.certificate_add(&service, &request).await?;
            // The thumbprint alone, for scripts.
            eprintln!("added to {service}: {}, good until {}; its thumbprint:", added.subject, added.not_after);
            output::line(added.thumbprint.as_str())
        }
        CertificateCommand::List { service } => {
            let all = client.certificate_list(&service).await?;
            output::list(connection.output, &all, &["thumbprint", "subject", "ends", "added"], |one| {
                let (ends, added) = (one.not_after.clone(), one.added.clone());
                vec![one.thumbprint.to_string(), one.subject.clone(), ends, added]
            })
        }
        CertificateCommand::Delete { service, thumbprint } => {
            client.certificate_delete(&service, &thumbprint).await?;
            output::line(&format!("the certificate {thumbprint} of {service} is deleted"))
        }
        CertificateCommand::Encrypt { service, thumbprint } => encrypt(connection, &service, &thumbprint).await,
    }
}

fn read(file: &Path, password_file: Option<&Path>) -> anyhow::Result<CertificateRequest> {
    let read = |path: &Path| -> anyhow::Result<Vec<u8>> {
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        ensure!(size <= FILE_BYTES_MAX, "{} has {size} bytes, too many for a certificate", path.display());
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let bytes = read(file)?;
    let is_pem = bytes.windows(11).any(|part| part == b"-----BEGIN ");
    let password = match password_file {
        None => String::new(),
        Some(path) => {
            let text = String::from_utf8(read(path)?).with_context(|| format!("{} is not text", path.display()))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
    };
    let format = if is_pem { CertificateFormat::Pem } else { CertificateFormat::Pfx };
    Ok(CertificateRequest { format, data: STANDARD.encode(bytes), password })
}

/// Encrypts what stands on standard input to a service's certificate; only hosts of its guests can read it again.
async fn encrypt(connection: &Connection, service: &ServiceName, thumbprint: &Thumbprint) -> anyhow::Result<()> {
    let all = connection.client.certificate_list(service).await?;
    let Some(one) = all.iter().find(|one| one.thumbprint == *thumbprint) else {
        bail!("{service} has no certificate {thumbprint}; `mayfly certificate list {service}` shows those it has");
    };
    let mut password = String::new();
    std::io::stdin().take(4096).read_to_string(&mut password).context("cannot read the password")?;
    let password = password.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "there is no password on standard input: `… encrypt {service} {thumbprint} < FILE`");
    let sealed = envelope::seal(&STANDARD.decode(&one.certificate)?, Cipher::Aes256, password.as_bytes())?;
    output::line(&STANDARD.encode(sealed))
}
