//! How the agent tells the disk server what to serve: one JSON object a line over a Unix socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::server::{DiskServer, Export, ServerError};

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Open(Export),
    Close(String),
    List,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Done,
    Names(Vec<String>),
    Failed(String),
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
                Ok(Request::List) => Reply::Names(self.names()),
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

    /// The disks that are served.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`].
    pub fn names(&self) -> Result<Vec<String>, ControlError> {
        match self.call(&Request::List)? {
            Reply::Names(names) => Ok(names),
            Reply::Done | Reply::Failed(_) => Ok(Vec::new()),
        }
    }

    fn call(&self, request: &Request) -> Result<Reply, ControlError> {
        let unreachable = |source| ControlError::Unreachable { path: self.socket.clone(), source };
        let exchange = || -> io::Result<Reply> {
            let stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
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
