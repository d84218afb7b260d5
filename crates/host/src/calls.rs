//! Answers calls: what users want of a VM that only its host has. Each is a connection to the controller of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mayfly_api::{Call, CallAnswer, CallKind, ScriptRunView};
use mayfly_model::VmId;
use mayfly_wire::ScriptReport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::agent::{Agent, lock};
use crate::status::Stage;
use crate::vm::{Ask, console};

/// Bytes of what a console said before that somebody who opens it is shown.
const BEFORE: u64 = 4096;
/// Between two looks at a log that is followed.
const FOLLOW: Duration = Duration::from_millis(150);
/// How long a reader may take nothing of what it is sent.
const STALLED: Duration = Duration::from_secs(60);
/// Pieces of a console's output that wait for a slow reader; what is more is lost to it.
const PIECES: usize = 1024;

/// Why a call is refused, or its connection has ended.
enum Trouble {
    /// For the user.
    Refused(String),
    /// Somebody has gone.
    Broken,
}

impl From<io::Error> for Trouble {
    fn from(_: io::Error) -> Trouble {
        Trouble::Broken
    }
}

/// Answers a call, in a task of its own.
pub(crate) fn answer(agent: &Arc<Agent>, call: Call) {
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        match agent.client.call_answer(&call.id).await {
            Ok(mut stream) => {
                match serve(&agent, &call, &mut stream).await {
                    Ok(()) => {}
                    // Whoever called may have gone.
                    Err(Trouble::Refused(why)) => drop(say(&mut stream, &CallAnswer::Refused(why)).await),
                    Err(Trouble::Broken) => return,
                }
                let _ = stream.shutdown().await;
            }
            Err(error) => tracing::debug!(%error, "a call cannot be answered"),
        }
    });
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: &CallAnswer) -> io::Result<()> {
    let line = serde_json::to_string(answer)? + "\n";
    stream.write_all(line.as_bytes()).await?;
    stream.flush().await
}

async fn serve(agent: &Agent, call: &Call, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Trouble> {
    let Some((stage, runs)) =
        agent.statuses().vms.get(&call.vm).map(|status| (status.stage.clone(), status.script_runs.clone()))
    else {
        return Err(Trouble::Refused(format!("{} is not on {}", call.vm, agent.config.name)));
    };
    let folder = agent.ledger.vm_folder(call.vm);
    match call.what {
        CallKind::Console => talk(agent, call.vm, &folder, &stage, stream).await,
        CallKind::ConsoleLog { boots_ago, follow } => {
            log(&console::log(&folder, boots_ago.into()), follow, stream).await
        }
        CallKind::Script => {
            say(stream, &CallAnswer::Follows).await?;
            let views: Vec<ScriptRunView> = runs.into_iter().map(view).collect();
            Ok(stream.write_all(&serde_json::to_vec(&views).map_err(io::Error::from)?).await?)
        }
        CallKind::Screenshot => {
            let path = screenshot(agent, call.vm, &folder, &stage).await?;
            let sent = send(&path, stream).await;
            // A picture is as secret as what it shows.
            let _ = tokio::fs::remove_file(&path).await;
            sent
        }
        CallKind::Disk => {
            let _kept = Captured::keep(agent, call.vm)?;
            if folder.join("template").exists() {
                let how = "reimage it with Mayfly.Template off, and capture that";
                return Err(Trouble::Refused(format!("its disk stands on a template of its host's; {how}")));
            }
            let (disks, name) = (agent.disks.clone(), call.vm.to_string());
            // A disk that is closed says in every reader's way what it holds. It is opened again when its guest starts.
            let closed = tokio::task::spawn_blocking(move || disks.close(&name)).await;
            if let Ok(Err(error)) = closed {
                return Err(Trouble::Refused(format!("its disk cannot be closed: {error}")));
            }
            send(&folder.join("disk.vhd"), stream).await
        }
    }
}

/// A disk that nobody starts a guest on while it is read.
struct Captured<'a>(&'a Agent, VmId);

impl Captured<'_> {
    fn keep(agent: &Agent, vm: VmId) -> Result<Captured<'_>, Trouble> {
        if !lock(&agent.captures).insert(vm) {
            return Err(Trouble::Refused("its disk is being captured already".to_owned()));
        }
        let kept = Captured(agent, vm);
        // Looked at now: whoever starts the guest says so first, and then looks whether its disk is kept.
        match agent.statuses().vms.get(&vm).map(|status| &status.stage) {
            Some(Stage::Off) => Ok(kept),
            _ => Err(Trouble::Refused("its disk is in use; stop it first: mayfly instance stop".to_owned())),
        }
    }
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        lock(&self.0.captures).remove(&self.1);
    }
}

fn view(run: ScriptReport) -> ScriptRunView {
    ScriptRunView { attempt: run.attempt, status: run.status, output: run.output }
}

