//! Templates: a guest stopped before it has an identity, of which further guests are copies, memory and disk, of which each
//! pays only for what it changes.
//!
//! ```text
//!   templates/KEY/  ram        the memory, mapped privately by each copy
//!                   state      what else a machine consists of
//!                   disk.vhd   what the template has written; the copies' disks stand on it
//!                   ready      it can be used
//! ```
//!
//! The guest has to agree to this: it finds an identity that says `mode=template` in QEMU's fw_cfg, gets as far as it can
//! without knowing who it is, says so on its console, and waits until the identity says something else. So an image that knows
//! nothing of it never gets there, and its guests boot as always. The copy gets a seed for its random numbers, the time, its
//! name and its hardware address in its identity, before it has a network.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mayfly_disk::{Base, Export, FileSystem, Transport, make_formatted};
use mayfly_model::{DiskModel, NetworkCard, Platform, VmGoal};
use mayfly_qemu::{LocalDisk, Machine, Memory, Network, PROGRAM, VmSpec};

use super::{console, prepare, spec};
use crate::agent::{Agent, lock};
use crate::clock;

/// What a guest says on its console when it waits for its identity.
const WAITS: &str = "mayfly: waiting for an identity";
/// How long a guest may take to get there.
const LIMIT: Duration = Duration::from_secs(240);
/// Between two looks at its console.
const LOOK: Duration = Duration::from_millis(50);
/// How long it is left alone then, so that it is at rest.
const CALM: Duration = Duration::from_millis(300);
/// How long a template is kept that nobody wants.
const UNWANTED: Duration = Duration::from_secs(600);
/// Bytes of an identity: always the same, as a guest knows its length from before.
const IDENTITY_BYTES: usize = 1024;
/// Grows when templates of before cannot be used any more.
const FORMAT: u32 = 1;
/// The system's UUID of one.
const TEMPLATE_UUID: &str = "6d61796d-666c-8079-8000-74656d706c61";
/// The hardware address of a guest that has no identity.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

/// A template that can be used.
pub(super) struct Template {
    folder: PathBuf,
}

