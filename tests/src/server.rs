//! Servers that play master and backup, and what can happen to them.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    Lab, Namespace, Process, journal,
    topology::PORT,
    wait::{patience, until, until_true},
};

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This crate's own `lab-server`: misbehaves on demand, speaks websocket.
    Lab,
    /// Debian's nginx.
    Nginx,
}

/// A server process on [`PORT`] of every address of its host.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    host: Arc<Namespace>,
    dir: PathBuf,
    /// What nginx's configuration says beside the lab's own server.
    more: String,
    process: Option<Process>,
}

impl Server {
    /// Starts `lab-server`; it answers `/` with its host's name.
    pub fn start(lab: &Lab, host: &Arc<Namespace>) -> Result<Self> {
        Self::start_kind(lab, host, Kind::Lab)
    }

    /// Starts a server of this kind.
    pub fn start_kind(lab: &Lab, host: &Arc<Namespace>, kind: Kind) -> Result<Self> {
        Self::start_with(lab, host, kind, String::new())
    }

    /// Starts nginx with more in its `http` block.
    pub fn nginx(lab: &Lab, host: &Arc<Namespace>, more: String) -> Result<Self> {
        Self::start_with(lab, host, Kind::Nginx, more)
    }

    fn start_with(lab: &Lab, host: &Arc<Namespace>, kind: Kind, more: String) -> Result<Self> {
        let mut server = Self {
            kind,
            host: Arc::clone(host),
            dir: lab.file(host.name()),
            more,
            process: None,
        };
        fs::create_dir_all(&server.dir).context("cannot make the server's folder")?;
        server.restart()?;
        Ok(server)
    }

    /// Starts it after [`Server::kill`]; back when this returns.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("{} runs already", self.host.name());
        }
        let mut process = match self.kind {
            Kind::Lab => {
                let mut command = self.host.command(binary("lab-server", "LAB_SERVER")?);
                command.args(["--name", self.host.name()]);
                command.args(["--listen", &format!("[::]:{PORT}")]);
                Process::start(self.host.name(), command)?
            }
            Kind::Nginx => {
                let config = self.dir.join("nginx.conf");
                fs::write(&config, self.nginx_config()).context("cannot write nginx.conf")?;
                let mut command = self.host.command("nginx");
                command.arg("-p").arg(&self.dir).arg("-c").arg(&config);
                command.args(["-e", "stderr"]);
                Process::start(self.host.name(), command)?
            }
        };
        let me = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        until(&format!("{} to serve", self.host.name()), || {
            if let Some(status) = process.ended() {
                bail!("it ended: {status}: {:?}", process.lines());
            }
            self.host.run(|| {
                TcpStream::connect_timeout(&me, patience(Duration::from_secs(1))).context("connect")
            })
        })?;
        journal::note(self.host.name(), "serves");
        self.process = Some(process);
        Ok(())
    }

    fn nginx_config(&self) -> String {
        let dir = self.dir.display();
        let (name, more) = (self.host.name(), &self.more);
        // One process, so that a kill leaves no worker behind.
        format!(
            "daemon off; master_process off; pid {dir}/pid;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               access_log off;\n\
               client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
               fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi;\n\
               scgi_temp_path {dir}/scgi;\n\
               server {{\n\
                 listen [::]:{PORT} ipv6only=off;\n\
                 default_type application/json;\n\
                 location = /status {{ return 200 '{{\"version\":\"1.0\"}}'; }}\n\
                 location / {{ add_header X-Peer $remote_addr; return 200 {name}; }}\n\
               }}\n\
               {more}\n\
             }}\n"
        )
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the server does not run")
    }

    /// Gone at once: its kernel resets or closes its connections and refuses new ones.
    pub fn kill(&mut self) -> Result<()> {
        self.running()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Hangs: its kernel still accepts connections, nobody answers.
    pub fn stop(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGSTOP)
    }

    /// Ends [`Server::stop`].
    pub fn cont(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// `/status` answers with this code from now on.
    pub fn set_status(&mut self, code: u16) -> Result<()> {
        self.order(&format!("status {code}"))
    }

    /// `/status` answers with this body from now on.
    pub fn set_body(&mut self, body: &str) -> Result<()> {
        self.order(&format!("body {body}"))
    }

    /// `/status` answers this late from now on.
    pub fn set_delay(&mut self, delay: Duration) -> Result<()> {
        self.order(&format!("delay {}", delay.as_millis()))
    }

    /// `/status` is well again.
    pub fn behave(&mut self) -> Result<()> {
        self.order("behave")
    }

    fn order(&mut self, order: &str) -> Result<()> {
        let process = self.running()?;
        let before = process.lines().len();
        process.say(order)?;
        let done = format!("done: {order}");
        until_true(&done, || {
            process
                .lines()
                .iter()
                .skip(before)
                .any(|line| *line == done)
        })
    }
}

/// A binary that cargo built: named by the environment, else beside this program.
pub fn binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let me = env::current_exe().context("cannot tell where this program is")?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: use `cargo xtask`, or set {variable}"))
}
