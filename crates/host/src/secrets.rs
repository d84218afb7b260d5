//! Secrets of VMs: certificates with their private keys, and passwords. They are asked of the controller when a guest needs
//! them and kept in memory only; what has to be a file for QEMU lies in a file system of memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mayfly_api::CertificateSecret;
use mayfly_model::{Admin, RemoteAccess, Thumbprint, VmGoal, VmId};
use mayfly_secrets::{KeyedCertificate, envelope, guest_pfx, hash_password};
use nix::mount::{MsFlags, mount};

use crate::agent::{Agent, lock};

/// How long the controller is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of files that hold secrets.
const FILES_MAX: &str = "mode=0700,size=64m";

/// What one VM needs.
pub(crate) struct VmSecrets {
    asked: Asked,
    /// The archive of its certificates.
    pub pfx: Arc<[u8]>,
    /// The password of its user for remote access.
    password: Option<Password>,
}

struct Password {
    clear: String,
    hash: String,
}

/// What was wanted when they were asked for.
#[derive(Clone, PartialEq, Eq)]
struct Asked {
    certificates: Vec<Thumbprint>,
    remote_access: Option<RemoteAccess>,
}

impl Asked {
    fn of(goal: &VmGoal) -> Asked {
        let mut certificates: Vec<Thumbprint> = Vec::new();
        for one in &goal.guest.certificates {
            if !certificates.contains(&one.thumbprint) {
                certificates.push(one.thumbprint.clone());
            }
        }
        Asked { certificates, remote_access: goal.guest.remote_access.clone() }
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<VmSecrets>>>>;

/// The secrets of the VMs of a host.
#[derive(Default)]
pub(crate) struct Secrets(Mutex<BTreeMap<VmId, Slot>>);

impl Secrets {
    /// Those of a VM, asked for if they are not here: by one at a time, however often a guest wants them.
    pub(crate) async fn of(&self, agent: &Agent, goal: &VmGoal) -> anyhow::Result<Arc<VmSecrets>> {
        let slot = Arc::clone(lock(&self.0).entry(goal.vm).or_default());
        let (mut held, asked) = (slot.lock().await, Asked::of(goal));
        if let Some(held) = held.as_ref().filter(|held| held.asked == asked) {
            return Ok(Arc::clone(held));
        }
        let answer = tokio::time::timeout(PATIENCE, agent.client.vm_secrets(goal.vm)).await;
        let answer = answer.context("the controller does not answer")?.context("its certificates cannot be had")?;
        let goal = goal.clone();
        let made = tokio::task::spawn_blocking(move || make(&goal, asked, &answer)).await??;
        Ok(Arc::clone(held.insert(Arc::new(made))))
    }

    /// Those of a VM, if they are here.
    fn held(&self, vm: VmId) -> Option<Arc<VmSecrets>> {
        let slot = lock(&self.0).get(&vm).cloned()?;
        slot.try_lock().ok()?.clone()
    }

    /// The goal of a guest that has a user for remote access, with that user in the form that all users have, and the
    /// password in clear text, which Windows needs.
    pub(crate) fn with_user(&self, mut goal: VmGoal) -> (VmGoal, Option<String>) {
        let Some(access) = goal.guest.remote_access.clone() else { return (goal, None) };
        let Some(held) = self.held(goal.vm) else { return (goal, None) };
        let Some(password) = held.password.as_ref().filter(|_| access.expires > today()) else { return (goal, None) };
        goal.guest.admin = Some(Admin {
            name: access.user,
            password_hash: Some(password.hash.clone()),
            ssh_keys: Vec::new(),
            expires: Some(access.expires),
        });
        (goal, Some(password.clear.clone()))
    }

    /// The VM is gone.
    pub(crate) fn forget(&self, vm: VmId) {
        lock(&self.0).remove(&vm);
    }
}

/// The day, as RFC 3339 writes it.
fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

fn make(goal: &VmGoal, asked: Asked, answer: &[CertificateSecret]) -> anyhow::Result<VmSecrets> {
    let certificates: Vec<KeyedCertificate> = answer.iter().map(decode).collect::<anyhow::Result<_>>()?;
    let got: Vec<Thumbprint> =
        certificates.iter().map(|one| Ok(Thumbprint::of(&one.public()?.sha1))).collect::<anyhow::Result<_>>()?;
    // The goal state may be older or newer than the answer; it comes again.
    ensure!(got == asked.certificates, "its certificates have just changed");
    let password = match &asked.remote_access {
        None => None,
        Some(access) => Some(password(goal, access, &certificates)?),
    };
    Ok(VmSecrets { asked, pfx: guest_pfx(&certificates)?.into(), password })
}

fn decode(secret: &CertificateSecret) -> anyhow::Result<KeyedCertificate> {
    let decode = |text: &String| STANDARD.decode(text).context("a certificate is not base64");
    Ok(KeyedCertificate {
        chain: secret.chain.iter().map(decode).collect::<anyhow::Result<_>>()?,
        key: decode(&secret.key)?,
    })
}

fn password(goal: &VmGoal, access: &RemoteAccess, certificates: &[KeyedCertificate]) -> anyhow::Result<Password> {
    let Some(wanted) = goal.guest.password_certificate() else { bail!("remote access has no certificate") };
    let is_it =
        |one: &&KeyedCertificate| one.public().is_ok_and(|public| Thumbprint::of(&public.sha1) == wanted.thumbprint);
    let certificate = certificates.iter().find(is_it).context("remote access has no certificate")?;
    let sealed = STANDARD.decode(&access.password).context("the password for remote access is not base64")?;
    let clear = envelope::open(&sealed, certificate).context("the password for remote access")?;
    let clear = String::from_utf8(clear).context("the password for remote access is not text")?;
    let hash = hash_password(&clear)?;
    Ok(Password { clear, hash })
}

/// The folder for files that must not outlive the host's power: a file system of memory.
///
/// # Errors
/// When it cannot be mounted.
pub(crate) fn folder(agent_folder: &Path) -> anyhow::Result<PathBuf> {
    let folder = agent_folder.join("secrets");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let here = nix::sys::statfs::statfs(&folder).with_context(|| format!("cannot inspect {}", folder.display()))?;
    if here.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("mayfly-secrets"), &folder, Some("tmpfs"), flags, Some(FILES_MAX))
            .with_context(|| format!("cannot mount a file system of memory at {}", folder.display()))?;
    }
    Ok(folder)
}
