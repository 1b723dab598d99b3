//! The agent under test: its configuration, its process, its status.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    Cgroup, Lab, Namespace, Process, Way, journal,
    server::binary,
    topology::{
        BACKUP_V4, BACKUP_V6, MASTER_V4, MASTER_V6, VIP_BACKUP_V4, VIP_BACKUP_V6, VIP_MASTER_V4,
        VIP_MASTER_V6, VIP_V4, VIP_V6,
    },
    wait::{generous, patience, until},
};

/// Where the agent of every lab tells its metrics, inside the node.
pub const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9377);

/// How long a clean shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The configuration that fits the lab: one service in both families with master,
/// backup and a listener of each. A test changes the fields that it is about.
///
/// JSON is YAML, so the tests need no YAML writer.
pub fn config(lab: &Lab) -> Value {
    let interfaces = match lab.way {
        Way::Edge | Way::EdgeAmongPods => json!({"edge": ["veth-*"]}),
        Way::Uplink => json!({"uplink": ["up0"]}),
    };
    let millis = |real| format!("{}ms", patience(Duration::from_millis(real)).as_millis());
    json!({
        "interfaces": interfaces,
        "control": {"socket": lab.file("probe.sock")},
        "metrics": {"listen": METRICS.to_string()},
        "services": [{
            "name": "sense",
            "listeners": [VIP_V4.to_string(), VIP_V6.to_string()],
            "endpoints": [
                {
                    "name": "master",
                    "address": [MASTER_V4.to_string(), MASTER_V6.to_string()],
                    "listeners": [VIP_MASTER_V4.to_string(), VIP_MASTER_V6.to_string()],
                },
                {
                    "name": "backup",
                    "address": [BACKUP_V4.to_string(), BACKUP_V6.to_string()],
                    "listeners": [VIP_BACKUP_V4.to_string(), VIP_BACKUP_V6.to_string()],
                },
            ],
            "check": {
                "http": {
                    "path": "/status",
                    "host": "sense.example.com",
                    "expect": {"status": 200, "body": {"contains": "version"}},
                },
                "inter": millis(10),
                "timeout": millis(100),
                "rise": 2,
                "fall": 2,
            },
            "failback": {"mode": "auto", "hold": "300ms"},
        }],
    })
}

/// A `probe run` on the node.
pub struct Agent {
    node: Arc<Namespace>,
    program: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    cgroup: Option<Arc<Cgroup>>,
    process: Option<Process>,
}

impl Agent {
    /// Starts it with a configuration and waits until it selected for every service.
    pub fn start(lab: &Lab, config: &Value) -> Result<Self> {
        Self::start_with(lab, config, &[])
    }

    /// [`Agent::start`] with options such as `--detach`.
    pub fn start_with(lab: &Lab, config: &Value, options: &[&str]) -> Result<Self> {
        let mut agent = Self::new(lab, config, options)?;
        agent.restart()?;
        Ok(agent)
    }

    /// Writes the configuration, starts nothing.
    pub fn new(lab: &Lab, config: &Value, options: &[&str]) -> Result<Self> {
        let path = lab.file("probe.yaml");
        let mut config = config.clone();
        keep_from_the_machine(&mut config)?;
        let text = serde_json::to_string_pretty(&config).context("a configuration is JSON")?;
        fs::write(&path, text).context("cannot write the configuration")?;
        Ok(Self {
            node: Arc::clone(&lab.node),
            program: binary("probe", "PROBE_BIN")?,
            config: path,
            socket: lab.file("probe.sock"),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            environment: Vec::new(),
            cgroup: None,
            process: None,
        })
    }

    /// Its process will be one of this cgroup.
    pub fn admit(&mut self, cgroup: &Arc<Cgroup>) {
        self.cgroup = Some(Arc::clone(cgroup));
    }

