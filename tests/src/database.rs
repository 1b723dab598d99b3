//! Redis and PostgreSQL, as Debian packages them.
//!
//! PostgreSQL refuses to run as root. It runs as its own user, with its data in a tmpfs
//! that only its host sees, and in an IPC namespace of its own: so nothing of it is left
//! behind when it is killed.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
    unistd::{User, chown},
};

use crate::{
    Lab, Namespace, Process,
    topology::PORT,
    wait::{patience, until},
};

/// A database on [`PORT`] of every address of its host.
#[derive(Debug)]
struct Running {
    host: Arc<Namespace>,
    process: Option<Process>,
}

impl Running {
    fn new(host: &Arc<Namespace>) -> Self {
        Self {
            host: Arc::clone(host),
            process: None,
        }
    }

    /// Starts it; it listens when this returns.
    fn start(&mut self, command: Command) -> Result<()> {
        if self.process.is_some() {
            bail!("{} runs already", self.host.name());
        }
        let mut process = Process::start(self.host.name(), command)?;
        let me = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        until(&format!("{} to listen", self.host.name()), || {
            if let Some(status) = process.ended() {
                bail!("it ended: {status}: {:?}", process.lines());
            }
            self.host.run(|| {
                TcpStream::connect_timeout(&me, patience(Duration::from_secs(1))).context("connect")
            })
        })?;
        self.process = Some(process);
        Ok(())
    }

    fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the database does not run")
    }

    fn kill(&mut self) -> Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }
}

/// A Redis that keeps nothing.
#[derive(Debug)]
pub struct Redis {
    running: Running,
    dir: PathBuf,
    options: Vec<String>,
}

impl Redis {
    /// Starts one with these options beside what the lab needs.
    pub fn start(lab: &Lab, host: &Arc<Namespace>, options: &[&str]) -> Result<Self> {
        let mut redis = Self {
            running: Running::new(host),
            dir: lab.file(host.name()),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        fs::create_dir_all(&redis.dir).context("cannot make the server's folder")?;
        redis.restart()?;
        Ok(redis)
    }

    /// Starts it after [`Redis::kill`].
    pub fn restart(&mut self) -> Result<()> {
        let mut command = self.running.host.command("redis-server");
        command.args(["--port", &PORT.to_string()]);
        command.args(["--bind", "*", "-::*", "--protected-mode", "no"]);
        command.args(["--save", "", "--appendonly", "no"]);
        // Replicas are there at once, not after five seconds.
        command.args(["--repl-diskless-sync-delay", "0", "--dir"]);
        command.arg(&self.dir).args(&self.options);
        self.running.start(command)
    }

    /// What it answers to a command given on its own host.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let port = PORT.to_string();
        let all = [&["-p", &port], words].concat();
        let answer = self.running.host.ask("redis-cli", &all)?;
        Ok(answer.trim().to_owned())
    }

    /// It follows the Redis at this address from now on.
    pub fn follow(&self, master: SocketAddr) -> Result<()> {
        let (host, port) = (master.ip().to_string(), master.port().to_string());
        self.ask(&["replicaof", &host, &port]).map(drop)
    }

    /// It is a master from now on.
    pub fn promote(&self) -> Result<()> {
        self.ask(&["replicaof", "no", "one"]).map(drop)
    }

    /// Gone at once.
    pub fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }
}

/// Where PostgreSQL has its data, on its host.
const DATA: &str = "/mnt/data";
/// One role for each way to log in, with the password `hunter2`.
const HBA: &str = "\
host all postgres 127.0.0.1/32 trust
host replication postgres 0.0.0.0/0 trust
host all trusted 0.0.0.0/0 trust
host all clear 0.0.0.0/0 password
host all hashed 0.0.0.0/0 md5
host all probe 0.0.0.0/0 scram-sha-256
";
const ROLES: &str = "\
CREATE ROLE trusted LOGIN;
CREATE ROLE clear LOGIN PASSWORD 'hunter2';
CREATE ROLE probe LOGIN PASSWORD 'hunter2';
SET password_encryption = 'md5';
CREATE ROLE hashed LOGIN PASSWORD 'hunter2';";

/// A PostgreSQL server with the user `postgres`, trusted on its own host, and the users
/// `trusted`, `clear`, `hashed` and `probe`, who log in from anywhere in different ways.
#[derive(Debug)]
pub struct Postgres {
    running: Running,
}

impl Postgres {
    /// Makes a primary and starts it.
    pub fn start(host: &Arc<Namespace>) -> Result<Self> {
        let mut postgres = Self::prepare(host)?;
        postgres.tool(
            "initdb",
            &["-D", DATA, "-A", "trust", "-U", "postgres", "-N"],
        )?;
        postgres.running.host.run(|| {
            fs::write(Path::new(DATA).join("pg_hba.conf"), HBA).context("cannot write pg_hba.conf")
        })?;
        postgres.restart(&[])?;
        postgres.ask(ROLES)?;
        Ok(postgres)
    }

