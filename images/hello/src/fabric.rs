//! What the fabric tells the guest, and what the guest tells the fabric: metadata and the wire protocol.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

const WIRE_SERVER: [u8; 4] = [168, 63, 129, 16];
const METADATA: [u8; 4] = [169, 254, 169, 254];
const VERSION_HEADER: &str = "x-ms-version: 2012-11-30\r\nx-ms-agent-name: mayfly-hello\r\n";

/// The NoCloud seed.
pub struct Seed {
    /// New with each VM.
    pub instance_id: String,
    /// The computer name.
    pub host_name: String,
    /// The user's script.
    pub user_data: String,
}

/// The wire server's goal state.
#[derive(Clone)]
pub struct Goal {
    /// Its number.
    pub incarnation: String,
    container: String,
    instance: String,
    hosting_environment: String,
}

/// Who the guest is.
#[derive(Clone)]
pub struct Identity {
    /// `web_IN_0`.
    pub instance: String,
    /// Configuration settings.
    pub settings: Vec<(String, String)>,
}

struct Answer {
    head: String,
    body: String,
}

/// Reads name and script. The address of the seed stands in the firmware's serial number.
pub fn read_seed() -> anyhow::Result<Seed> {
    let serial = std::fs::read_to_string("/sys/class/dmi/id/product_serial").unwrap_or_default();
    let url = serial.trim().split_once("s=http://169.254.169.254").map_or("/nocloud/", |(_, path)| path);
    let meta_data = get(METADATA, &format!("{url}meta-data"), "")?.body;
    let field = |name: &str| {
        let line = meta_data.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().trim_matches('"').to_owned()).with_context(|| format!("meta-data lacks {name}"))
    };
    let user_data = get(METADATA, &format!("{url}user-data"), "")?.body;
    Ok(Seed { instance_id: field("instance-id")?, host_name: field("local-hostname")?, user_data })
}

/// Reads the goal state.
pub fn read_goal() -> anyhow::Result<Goal> {
    let versions = get(WIRE_SERVER, "/?comp=versions", "")?.body;
    if !versions.contains("2012-11-30") {
        bail!("the wire server does not speak 2012-11-30");
    }
    let text = get(WIRE_SERVER, "/machine/?comp=goalstate", VERSION_HEADER)?.body;
    let document = roxmltree::Document::parse(&text)?;
    let element = |name: &str| {
        let node = document.descendants().find(|node| node.tag_name().name() == name);
        node.and_then(|node| node.text()).map(str::to_owned).with_context(|| format!("the goal state lacks {name}"))
    };
    Ok(Goal {
        incarnation: element("Incarnation")?,
        container: element("ContainerId")?,
        instance: element("InstanceId")?,
        hosting_environment: element("HostingEnvironmentConfig")?,
    })
}

/// Reads who the guest is and how it is set up.
pub fn read_identity(goal: &Goal) -> anyhow::Result<Identity> {
    let path = goal.hosting_environment.trim_start_matches("http://168.63.129.16:80");
    let text = get(WIRE_SERVER, path, VERSION_HEADER)?.body;
    let document = roxmltree::Document::parse(&text)?;
    let instance = document
        .descendants()
        .find(|node| node.tag_name().name() == "Incarnation")
        .and_then(|node| node.attribute("instance"))
        .context("the hosting environment lacks the instance")?;
    let settings = document
        .descendants()
        .filter(|node| node.tag_name().name() == "Setting")
        .filter_map(|node| Some((node.attribute("name")?.to_owned(), node.attribute("value")?.to_owned())));
    Ok(Identity { instance: instance.to_owned(), settings: settings.collect() })
}

/// The role's post-boot script.
pub struct RoleScript {
    /// The VM's name.
    pub vm: String,
    /// The script, if there is one.
    pub text: Option<String>,
    /// Seconds that each run may take.
    pub timeout_seconds: u64,
    /// How often it is tried.
    pub tries: u64,
    /// Whether it runs at each boot.
    pub each_boot: bool,
}

/// Reads the role's post-boot script.
pub fn read_script() -> anyhow::Result<RoleScript> {
    let value: serde_json::Value = serde_json::from_str(&get(METADATA, "/mayfly/v1/script", "")?.body)?;
    Ok(RoleScript {
        vm: value["vm"].as_str().unwrap_or_default().to_owned(),
        text: value["script"].as_str().map(str::to_owned),
        timeout_seconds: value["timeout_seconds"].as_u64().unwrap_or(600),
        tries: value["tries"].as_u64().unwrap_or(1),
        each_boot: value["each_boot"].as_bool().unwrap_or(false),
    })
}

/// Tells what became of a run of that script.
pub fn report_script(report: &serde_json::Value) -> anyhow::Result<()> {
    let body = report.to_string();
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    exchange(METADATA, "POST", "/mayfly/v1/script/report", &headers, &body).map(drop)
}

/// Reports Ready and returns the number of the newest goal state.
pub fn report_ready(goal: &Goal) -> anyhow::Result<String> {
    let Goal { incarnation, container, instance, .. } = goal;
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Health><GoalStateIncarnation>{incarnation}</GoalStateIncarnation>\
         <Container><ContainerId>{container}</ContainerId><RoleInstanceList><Role><InstanceId>{instance}</InstanceId>\
         <Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>"
    );
    let headers =
        format!("{VERSION_HEADER}Content-Type: text/xml; charset=utf-8\r\nContent-Length: {}\r\n", body.len());
    let answer = exchange(WIRE_SERVER, "POST", "/machine?comp=health", &headers, &body)?;
    let header = "x-ms-latest-goal-state-incarnation-number:";
    let latest = answer.head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(header).map(str::to_owned));
    Ok(latest.map_or_else(|| incarnation.clone(), |latest| latest.trim().to_owned()))
}

/// Asks until there is an answer: the host's servers may be a moment later than the guest.
fn get(address: [u8; 4], path: &str, headers: &str) -> anyhow::Result<Answer> {
    let mut last = None;
    for _ in 0..200 {
        match exchange(address, "GET", path, headers, "") {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("never asked")))
}

fn exchange(address: [u8; 4], method: &str, path: &str, headers: &str, body: &str) -> anyhow::Result<Answer> {
    let address = SocketAddr::from((address, 80));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let host = address.ip();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nMetadata: true\r\nConnection: close\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").context("not an HTTP answer")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{method} {path}: {}", head.lines().next().unwrap_or(""));
    }
    Ok(Answer { head: head.to_owned(), body: body.to_owned() })
}