    /// Its environment will say this too.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Replaces the configuration file; the agent goes on by the old one until it is told.
    pub fn rewrite(&self, config: &Value) -> Result<()> {
        let mut config = config.clone();
        keep_from_the_machine(&mut config)?;
        let text = serde_json::to_string_pretty(&config).context("a configuration is JSON")?;
        fs::write(&self.config, text).context("cannot write the configuration")
    }

    /// Where the configuration is.
    pub fn config_file(&self) -> &Path {
        &self.config
    }

    /// Sends the process a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process()?.signal(signal)
    }

    /// Starts the process after it ended and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait("the agent to be ready", |status| {
            let services = status["services"].as_array().context("no services")?;
            for endpoint in services
                .iter()
                .filter_map(|s| s["endpoints"].as_array())
                .flatten()
            {
                if endpoint["state"] == "unknown" {
                    bail!("{} is not checked", endpoint["name"]);
                }
            }
            Ok(())
        })?;
        self.health()
    }

    /// Starts the process and does not wait.
    pub fn launch(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the agent runs already");
        }
        let mut command = self.node.command(&self.program);
        command.arg("run").arg("--config").arg(&self.config);
        command.args(&self.options);
        command.envs(self.environment.iter().cloned());
        if let Some(cgroup) = &self.cgroup {
            cgroup.admit(&mut command);
        }
        self.process = Some(Process::start("probe", command)?);
        Ok(())
    }

    fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent does not run")
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// What it printed.
    pub fn printed(&self) -> String {
        self.process
            .as_ref()
            .map(|process| process.lines().join("\n"))
            .unwrap_or_default()
    }

    /// Asks it to end and waits; what it printed until the end comes along.
    pub fn terminate(&mut self) -> Result<(ExitStatus, String)> {
        self.process()?.signal(Signal::SIGTERM)?;
        self.wait_end()
    }

    /// Waits for its end.
    pub fn wait_end(&mut self) -> Result<(ExitStatus, String)> {
        let process = self.process()?;
        let status = process.wait(patience(SHUTDOWN))?;
        let printed = process.lines().join("\n");
        self.process = None;
        Ok((status, printed))
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Runs another verb of `probe` on the node: exit code, standard output and error.
    pub fn probe(&self, args: &[&str]) -> Result<(i32, String, String)> {
        probe(&self.node, args)
    }

    /// Runs a verb that talks to this agent, and must succeed.
    pub fn order(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket.to_string_lossy().into_owned();
        let mut all = args.to_vec();
        all.extend(["--socket", &socket]);
        let (code, stdout, stderr) = self.probe(&all)?;
        if code != 0 {
            bail!("`probe {}` exits with {code}: {stderr}", args.join(" "));
        }
        Ok(stdout)
    }

    /// Runs a verb that talks to this agent: exit code, standard output and error.
    pub fn ask(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let socket = self.socket.to_string_lossy().into_owned();
        let mut all = args.to_vec();
        all.extend(["--socket", &socket]);
        self.probe(&all)
    }

    /// The status object.
    pub fn status(&self) -> Result<Value> {
        self.status_within(patience(Duration::from_secs(2)))
    }

    fn status_within(&self, limit: Duration) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket).context("no control socket")?;
        stream.set_read_timeout(Some(limit)).context("timeout")?;
        let body = http_get(&mut stream, "/v1/status")?;
        serde_json::from_str(&body).context("the status is no JSON")
    }

    /// /healthz answers with 200.
    pub fn health(&self) -> Result<()> {
        until("/healthz", || self.metrics_page("/healthz").map(drop))
    }

    /// A page of the metrics server.
    pub fn metrics_page(&self, path: &str) -> Result<String> {
        self.node.run(|| {
            let mut stream = TcpStream::connect_timeout(&METRICS, patience(Duration::from_secs(1)))
                .context("no metrics server")?;
            stream
                .set_read_timeout(Some(patience(Duration::from_secs(2))))
                .context("timeout")?;
            http_get(&mut stream, path)
        })
    }

    /// Waits until the status fulfils a condition.
    pub fn wait<T>(&mut self, what: &str, mut ask: impl FnMut(&Value) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            // Looked at first: a status cannot come after the end.
            let ended = self.process()?.ended();
            let error = match self
                .status()
                .and_then(|status| ask(&status).with_context(|| format!("status {status}")))
            {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let Some(status) = ended {
                bail!("waiting for {what}, the agent ended: {status}");
            }
            if begun.elapsed() > generous() {
                return Err(error.context(format!("waited {:?} for {what}", generous())));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the service goes to this endpoint; returns the reason of the switch.
    pub fn wait_selected(&mut self, endpoint: &str) -> Result<String> {
        self.wait(&format!("the selection of {endpoint}"), |status| {
            let selection = &status["services"][0]["selection"];
            if selection["endpoint"] != endpoint {
                bail!("the selection is {selection}");
            }
            Ok(selection["reason"].as_str().unwrap_or_default().to_owned())
        })
    }

    /// Waits until an endpoint is `up` or `down`; returns its verdict.
    pub fn wait_state(&mut self, endpoint: &str, state: &str) -> Result<String> {
        self.wait(&format!("{endpoint} to be {state}"), |status| {
            let endpoint = find_endpoint(status, endpoint)?;
            if endpoint["state"] != state {
                bail!("it is {}", endpoint["state"]);
            }
            Ok(endpoint["verdict"].as_str().unwrap_or_default().to_owned())
        })
    }

    /// How often the service switched.
    pub fn switches(&self) -> Result<u64> {
        self.status()?["services"][0]["selection"]["switches"]
            .as_u64()
            .context("no count of switches")
    }
}

/// Leaves what the programs counted in the journal, for who reads of a test that failed.
impl Drop for Agent {
    fn drop(&mut self) {
        // One that was killed or stopped does not tell.
        let Ok(status) = self.status_within(Duration::from_millis(200)) else {
            return;
        };
        let counted = status["datapath"]["reasons"].as_object();
        let counted = counted.into_iter().flatten().filter(|(_, n)| **n != 0);
        let counted: Vec<_> = counted.map(|(reason, n)| format!("{reason} {n}")).collect();
        journal::note("probe", &format!("counted: {}", counted.join(", ")));
    }
}

/// No agent of the lab comes near the machine's cgroups, whatever the default is: only a test
/// that made one may have its processes steered.
fn keep_from_the_machine(config: &mut Value) -> Result<()> {
    let cgroup = config["datapath"]["cgroup"].as_str().unwrap_or_default();
    // What is no cgroup at all does no harm either.
    let safe = !cgroup.is_empty() && Cgroup::is_harmless(Path::new(cgroup));
    if let Some(interfaces) = config["interfaces"].as_object_mut() {
        let node = interfaces.entry("node").or_insert_with(|| json!("off"));
        if *node != "off" && !safe {
            bail!("interfaces.node: {node}: datapath.cgroup must be one that a test made");
        }
    }
    Ok(())
}

/// An endpoint of the first service in a status object.
pub fn find_endpoint<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    status["services"][0]["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|endpoint| endpoint["name"] == name)
        .with_context(|| format!("no endpoint {name}"))
}

/// Runs `probe` in a namespace: exit code, standard output and error.
pub fn probe(host: &Arc<Namespace>, args: &[&str]) -> Result<(i32, String, String)> {
    let program = binary("probe", "PROBE_BIN")?;
    let output = host.output(&program.to_string_lossy(), args)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((
        output
            .status
            .code()
            .with_context(|| format!("probe {args:?}: {}", output.status))?,
        text(&output.stdout),
        text(&output.stderr),
    ))
}

/// A GET over any stream; fails on another status than 200.
fn http_get(stream: &mut (impl Read + Write), path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .context("cannot send a request")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("cannot read an answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of its head")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {head}: {body}");
    }
    if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        bail!("{path}: a chunked answer");
    }
    Ok(body.to_owned())
}