    /// Makes a standby of the primary at this address, started with options.
    pub fn start_standby(
        host: &Arc<Namespace>,
        primary: SocketAddr,
        options: &[&str],
    ) -> Result<Self> {
        let mut postgres = Self::prepare(host)?;
        let (at, port) = (primary.ip().to_string(), primary.port().to_string());
        let from = ["-h", &at, "-p", &port, "-U", "postgres", "-D", DATA];
        let how = ["-R", "-X", "stream", "-c", "fast", "-N"];
        postgres.tool("pg_basebackup", &[&from[..], &how].concat())?;
        postgres.restart(options)?;
        Ok(postgres)
    }

    fn prepare(host: &Arc<Namespace>) -> Result<Self> {
        let user = user()?;
        host.run(|| {
            let nothing: Option<&str> = None;
            mount(
                Some("tmpfs"),
                "/mnt",
                Some("tmpfs"),
                MsFlags::empty(),
                nothing,
            )
            .context("cannot mount a tmpfs")?;
            chown("/mnt", Some(user.uid), Some(user.gid)).context("cannot give /mnt away")
        })?;
        Ok(Self {
            running: Running::new(host),
        })
    }

    /// Starts it with options, after [`Postgres::stop`] or [`Postgres::kill`] too.
    pub fn restart(&mut self, options: &[&str]) -> Result<()> {
        let mut command = self.command("postgres")?;
        command.args(["-D", DATA, "-p", &PORT.to_string()]);
        for setting in [
            "listen_addresses=*",
            "unix_socket_directories=",
            // Nothing that outlives it in /dev/shm.
            "dynamic_shared_memory_type=mmap",
            "shared_buffers=4MB",
            "fsync=off",
        ] {
            command.args(["-c", setting]);
        }
        for option in options {
            command.args(["-c", option]);
        }
        self.running.start(command)
    }

    /// Starts it so that it takes TLS, with this certificate and key.
    pub fn encrypt(&mut self, certificate: &Path, key: &Path) -> Result<()> {
        let user = user()?;
        self.running.host.run(|| {
            for (from, to) in [(certificate, "/mnt/tls.pem"), (key, "/mnt/tls.key")] {
                fs::copy(from, to).with_context(|| format!("cannot make {to}"))?;
                // Readable for the server and for nobody else, or it does not start.
                chown(to, Some(user.uid), Some(user.gid)).context("cannot give it away")?;
                fs::set_permissions(to, Permissions::from_mode(0o600)).context("permissions")?;
            }
            Ok(())
        })?;
        self.restart(&[
            "ssl=on",
            "ssl_cert_file=/mnt/tls.pem",
            "ssl_key_file=/mnt/tls.key",
        ])
    }

    /// What it answers to statements on its own host; asked until it takes them.
    pub fn ask(&self, statements: &str) -> Result<String> {
        let port = PORT.to_string();
        let args = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-qAtXc",
            statements,
        ];
        let answer = until("an answer of PostgreSQL", || {
            self.running.host.ask("psql", &args)
        })?;
        Ok(answer.trim().to_owned())
    }

    /// It is a primary from now on.
    pub fn promote(&self) -> Result<()> {
        self.ask("SELECT pg_promote()").map(drop)
    }

    /// Ends it in order.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.running.process()?;
        process.signal(Signal::SIGINT)?;
        process.wait(patience(Duration::from_secs(20)))?;
        self.running.process = None;
        Ok(())
    }

    /// Gone at once; its children notice that.
    pub fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }

    /// What it wrote to its log.
    pub fn log(&mut self) -> Result<Vec<String>> {
        Ok(self.running.process()?.lines())
    }

    fn tool(&self, name: &str, args: &[&str]) -> Result<()> {
        let mut command = self.command(name)?;
        command.args(args);
        let mut process = Process::start(name, command)?;
        let status = process.wait(patience(Duration::from_secs(60)))?;
        if !status.success() {
            bail!("{name}: {status}: {:?}", process.lines());
        }
        Ok(())
    }

    /// A program of the server's, as its user.
    fn command(&self, name: &str) -> Result<Command> {
        let mut command = self.running.host.command("unshare");
        command.args(["--ipc", "setpriv", "--reuid=postgres", "--regid=postgres"]);
        // Another user's processes lose the signal that the lab asked for.
        command.args(["--clear-groups", "--pdeathsig", "KILL"]);
        command
            .arg(server_folder()?.join(name))
            .env_clear()
            .env("PATH", path());
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        Ok(command)
    }
}

fn user() -> Result<User> {
    let user = User::from_name("postgres").context("cannot look up postgres")?;
    user.context("there is no user postgres: it comes with the package")
}

fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// The programs of the newest version that is installed.
fn server_folder() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("there is no PostgreSQL")?;
    versions
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            folder
                .join("postgres")
                .is_file()
                .then_some((version, folder))
        })
        .max()
        .map(|(_, folder)| folder)
        .context("there is no PostgreSQL server: install Debian's package postgresql")
}
