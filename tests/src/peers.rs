//! Other people's servers that checks talk to: gRPC's own library, and HAProxy behind a PROXY
//! header.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    Lab, Namespace, Process,
    topology::PORT,
    wait::{patience, until, until_true},
};

/// Debian's own: what PATH finds first may lack Debian's modules.
const PYTHON: &str = "/usr/bin/python3";
const HEALTH_SERVICE: &str = include_str!("health_service.py");

/// gRPC's health service by gRPC's Python library, on [`PORT`].
#[derive(Debug)]
pub struct HealthService(Process);

impl HealthService {
    /// Starts one that serves as a whole, and knows no service by its name.
    pub fn start(host: &Arc<Namespace>) -> Result<Self> {
        let mut command = host.command(PYTHON);
        // Isolated: no variable of whoever runs the tests changes what it imports.
        command.args(["-I", "-c", HEALTH_SERVICE, &PORT.to_string()]);
        listening(host, Process::start(host.name(), command)?).map(Self)
    }

    /// What it answers of a service from now on; `-` is the server as a whole.
    pub fn set(&mut self, service: &str, status: &str) -> Result<()> {
        let order = format!("{service} {status}");
        let before = self.0.lines().len();
        self.0.say(&order)?;
        let done = format!("done: {order}");
        until_true(&done, || self.0.lines()[before..].contains(&done))
    }

    /// Gone at once.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()
    }
}

/// A HAProxy that takes connections on [`PORT`] behind a PROXY header alone. It answers with
/// `proxied=1` where there was one, and with what it knows of the client.
pub fn haproxy_behind_proxy(lab: &Lab, host: &Arc<Namespace>) -> Result<Process> {
    let config = lab.file("haproxy.cfg");
    let text = format!(
        "global\n\
         \x20 nbthread 1\n\
         defaults\n\
         \x20 mode http\n\
         \x20 timeout client 10s\n\
         \x20 timeout http-request 10s\n\
         frontend proxied\n\
         \x20 bind :{PORT} accept-proxy\n\
         \x20 http-request return status 200 content-type text/plain \
         lf-string \"proxied=%[fc_rcvd_proxy] from %[src] to %[dst]:%[dst_port]\"\n"
    );
    fs::write(&config, text).context("cannot write the configuration")?;
    let mut command = host.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    listening(host, Process::start(host.name(), command)?)
}

/// The process, when it listens.
fn listening(host: &Arc<Namespace>, mut process: Process) -> Result<Process> {
    let me = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    until(&format!("{} to listen", host.name()), || {
        if let Some(status) = process.ended() {
            bail!("it ended: {status}: {:?}", process.lines());
        }
        host.run(|| {
            TcpStream::connect_timeout(&me, patience(Duration::from_secs(1))).context("connect")
        })
        .map(drop)
    })?;
    Ok(process)
}
