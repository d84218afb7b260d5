//! Secrets of VMs: certificates with their private keys, and passwords. They are asked of the controller when a guest needs
//! them and kept in memory only; what has to be a file for QEMU lies in a file system of memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
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

/// What is held of one VM, and whose turn it is to ask for it.
#[derive(Default)]
struct Slot {
    held: Mutex<Option<Arc<VmSecrets>>>,
    turn: tokio::sync::Mutex<()>,
    /// Why it could not be had the last time.
    trouble: Mutex<String>,
}

/// The secrets of the VMs of a host.
#[derive(Default)]
pub(crate) struct Secrets(Mutex<BTreeMap<VmId, Arc<Slot>>>);

impl Secrets {
    /// Those of a VM, asked for if they are not here: by one at a time, however often a guest wants them.
    pub(crate) async fn of(&self, agent: &Agent, goal: &VmGoal) -> anyhow::Result<Arc<VmSecrets>> {
        let slot = Arc::clone(lock(&self.0).entry(goal.vm).or_default());
        let _turn = slot.turn.lock().await;
        if let Some(held) = self.held(goal) {
            return Ok(held);
        }
        let fetched = fetch(agent, goal).await;
        let trouble = fetched.as_ref().err().map_or_else(String::new, |error| format!("{error:#}"));
        if *lock(&slot.trouble) != trouble && !trouble.is_empty() {
            tracing::warn!(vm = %goal.vm, error = trouble, "a guest's certificates cannot be had yet");
        }
        *lock(&slot.trouble) = trouble;
        let made = Arc::new(fetched?);
        *lock(&slot.held) = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Those of a VM, if they are here and are still what is wanted.
    fn held(&self, goal: &VmGoal) -> Option<Arc<VmSecrets>> {
        let slot = lock(&self.0).get(&goal.vm).cloned()?;
        let held = lock(&slot.held).clone();
        held.filter(|held| held.asked == Asked::of(goal))
    }

    /// Whether the guest's user for remote access, if it is to have one, is known here.
    pub(crate) fn know_user(&self, goal: &VmGoal) -> bool {
        goal.guest.remote_access.is_none() || self.held(goal).is_some()
    }

    /// The goal of a guest that has a user for remote access, with that user in the form that all users have, and the
    /// password in clear text, which Windows needs.
    pub(crate) fn with_user(&self, mut goal: VmGoal) -> (VmGoal, Option<String>) {
        let Some(access) = goal.guest.remote_access.clone() else { return (goal, None) };
        let Some(held) = self.held(&goal) else { return (goal, None) };
        let Some(password) = held.password.as_ref() else { return (goal, None) };
        let Some(expires) = day_after(&access.expires) else { return (goal, None) };
        goal.guest.admin = Some(Admin {
            name: access.user,
            password_hash: Some(password.hash.clone()),
            ssh_keys: Vec::new(),
            expires: Some(expires),
        });
        (goal, Some(password.clear.clone()))
    }

    /// The VM is gone.
    pub(crate) fn forget(&self, vm: VmId) {
        lock(&self.0).remove(&vm);
    }
}

async fn fetch(agent: &Agent, goal: &VmGoal) -> anyhow::Result<VmSecrets> {
    let (asked, goal) = (Asked::of(goal), goal.clone());
    let answer = tokio::time::timeout(PATIENCE, agent.client.vm_secrets(goal.vm)).await;
    let answer = answer.context("the controller does not answer")?.context("its certificates cannot be had")?;
    tokio::task::spawn_blocking(move || make(&goal, asked, &answer)).await?
}

/// The day after an account's last one; nothing if that is over already.
fn day_after(last: &str) -> Option<String> {
    let last: jiff::civil::Date = last.parse().ok()?;
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    (last >= today).then(|| last.tomorrow().ok()).flatten().map(|day| day.to_string())
}

fn make(goal: &VmGoal, asked: Asked, answer: &[CertificateSecret]) -> anyhow::Result<VmSecrets> {
    let certificates: Vec<KeyedCertificate> = answer.iter().map(decode).collect::<anyhow::Result<_>>()?;
    let got: Vec<Thumbprint> =
        certificates.iter().map(|one| Ok(Thumbprint::of(&one.public()?.sha1))).collect::<anyhow::Result<_>>()?;
    // The goal state may be older or newer than the answer; it comes again.
    ensure!(got == asked.certificates, "its certificates have just changed");
    // The controller has looked whether it opens; without its user, a guest is still better than none.
    let password = asked.remote_access.as_ref().map(|access| password(goal, access, &certificates));
    let password = password.and_then(|opened| {
        opened
            .inspect_err(|error| tracing::error!(vm = %goal.vm, error = format!("{error:#}"), "no remote access"))
            .ok()
    });
    let own: Vec<&Thumbprint> = goal.guest.own_certificates().map(|one| &one.thumbprint).collect();
    let own = got.iter().zip(certificates).filter(|(thumbprint, _)| own.contains(thumbprint)).map(|(_, one)| one);
    Ok(VmSecrets { asked, pfx: guest_pfx(&own.collect::<Vec<_>>())?.into(), password })
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
    let device = |path: &Path| {
        fs::metadata(path).map(|data| data.dev()).with_context(|| format!("cannot inspect {}", path.display()))
    };
    // An earlier agent's is still there.
    if device(&folder)? == device(agent_folder)? {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let mounted = |options: &str| mount(Some("mayfly-secrets"), &folder, Some("tmpfs"), flags, Some(options));
        // Kernels before 6.4 do not know that it must not be swapped.
        mounted(&format!("{FILES_MAX},noswap"))
            .or_else(|_| mounted(FILES_MAX))
            .with_context(|| format!("cannot mount a file system of memory at {}", folder.display()))?;
    }
    Ok(folder)
}
