//! QMP, the monitor protocol of QEMU: JSON objects, a line each (QEMU's docs/interop/qmp-spec).

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed: QEMU has ended or hangs.
    #[error("QEMU's monitor does not answer")]
    Io(#[from] io::Error),
    /// QEMU refused.
    #[error("QEMU refused `{command}`: {why}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's reason.
        why: String,
    },
}

/// An event that QEMU tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpEvent {
    /// Its name, for example `SHUTDOWN`.
    pub name: String,
    /// What comes with it.
    pub data: Value,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A connection to the monitor of one QEMU.
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Qmp {
    /// Connects. The receiver gives QEMU's events, and ends when QEMU does.
    ///
    /// # Errors
    /// [`QmpError::Io`] when nobody listens, or what listens is not QEMU.
    pub async fn connect(path: &Path) -> Result<(Qmp, mpsc::UnboundedReceiver<QmpEvent>), QmpError> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let mut reader = BufReader::new(reader);
        let mut greeting = String::new();
        tokio::time::timeout(ANSWER_TIMEOUT, reader.read_line(&mut greeting)).await.map_err(io::Error::from)??;
        let greeting: Value = serde_json::from_str(&greeting).map_err(io::Error::from)?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a QMP greeting").into());
        }
        let (sender, events) = mpsc::unbounded_channel();
        let waiting = Waiting::default();
        tokio::spawn(read(reader, Arc::clone(&waiting), sender));
        let qmp = Qmp { writer: tokio::sync::Mutex::new(writer), waiting, next: AtomicU64::new(1) };
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok((qmp, events))
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        let mut line = request.to_string();
        line.push('\n');
        self.writer.lock().await.write_all(line.as_bytes()).await?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(io::Error::from)?;
        let answer = answer.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
        answer.map_err(|why| QmpError::Refused { command: command.to_owned(), why })
    }
}

async fn read(mut reader: BufReader<OwnedReadHalf>, waiting: Waiting, events: mpsc::UnboundedSender<QmpEvent>) {
    let mut line = String::new();
    while reader.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        if let Ok(mut message) = serde_json::from_str::<Value>(&line) {
            if let Some(name) = message["event"].as_str() {
                // Nobody may be listening any more; then events do not matter.
                let _ = events.send(QmpEvent { name: name.to_owned(), data: message["data"].take() });
            } else if let Some(sender) = message["id"].as_u64().and_then(|id| lock(&waiting).remove(&id)) {
                let failed = message["error"]["desc"].as_str().map(str::to_owned);
                let _ = sender.send(failed.map_or_else(|| Ok(message["return"].take()), Err));
            }
        }
        line.clear();
    }
    // Those who still wait see their channel closed.
    lock(&waiting).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
