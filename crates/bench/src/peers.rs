//! The programs that are measured, each in a process that ends with its handle.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mayfly_disk::{Base, DiskClient, Export, Transport};

/// A process that is killed when this is dropped.
pub struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Takes care of a process.
    pub fn new(child: Child) -> Running {
        Running { child }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

/// The processor on which both sides of a measurement run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// Both on one: what a request costs, without the cost of waking another processor up.
    One,
    /// As the system likes.
    All,
}

/// A command, on the cores that the measurement has.
pub fn command(cores: Cores, program: &Path) -> Command {
    match cores {
        Cores::All => Command::new(program),
        Cores::One => {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(program);
            command
        }
    }
}

/// Starts a server and waits for its socket.
pub fn start(mut command: Command, socket: &Path) -> anyhow::Result<Running> {
    let _ = std::fs::remove_file(socket);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let running = Running { child: child.with_context(|| format!("cannot run {command:?}"))? };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "{command:?} does not listen on {}", socket.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(running)
}

/// Runs a tool to its end.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}; `cargo xtask bench` installs it"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Mayfly's disk server in `folder`.
pub struct Mayfly {
    pub process: Running,
    pub client: DiskClient,
    folder: PathBuf,
}

impl Mayfly {
    pub fn start(program: &Path, folder: &Path, cores: Cores) -> anyhow::Result<Mayfly> {
        std::fs::create_dir_all(folder)?;
        let control = folder.join("disk.sock");
        let mut command = command(cores, program);
        command.args(["internal", "disk-server"]).arg(folder);
        let process = start(command, &control)?;
        Ok(Mayfly { process, client: DiskClient::new(control), folder: folder.to_owned() })
    }

    /// Serves a new disk over `base`; returns its socket.
    pub fn export(&self, name: &str, base: &Path, transport: Transport) -> anyhow::Result<PathBuf> {
        let socket = self.folder.join(format!("{name}.sock"));
        let disk = self.folder.join(format!("{name}.vhd"));
        let base = Base::File(base.to_owned());
        let export = Export { name: name.to_owned(), disk, base, socket: socket.clone(), quota_bytes: None, transport };
        self.client.open(export)?;
        Ok(socket)
    }
}

/// A fixed VHD of `mebibytes`, all of it data.
pub fn base(folder: &Path, mebibytes: u64) -> anyhow::Result<PathBuf> {
    use rand::RngCore;
    use std::io::Write;
    let path = folder.join("base.vhd");
    let mut file = std::fs::File::create(&path)?;
    let mut data = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        rand::rng().fill_bytes(&mut data);
        file.write_all(&data)?;
    }
    let options = mayfly_vhd::CreateOptions { unique_id: rand::random(), timestamp: 1, durable: false };
    file.write_all(&mayfly_vhd::fixed_footer(mebibytes << 20, &options).encode())?;
    Ok(path)
}
