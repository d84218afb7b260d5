//! How the agent tells the disk server what to serve: one JSON object a line over a Unix socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use mayfly_model::Digest;

use crate::image::{Incident, Sources};
use crate::server::{DiskServer, Export, ServerError};

/// How long an answer may take: that to the first use of an image waits for its manifest.
const ANSWER: Duration = Duration::from_secs(90);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Open(Export),
    Close(String),
    Sources(Sources),
    News,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Done,
    News(News),
    Failed(String),
}

/// A disk that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportNews {
    /// Its name.
    pub name: String,
    /// Bytes that its file takes.
    pub file_bytes: u64,
}

/// A base image in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNews {
    /// Its digest.
    pub digest: Digest,
    /// Bytes that are on this host.
    pub present_bytes: u64,
    /// Bytes that it has.
    pub data_bytes: u64,
}

/// How the disk server is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// The disks that are served.
    pub exports: Vec<ExportNews>,
    /// The images in use.
    pub images: Vec<ImageNews>,
    /// What went wrong lately.
    pub incidents: Vec<Incident>,
    /// Bytes of chunks that came from the controller since this server was started.
    pub controller_bytes: u64,
    /// Bytes of chunks that came from other hosts.
    pub peer_bytes: u64,
}

/// Why the disk server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached; it is being restarted perhaps.
    #[error("the disk server at {path} cannot be reached", path = path.display())]
    Unreachable {
        /// Its control socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{0}")]
    Refused(String),
}

impl DiskServer {
    /// Answers requests on `socket` for ever.
    ///
    /// # Errors
    /// [`ServerError::Io`] when it cannot listen there.
    pub fn control(&self, socket: &Path) -> Result<(), ServerError> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).map_err(|source| ServerError::Io {
            action: "listen on",
            path: socket.to_owned(),
            source,
        })?;
        for stream in listener.incoming() {
            let server = self.clone();
            std::thread::spawn(move || {
                if let Err(error) = stream.and_then(|stream| server.converse(&stream)) {
                    tracing::info!(%error, "a control connection ended");
                }
            });
        }
        Ok(())
    }

    fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        for line in BufReader::new(stream).lines() {
            let reply = match serde_json::from_str(&line?) {
                Ok(Request::Open(export)) => done(self.open(export)),
                Ok(Request::Close(name)) => done(self.close(&name)),
                Ok(Request::Sources(sources)) => done(self.set_sources(sources)),
                Ok(Request::News) => Reply::News(self.news()),
                Err(error) => Reply::Failed(format!("not a request: {error}")),
            };
            send(stream, &reply)?;
        }
        Ok(())
    }
}

fn done(result: Result<(), ServerError>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            Reply::Failed(text)
        }
    }
}

fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The agent's side. Each call is a connection of its own, so that a restarted server is no special case.
#[derive(Clone, Debug)]
pub struct DiskClient {
    socket: PathBuf,
}

impl DiskClient {
    /// A client of the server whose control socket is `socket`.
    pub fn new(socket: PathBuf) -> DiskClient {
        DiskClient { socket }
    }

    /// Has a disk served.
    ///
    /// # Errors
    /// [`ControlError`]; trying again is harmless.
    pub fn open(&self, export: Export) -> Result<(), ControlError> {
        self.call(&Request::Open(export)).map(drop)
    }

    /// Has a disk served no longer.
    ///
    /// # Errors
    /// [`ControlError`]; trying again is harmless.
    pub fn close(&self, name: &str) -> Result<(), ControlError> {
        self.call(&Request::Close(name.to_owned())).map(drop)
    }

    /// Says where images come from. The server remembers it.
    ///
    /// # Errors
    /// [`ControlError`]; trying again is harmless.
    pub fn set_sources(&self, sources: Sources) -> Result<(), ControlError> {
        self.call(&Request::Sources(sources)).map(drop)
    }

    /// How the server is doing.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`].
    pub fn news(&self) -> Result<News, ControlError> {
        match self.call(&Request::News)? {
            Reply::News(news) => Ok(news),
            Reply::Done | Reply::Failed(_) => Ok(News::default()),
        }
    }

    fn call(&self, request: &Request) -> Result<Reply, ControlError> {
        let unreachable = |source| ControlError::Unreachable { path: self.socket.clone(), source };
        let exchange = || -> io::Result<Reply> {
            let stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER))?;
            send(&stream, request)?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            Ok(serde_json::from_str(&line)?)
        };
        match exchange().map_err(unreachable)? {
            Reply::Failed(why) => Err(ControlError::Refused(why)),
            reply => Ok(reply),
        }
    }
}
