//! A kernel that has what this machine's may lack: Debian's, in a guest, with this very program as its only process. It is the one
//! that the demo image is made with.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the guest.
const INSIDE: &str = "MAYFLY_BORROWED";
/// What the tests need, by the names of the files; each after what it depends on.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "tun",
    "vxlan",
    "wireguard",
    "nf_tables",
    "nft_ct",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_limit",
    "nft_numgen",
    "nft_hash",
    "nft_objref",
    "nft_redir",
    "nft_fib",
    "nft_fib_inet",
    "nft_counter",
    "nft_tproxy",
    "nft_quota",
    "nf_dup_netdev",
    "nft_fwd_netdev",
    "nft_connlimit",
    "nft_log",
    "crc32c_generic",
];

/// Whether the test goes on here: in the guest, made ready for it. Else it runs there (its name is `test`), with these programs
/// in `/bin`, and has to pass.
pub fn is_inside(test: &str, programs: &[&Path]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return false;
    }
    let Some(kernel) = kernel() else {
        println!("skipped: this needs the kernel that `cargo xtask image` fetches");
        return false;
    };
    let folder = tempfile::tempdir().unwrap();
    let ram_disk = pack(&kernel, programs, folder.path());
    let boot = only(&kernel.join("boot"), "vmlinuz");
    let line = format!(
        "console=ttyS0 quiet loglevel=0 panic=-1 rdinit=/init {INSIDE}=1 PATH=/bin -- {test} --exact --nocapture"
    );
    let mut command = Command::new("timeout");
    command.args([
        "--kill-after=5",
        "240",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
    ]);
    command.args(["-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio", "-append", &line]);
    let output = command.arg("-kernel").arg(boot).arg("-initrd").arg(ram_disk).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("test result: ok. 1 passed"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Where the kernel is unpacked.
fn kernel() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/hello");
    let mut found = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    found.find(|path| path.join("boot").is_dir())
}

/// The file or folder whose name begins so.
fn only(folder: &Path, begins: &str) -> PathBuf {
    let mut all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = all.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(begins));
    found.unwrap_or_else(|| panic!("{} has no {begins}", folder.display()))
}

/// Packs this program, the libraries that it needs and the modules.
fn pack(kernel: &Path, programs: &[&Path], folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    for name in ["proc", "sys", "dev", "tmp", "run", "var/tmp", "etc", "bin", "modules"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    let own = std::env::current_exe().unwrap();
    run(Command::new("strip").arg("-o").arg(tree.join("init")).arg(&own));
    for program in programs {
        let target = tree.join("bin").join(program.file_name().unwrap());
        run(Command::new("strip").arg("-o").arg(target).arg(program));
    }
    let listed = run(Command::new("ldconfig").arg("-p"));
    let nftables = listed.lines().find(|line| line.contains("libnftables.so.1")).expect("libnftables is not installed");
    let nftables = PathBuf::from(nftables.rsplit(' ').next().unwrap());
    let mut libraries = BTreeSet::from([nftables.clone()]);
    for needs in programs.iter().copied().chain([own.as_path(), nftables.as_path()]) {
        let told = run(Command::new("ldd").arg(needs));
        libraries.extend(told.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for library in libraries {
        let target = tree.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&library, target).unwrap();
    }
    let modules = only(&kernel.join("lib/modules"), "");
    let listed = run(Command::new("find").arg(&modules).args(["-name", "*.ko"]));
    let files: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    let mut order = Vec::new();
    for name in MODULES {
        add_module(&files, name, &mut order);
    }
    for (number, file) in order.iter().enumerate() {
        fs::copy(file, tree.join(format!("modules/{number:03}"))).unwrap();
    }
    let packed = folder.join("initrd");
    let script = format!("find . | cpio --quiet -o -H newc > '{}'", packed.display());
    run(Command::new("sh").args(["-ec", &script]).current_dir(&tree));
    packed
}

/// Puts a module, after those that it depends on, into the order; what is built into the kernel is no file.
fn add_module(files: &[PathBuf], name: &str, order: &mut Vec<PathBuf>) {
    let called =
        |file: &&PathBuf| file.file_stem().unwrap().to_string_lossy().replace('-', "_") == name.replace('-', "_");
    let Some(file) = files.iter().find(called).filter(|file| !order.contains(file)) else { return };
    let bytes = fs::read(file).unwrap();
    let mark = b"\0depends=";
    let at = bytes.windows(mark.len()).position(|window| window == mark).map(|at| at + mark.len());
    let depends = at.map(|at| bytes[at..].split(|byte| *byte == 0).next().unwrap_or_default());
    for name in String::from_utf8_lossy(depends.unwrap_or_default()).split(',').filter(|name| !name.is_empty()) {
        add_module(files, name, order);
    }
    order.push(file.clone());
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a system would do before it starts a program.
#[expect(unsafe_code, reason = "nobody else loads modules here")]
fn prepare() {
    use nix::mount::{MsFlags, mount};
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
    }
    let mut modules: Vec<PathBuf> = fs::read_dir("/modules").unwrap().map(|entry| entry.unwrap().path()).collect();
    modules.sort();
    let none = CString::default();
    for module in modules {
        let file = fs::File::open(&module).unwrap();
        // SAFETY: a plain system call with an open file and a string that ends.
        let loaded = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
        if loaded != 0 {
            println!("{}: {}", module.display(), std::io::Error::last_os_error());
        }
    }
}
