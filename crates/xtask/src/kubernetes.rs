//! kube-scheduler's own benchmark, built from Debian's sources: the peer of placement.
//!
//! Debian 12 has Kubernetes 1.20 with all that it needs but for one file that its build generates, and Go 1.19. The
//! benchmark (`test/integration/scheduler_perf`) is one program: API server, scheduler and client in one process, and an
//! etcd beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::run::{finish, output};
use crate::setup;

/// What the build needs.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/lib/go-1.19/bin/go", "golang-1.19-go"),
    ("/usr/bin/dpkg-source", "dpkg-dev"),
    ("/usr/bin/patch", "patch"),
    ("/usr/bin/etcd", "etcd-server"),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Packages of the vendored tree whose types are tagged for the file that is generated, but do not belong in it.
const UNTAGGED: [&str; 4] = ["code-generator", "sample-apiserver", "kube-openapi", "gengo"];

/// The benchmark's program, built below `folder` unless it is there.
///
/// # Errors
/// When this system's packages are not those of Debian 12, or there is no room for 5 GiB.
pub fn scheduler_perf(folder: &Path) -> anyhow::Result<PathBuf> {
    let program = folder.join("scheduler_perf.test");
    if program.exists() {
        return Ok(program);
    }
    println!("building kube-scheduler's benchmark from Debian's sources; this takes some ten minutes, once");
    setup::install_all(NEEDED)?;
    // What an earlier try has left is in the way.
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    let sources = sources(folder)?;
    let tree = folder.join("gopath/src/k8s.io/kubernetes");
    std::fs::create_dir_all(folder.join("gopath/src/k8s.io"))?;
    std::fs::rename(&sources, &tree)?;
    generate_openapi(folder, &tree)?;
    // Under another name until it is whole.
    let unfinished = folder.join("unfinished");
    let package = "k8s.io/kubernetes/test/integration/scheduler_perf";
    finish("go test -c", go(folder, &tree).args(["test", "-c", "-o"]).arg(&unfinished).arg(package))?;
    std::fs::rename(&unfinished, &program)?;
    // Only the program is needed from here on.
    for left in ["gopath", "gocache"] {
        std::fs::remove_dir_all(folder.join(left))?;
    }
    Ok(program)
}

fn go(folder: &Path, tree: &Path) -> Command {
    let mut command = Command::new("/usr/lib/go-1.19/bin/go");
    command.current_dir(tree).env("GOPATH", folder.join("gopath")).env("GOCACHE", folder.join("gocache"));
    command.env("GO111MODULE", "off").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    command
}

/// Fetches the sources and unpacks them, without touching the system's own list of sources.
fn sources(folder: &Path) -> anyhow::Result<PathBuf> {
    let (parts, lists) = (folder.join("apt/parts"), folder.join("apt/lists"));
    std::fs::create_dir_all(&parts)?;
    std::fs::create_dir_all(&lists)?;
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let targets = output("apt-get", &["indextargets", "--format", format, "Created-By: Packages"])?;
    // Kubernetes stands in the first: the release itself comes before its updates.
    let archive = targets.lines().find(|line| line.ends_with(" main")).context("apt knows no archive with `main`")?;
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    std::fs::write(parts.join("sources.list"), format!("deb-src {signed}{archive}\n"))?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Etc::SourceList=/dev/null",
        ]);
        command.arg("-o").arg(format!("Dir::Etc::SourceParts={}", parts.display()));
        command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
        finish("apt-get", command.args(arguments))
    };
    apt(&["update"])?;
    apt(&["source", "kubernetes"])?;
    let unpacked = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut trees = unpacked.filter(|path| path.join("test/integration/scheduler_perf").is_dir());
    trees.next().context("Debian's sources of kubernetes have no scheduler_perf")
}

/// Generates the file that Kubernetes' own build generates: what its API server tells of its types.
fn generate_openapi(folder: &Path, tree: &Path) -> anyhow::Result<()> {
    let generator = folder.join("openapi-gen");
    let package = "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen";
    finish("go build", go(folder, tree).args(["build", "-o"]).arg(&generator).arg(package))?;
    let tagged = Command::new("grep")
        .args(["-rlE", "--include=*.go", r"\+k8s:openapi-gen=", "staging/src/k8s.io", "pkg"])
        .current_dir(tree)
        .output()?;
    let mut inputs: Vec<String> = String::from_utf8(tagged.stdout)?.lines().filter_map(input).collect();
    inputs.sort();
    inputs.dedup();
    ensure!(!inputs.is_empty(), "the sources of kubernetes have no types for their API");
    let mut command = Command::new(generator);
    command.current_dir(tree).env("GOPATH", folder.join("gopath")).env("GO111MODULE", "off");
    command.env("PATH", format!("/usr/lib/go-1.19/bin:{}", std::env::var("PATH").unwrap_or_default()));
    command.args(["--go-header-file", "hack/boilerplate/boilerplate.generatego.txt", "-i"]).arg(inputs.join(","));
    command.args(["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi", "-r"]);
    finish("openapi-gen", command.arg(folder.join("violations"))).map(drop)
}

/// The package of a tagged file, as the generator wants to have it named.
fn input(file: &str) -> Option<String> {
    let folder = Path::new(file).parent()?.to_str()?;
    if file.ends_with("_test.go") || UNTAGGED.iter().any(|name| folder.contains(name)) || folder.contains("_examples") {
        return None;
    }
    Some(match folder.strip_prefix("staging/src/") {
        Some(staged) => format!("k8s.io/kubernetes/vendor/{staged}"),
        None => format!("k8s.io/kubernetes/{folder}"),
    })
}