impl Template {
    pub(super) fn ram(&self) -> PathBuf {
        self.folder.join("ram")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// It cannot be used after all.
    pub(super) fn give_up(&self) {
        if let Err(error) = fs::remove_file(self.folder.join("ready")) {
            tracing::warn!(folder = %self.folder.display(), %error, "a template that cannot be used stays");
        }
    }
}

/// What the templates of a VM have in common: everything that has to be the same. Nothing for a VM that cannot have one.
fn key(agent: &Agent, goal: &VmGoal) -> Option<String> {
    let virtio = prepare::model(agent, goal) == DiskModel::Virtio && goal.guest.card == NetworkCard::Virtio;
    let can = goal.guest.platform == Platform::NoCloud && virtio;
    if !goal.guest.template || !can {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    (FORMAT, goal.image.as_str(), goal.size, program_version(), format!("{:?}", agent.config.accelerator))
        .hash(&mut hasher);
    for storage in &goal.guest.local_storage {
        (&storage.name, storage.size_mb).hash(&mut hasher);
    }
    Some(format!("{}-{:016x}", goal.image.as_str().get(..12).unwrap_or("image"), hasher.finish()))
}

/// What QEMU says of its version: another one may not understand a state.
fn program_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let output = std::process::Command::new(PROGRAM).arg("--version").output();
        output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

fn folder(agent: &Agent, key: &str) -> PathBuf {
    agent.config.folder.join("templates").join(key)
}

/// Where it stands which template a VM started from.
fn note(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("template")
}

/// The template that a new VM starts from. Where there is none yet, one is made for those that follow.
pub(super) fn for_new(agent: &Arc<Agent>, goal: &VmGoal) -> anyhow::Result<Option<Template>> {
    let Some(key) = key(agent, goal) else { return Ok(None) };
    let folder = folder(agent, &key);
    if folder.join("ready").exists() {
        let note = note(agent, goal);
        fs::write(&note, &key).with_context(|| format!("cannot write {}", note.display()))?;
        return Ok(Some(Template { folder }));
    }
    if !folder.join("impossible").exists() && !is_stood_on(agent, &key) && lock(&agent.templates).insert(key.clone()) {
        let (agent, goal) = (Arc::clone(agent), goal.clone());
        tokio::spawn(async move {
            match make(&agent, &goal, &folder).await {
                Ok(()) => tracing::info!(key, "a template is ready"),
                Err(error) => {
                    tracing::warn!(key, error = format!("{error:#}"), "no template; its guests boot as always");
                }
            }
            lock(&agent.templates).remove(&key);
        });
    }
    Ok(None)
}

/// Whether some VM's disk stands on a template's: then nothing of it may change.
fn is_stood_on(agent: &Agent, key: &str) -> bool {
    let vms: Vec<VmGoal> = agent.statuses().vms.values().map(|status| status.goal.clone()).collect();
    vms.iter().any(|goal| fs::read_to_string(note(agent, goal)).is_ok_and(|noted| noted == key))
}

/// What an agent that died while it made a template has left: the guest, its disks, and what is of no use.
pub(super) fn recover(agent: &Agent) {
    for entry in fs::read_dir(agent.config.folder.join("templates")).into_iter().flatten().flatten() {
        let (path, key) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_whole = path.join("ready").exists() || path.join("impossible").exists();
        if !is_whole && !is_stood_on(agent, &key) {
            discard(agent, &path, &key);
        }
    }
}

/// Ends what uses a template's folder, and removes that.
fn discard(agent: &Agent, path: &Path, key: &str) {
    Machine::end_leftovers(&path.join("maker/qmp.sock"));
    for export in fs::read_dir(agent.config.folder.join("exports")).into_iter().flatten().flatten() {
        let name = export.file_name().to_string_lossy().trim_end_matches(".json").to_owned();
        if name.starts_with(&format!("template-{key}"))
            && let Err(error) = agent.disks.close(&name)
        {
            tracing::warn!(name, %error, "a template's disk cannot be closed");
        }
    }
    match fs::remove_dir_all(path) {
        Ok(()) => tracing::info!(key, "a template is thrown away"),
        Err(error) => tracing::warn!(key, %error, "a template cannot be thrown away yet"),
    }
}

/// A VM does not start from a template after all.
pub(super) fn forget(agent: &Agent, goal: &VmGoal) {
    for path in [note(agent, goal), prepare::disk_path(agent, goal)] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
    }
}

/// What the disk of a VM stands on.
pub(super) fn base(agent: &Agent, goal: &VmGoal) -> Base {
    let image = goal.image.clone();
    match fs::read_to_string(note(agent, goal)) {
        Ok(key) => Base::Template { disk: folder(agent, &key).join("disk.vhd"), image },
        Err(_) => Base::Image(image),
    }
}

/// The identity of a VM, in a file of its folder.
pub(super) fn identity(agent: &Agent, goal: &VmGoal) -> anyhow::Result<PathBuf> {
    let mut seed = [0; 32];
    let mut random = fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    random.read_exact(&mut seed).context("cannot read /dev/urandom")?;
    let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    let mac = goal.mac().map(|byte| format!("{byte:02x}")).join(":");
    let lines = format!(
        "mode=run\nvm={}\nhost_name={}\nuuid={}\nmac={mac}\nseed={seed}\ntime_ms={}\n",
        goal.vm,
        goal.computer_name,
        mayfly_wire::system_uuid(goal),
        clock::wall().0,
    );
    let path = agent.ledger.vm_folder(goal.vm).join("identity");
    write_identity(&path, &lines)?;
    Ok(path)
}

fn write_identity(path: &Path, lines: &str) -> anyhow::Result<()> {
    let mut bytes = lines.as_bytes().to_vec();
    bytes.resize(IDENTITY_BYTES, 0);
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Boots a guest without an identity, and keeps what it is when it waits for one.
async fn make(agent: &Arc<Agent>, goal: &VmGoal, folder: &Path) -> anyhow::Result<()> {
    let maker = folder.join("maker");
    // An agent that died at this has left something perhaps.
    Machine::end_leftovers(&maker.join("qmp.sock"));
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot clear {}", folder.display()));
    }
    fs::create_dir_all(&maker).with_context(|| format!("cannot create {}", maker.display()))?;
    let exports = exports(goal, folder, &agent.ledger.local_disks());
    let done = made(agent, goal, folder, &maker, &exports).await;
    let (disks, names) = (agent.disks.clone(), exports.into_iter().map(|(export, _)| export.name));
    let names: Vec<String> = names.collect();
    let closed = tokio::task::spawn_blocking(move || names.iter().try_for_each(|name| disks.close(name))).await?;
    done?;
    closed?;
    fs::remove_dir_all(&maker)?;
    // It may be used after a power cut too.
    for name in ["ram", "state", "disk.vhd"] {
        fs::File::open(folder.join(name)).and_then(|file| file.sync_all()).with_context(|| name.to_owned())?;
    }
    fs::File::create(folder.join("ready")).and_then(|file| file.sync_all()).context("ready")?;
    fs::File::open(folder).and_then(|file| file.sync_all()).with_context(|| folder.display().to_string())
}

/// The disks of a template, and for the local ones what they are. What it writes to those is thrown away.
fn exports(goal: &VmGoal, folder: &Path, local: &Path) -> Vec<(Export, Option<(u64, String)>)> {
    let name = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let maker = folder.join("maker");
    let export = |disk: PathBuf, name: String, base, socket: &str| Export {
        name,
        disk,
        base,
        socket: maker.join(socket),
        quota_bytes: Some(goal.size.disk_quota_bytes()),
        transport: Transport::Nbd,
    };
    let system =
        export(folder.join("disk.vhd"), format!("template-{name}"), Base::Image(goal.image.clone()), "disk.sock");
    let mut all = vec![(system, None)];
    for (number, storage) in goal.guest.local_storage.iter().enumerate() {
        let base = local.join("formatted").join(format!("{}-{}.vhd", storage.name, storage.size_mb));
        let disk = maker.join(format!("local{number}.vhd"));
        let name = format!("template-{name}-local{number}");
        let export = export(disk, name, Base::File(base), &format!("local{number}.sock"));
        all.push((export, Some((storage.size_mb << 20, storage.name.clone()))));
    }
    all
}

async fn made(
    agent: &Arc<Agent>,
    goal: &VmGoal,
    folder: &Path,
    maker: &Path,
    exports: &[(Export, Option<(u64, String)>)],
) -> anyhow::Result<()> {
    let (disks, all) = (agent.disks.clone(), exports.to_vec());
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        for (export, local) in all {
            if let (Some((bytes, label)), Base::File(base)) = (&local, &export.base) {
                fs::create_dir_all(base.parent().unwrap_or(base))?;
                make_formatted(base, *bytes, FileSystem::Ext4, label)?;
            }
            disks.open(export)?;
        }
        Ok(())
    })
    .await??;
    let identity = maker.join("identity");
    write_identity(&identity, "mode=template\n")?;
    let local_disks = exports.iter().filter_map(|(export, local)| {
        let (_, name) = local.as_ref()?;
        Some(LocalDisk { name: name.clone(), socket: export.socket.clone() })
    });
    let mut spec = VmSpec {
        name: "template".to_owned(),
        memory: Memory::Template(folder.join("ram")),
        identity: Some(identity),
        network: Network::Nowhere,
        mac: NOBODY,
        folder: maker.to_owned(),
        ..spec::spec(agent, goal, local_disks.collect(), None)
    };
    spec.disk.socket = maker.join("disk.sock");
    // Its copies have this one until they boot by themselves.
    TEMPLATE_UUID.clone_into(&mut spec.firmware.uuid);
    // Not one of the turns to boot: guests that are wanted do not wait for this.
    let turn = agent.template_turn.acquire().await?;
    let machine = Machine::start(&spec).await?;
    let reached = reached(&console::log(maker, 0)).await;
    if let Err(error) = &reached {
        // It will not get there another time either.
        fs::write(folder.join("impossible"), format!("{error:#}"))?;
    }
    let saved = match reached {
        Ok(()) => machine.save(&folder.join("state")).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    machine.stop().await;
    drop(turn);
    saved
}

/// Waits until the guest says that it waits.
async fn reached(log: &Path) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        console::limit(log);
        let said = console::tail(log, 4096).unwrap_or_default();
        if String::from_utf8_lossy(&said).contains(WAITS) {
            tokio::time::sleep(CALM).await;
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the guest did not say `{WAITS}` within {} s: its image knows nothing of templates", LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Throws away templates that nobody stands on, and nobody has wanted to start from for a while: between an instance's old VM
/// and its new one there is nobody.
pub(super) fn sweep(agent: &Agent, goals: &[VmGoal]) {
    let root = agent.config.folder.join("templates");
    let wanted = |name: &str| {
        lock(&agent.templates).contains(name)
            || goals.iter().any(|goal| {
                key(agent, goal).as_deref() == Some(name)
                    || fs::read_to_string(note(agent, goal)).is_ok_and(|noted| noted == name)
            })
    };
    for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if wanted(&name) {
            lock(&agent.unwanted_templates).remove(&name);
            continue;
        }
        let since = *lock(&agent.unwanted_templates).entry(name.clone()).or_insert_with(Instant::now);
        if since.elapsed() > UNWANTED {
            discard(agent, &entry.path(), &name);
            lock(&agent.unwanted_templates).remove(&name);
        }
    }
}
