//! Serial consoles: watching one, and talking to it.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use futures_util::StreamExt;
use mayfly_model::InstanceKey;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connection::Connection;

/// What is typed to leave a console: Ctrl-], as in telnet.
const LEAVE: u8 = 0x1d;

/// A terminal that hands on what is typed at once and unchanged, until this goes.
struct Raw(Termios);

impl Raw {
    fn new() -> anyhow::Result<Raw> {
        let before = tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("cannot change the terminal's settings")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Prints what a console has said and says, until the user has seen enough.
pub async fn follow(connection: &Connection, instance: &InstanceKey) -> anyhow::Result<()> {
    print(connection.client.instance_console_log(instance, 0, true).await?).await
}

/// Prints an answer as it comes.
pub async fn print(log: reqwest::Response) -> anyhow::Result<()> {
    let mut pieces = log.bytes_stream();
    let mut output = std::io::stdout();
    while let Some(piece) = pieces.next().await {
        output.write_all(&piece.context("the connection broke off")?)?;
        output.flush()?;
    }
    Ok(())
}

/// Joins the terminal and a console. Without a terminal, what comes in is typed, and it ends with it.
pub async fn talk(connection: &Connection, instance: &InstanceKey) -> anyhow::Result<()> {
    let console = connection.client.instance_console(instance).await?;
    let (mut said, mut typed) = tokio::io::split(console);
    let is_terminal = std::io::stdin().is_terminal();
    let raw = if is_terminal {
        eprintln!("this is the console of {instance}; Ctrl-] leaves it");
        Some(Raw::new()?)
    } else {
        None
    };
    let input = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 1024];
        loop {
            let count = stdin.read(&mut buffer).await?;
            let left = is_terminal && buffer[..count].contains(&LEAVE);
            let until = buffer[..count].iter().position(|byte| left && *byte == LEAVE).unwrap_or(count);
            typed.write_all(&buffer[..until]).await?;
            typed.flush().await?;
            if count == 0 || left {
                return anyhow::Ok(());
            }
        }
    };
    let output = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = [0; 4096];
        loop {
            match said.read(&mut buffer).await {
                Ok(0) => return anyhow::Ok(()),
                Err(error) => return Err(error).context("the connection broke off"),
                Ok(count) => stdout.write_all(&buffer[..count]).await?,
            }
            stdout.flush().await?;
        }
    };
    tokio::pin!(output);
    let done = tokio::select! {
        done = &mut output => done,
        done = input => {
            // Without a terminal, the answer to what was typed last is still wanted.
            if done.is_ok() && !is_terminal {
                let _ = tokio::time::timeout(std::time::Duration::from_secs(1), output).await;
            }
            done
        }
    };
    drop(raw);
    if is_terminal {
        eprintln!();
    }
    // A read of the terminal may still be under way in another thread, which would wait for one more key.
    match done {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::exit(1)
        }
    }
}