async fn send(path: &Path, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), Trouble> {
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(|error| Trouble::Refused(format!("{} cannot be read: {error}", path.display())))?;
    say(stream, &CallAnswer::Follows).await?;
    let mut piece = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut piece).await?;
        if count == 0 {
            return Ok(stream.flush().await?);
        }
        // A guest may be waiting for its disk: whoever takes no more of it has to ask anew.
        let sent = tokio::time::timeout(STALLED, stream.write_all(&piece[..count])).await;
        sent.map_err(|_| Trouble::Broken)??;
    }
}

async fn screenshot(agent: &Agent, vm: VmId, folder: &Path, stage: &Stage) -> Result<PathBuf, Trouble> {
    if !matches!(stage, Stage::Running | Stage::Paused(_)) {
        return Err(Trouble::Refused("its guest does not run, so it has no screen".to_owned()));
    }
    let path =
        folder.join(format!("screen-{:?}.png", std::time::Instant::now()).replace([' ', '{', '}', ':', ','], ""));
    let (sender, done) = oneshot::channel();
    let door = lock(&agent.doors).get(&vm).cloned();
    let asked = match door {
        Some(door) => door.send(Ask::Screenshot(path.clone(), sender)).await.is_ok(),
        None => false,
    };
    match tokio::time::timeout(Duration::from_secs(5), done).await {
        Ok(Ok(Ok(()))) if asked => Ok(path),
        Ok(Ok(Err(error))) => Err(Trouble::Refused(format!("no picture of its screen: {error}"))),
        _ => Err(Trouble::Refused("its guest has just ended".to_owned())),
    }
}

/// Sends a log, and goes on with what comes, if so asked, until the reader goes or the log is put aside for a new boot.
async fn log(path: &Path, follow: bool, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Trouble> {
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(|_| Trouble::Refused("there is no log of that boot (yet)".to_owned()))?;
    say(stream, &CallAnswer::Follows).await?;
    let mut position = tokio::io::copy(&mut file, stream).await?;
    stream.flush().await?;
    let mut unused = [0; 64];
    if !follow {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(FOLLOW) => {}
            gone = stream.read(&mut unused) => if matches!(gone, Ok(0) | Err(_)) { break },
        }
        let length = file.metadata().await?.len();
        if length < position {
            // It was shortened; what is left of it has been sent.
            position = length;
        }
        file.seek(io::SeekFrom::Start(position)).await?;
        let more = tokio::io::copy(&mut file, stream).await?;
        stream.flush().await?;
        position += more;
        let was_replaced = more == 0
            && std::fs::metadata(path).map(|now| inode(&now)).ok() != file.metadata().await.map(|it| inode(&it)).ok();
        if was_replaced {
            match tokio::fs::File::open(path).await {
                Ok(next) => (file, position) = (next, 0),
                Err(_) => break,
            }
        }
    }
    Ok(())
}

fn inode(data: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(data)
}

/// Joins a user and a guest's serial console, which only one can have at a time.
async fn talk(
    agent: &Agent,
    vm: VmId,
    folder: &Path,
    stage: &Stage,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<(), Trouble> {
    if !matches!(stage, Stage::Running | Stage::Paused(_)) {
        return Err(Trouble::Refused("its guest does not run; `console --follow` waits for it".to_owned()));
    }
    if !lock(&agent.consoles).insert(vm) {
        let how = "`mayfly instance console --follow` shows what is said there";
        return Err(Trouble::Refused(format!("somebody has its console already; {how}")));
    }
    let done = joined(folder, stream).await;
    lock(&agent.consoles).remove(&vm);
    done
}

async fn joined(folder: &Path, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Trouble> {
    let before = console::tail(&console::log(folder, 0), BEFORE).unwrap_or_default();
    let serial = UnixStream::connect(folder.join("serial.sock"))
        .await
        .map_err(|error| Trouble::Refused(format!("its console does not answer: {error}")))?;
    say(stream, &CallAnswer::Follows).await?;
    stream.write_all(&before).await?;
    stream.flush().await?;
    let (mut from_guest, mut to_guest) = serial.into_split();
    let (pieces, mut output) = mpsc::channel::<Vec<u8>>(PIECES);
    // A guest whose console nobody reads stands still, so it is read whether or not the user keeps up.
    let reader = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from_guest.read(&mut buffer).await {
            match pieces.try_send(buffer[..count].to_vec()) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => break,
            }
        }
    });
    let mut buffer = [0; 1024];
    let done = loop {
        tokio::select! {
            piece = output.recv() => {
                let Some(piece) = piece else { break Ok(()) };
                if stream.write_all(&piece).await.is_err() || stream.flush().await.is_err() {
                    break Err(Trouble::Broken);
                }
            }
            typed = stream.read(&mut buffer) => match typed {
                Ok(0) | Err(_) => break Ok(()),
                Ok(count) => if to_guest.write_all(&buffer[..count]).await.is_err() { break Ok(()) },
            }
        }
    };
    reader.abort();
    done
}
