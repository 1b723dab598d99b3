//! Two hosts, the server on one, whoever checks on the other.

use std::{
    env,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{
    Namespace, Process,
    folder::Folder,
    link::{End, veth},
    process::fork_from_spawner,
    until,
};
use nix::{
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
    },
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use crate::serve::Counted;

/// Of the first thread of the server that stands for all endpoints.
const PORT: u16 = 8080;
/// Threads of it. Endpoints are many hosts, and each can answer while another one does: with one thread
/// the server would be waited for.
const THREADS: u16 = 2;
/// Of the one that is killed and stopped; a port of its own, since the other has all
/// addresses of its ports.
pub const VICTIM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 50, 255, 1), 9080);
/// Descriptors for 10,000 kept connections and as many new ones.
const DESCRIPTORS: u64 = 100_000;

/// Where the server answers for this endpoint.
pub fn endpoint(number: usize) -> SocketAddrV4 {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    let [high, low] = number.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(10, 50, high, low), PORT + number % THREADS)
}

/// The hosts.
pub struct Rig {
    /// Dropped before the hosts it lives on.
    pub server: Server,
    pub checker: Arc<Namespace>,
    servers: Arc<Namespace>,
    dir: Folder,
}

impl Rig {
    pub fn new(realtime: bool) -> Result<Self> {
        // Children inherit it; without the right to it the machine's limit stays.
        setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).ok();
        let checker = Namespace::new("checker")?;
        let servers = Namespace::new("servers")?;
        veth(
            &End {
                namespace: &checker,
                interface: "eth0",
                mac: 1,
                v4: "10.49.0.1/24".to_owned(),
                v6: "fd00:49::1/64".to_owned(),
            },
            &End {
                namespace: &servers,
                interface: "eth0",
                mac: 2,
                v4: "10.49.0.2/24".to_owned(),
                v6: "fd00:49::2/64".to_owned(),
            },
        )?;
        checker.ip(["route add 10.50.0.0/16 via 10.49.0.2"])?;
        checker.sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
        servers.ip(["route add local 10.50.0.0/16 dev lo"])?;
        servers.sysctl(&[
            ("core/somaxconn", "65535"),
            ("ipv4/tcp_max_syn_backlog", "65535"),
            // Who asked for `Connection: close` leaves the rest of the closing to the server.
            ("ipv4/tcp_max_tw_buckets", "1024"),
        ])?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        Ok(Self {
            server: Server::start(&servers, "server", any, THREADS, realtime)?,
            checker,
            servers,
            dir: Folder::new()?,
        })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// TCP connections that were begun on the side of whoever checks. HAProxy gives up those of
    /// its plain TCP checks before the server's kernel takes them for connections.
    pub fn connects(&self) -> Result<u64> {
        let text = self.checker.run(|| {
            std::fs::read_to_string("/proc/thread-self/net/snmp").context("the counters of TCP")
        })?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next(), lines.next());
        let mut both = names
            .into_iter()
            .flat_map(str::split_whitespace)
            .zip(values.into_iter().flat_map(str::split_whitespace));
        let (_, value) = both
            .find(|(name, _)| *name == "ActiveOpens")
            .context("no count of connections")?;
        value.parse().context("a count of connections")
    }

    /// Starts the one that will be killed.
    pub fn victim(&self, realtime: bool) -> Result<Server> {
        Server::start(&self.servers, "victim", VICTIM, 1, realtime)
    }

    /// Starts what keeps all CPUs busy, with as many threads.
    pub fn burn(&self, threads: usize) -> Result<Process> {
        let mut command = self.servers.command(env::current_exe().context("myself")?);
        command.args(["burn", "--threads", &threads.to_string()]);
        Process::start("other work", command)
    }
}

/// A process of [`crate::serve`].
pub struct Server {
    process: Process,
    /// Answers that were read.
    read: usize,
}

impl Server {
    fn start(
        host: &Arc<Namespace>,
        name: &str,
        listen: SocketAddrV4,
        threads: u16,
        realtime: bool,
    ) -> Result<Self> {
        let mut command = host.command(env::current_exe().context("myself")?);
        command.args(["serve", "--listen", &listen.to_string()]);
        command.args(["--threads", &threads.to_string()]);
        if realtime {
            command.arg("--realtime");
        }
        let mut server = Self {
            process: Process::start(name, command)?,
            read: 0,
        };
        server.line()?;
        Ok(server)
    }

    fn line(&mut self) -> Result<String> {
        let (process, read) = (&mut self.process, self.read);
        let line = until("the server's answer", || {
            if let Some(line) = process.lines().get(read) {
                return Ok(line.clone());
            }
            match process.ended() {
                Some(status) => bail!("it ended: {status}"),
                None => bail!("nothing yet"),
            }
        })?;
        self.read += 1;
        Ok(line)
    }

    fn ask(&mut self, order: &str) -> Result<String> {
        self.process.say(order)?;
        self.line()
    }

    /// Counts from now on.
    pub fn begin(&mut self) -> Result<()> {
        self.ask("begin").map(drop)
    }

    /// To how many addresses something came since then.
    pub fn seen(&mut self) -> Result<usize> {
        self.ask("seen")?.parse().context("a number")
    }

    /// What was counted since then.
    pub fn end(&mut self) -> Result<Counted> {
        serde_json::from_str(&self.ask("end")?).context("the server's figures")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.process.pid())
    }
}

/// What all threads of a process have used, user and system time, to the nanosecond.
fn cpu_of(pid: u32) -> Result<Duration> {
    let pid = Pid::from_raw(pid.cast_signed());
    let clock = clock_getcpuclockid(pid).context("no clock of the process")?;
    Ok(clock_gettime(clock).context("no CPU time")?.into())
}

/// Whoever checks: a process whose standard error is read as it comes.
pub struct Checker {
    child: Child,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Checker {
    pub fn start(mut command: std::process::Command) -> Result<Self> {
        command.stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = fork_from_spawner(command).context("cannot start whoever checks")?;
        let stderr = child.stderr.take().expect("stderr is piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            // The moment of a line is that of its reading.
            crate::realtime();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let read = (Instant::now(), line);
                to.lock().unwrap_or_else(PoisonError::into_inner).push(read);
            }
        });
        Ok(Self {
            child,
            lines,
            reader: Some(reader),
        })
    }

    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// Resident memory, and of it what is its own (no file, nothing shared), in bytes.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib = line.trim_start_matches(':').split_whitespace().next()?;
            Some(kib.parse::<u64>().ok()? * 1024)
        };
        let rss = of("VmRSS").context("no VmRSS")?;
        Ok((rss, of("RssAnon").context("no RssAnon")?))
    }

    /// Lines from `since` on of which this holds.
    pub fn lines(&self, since: Instant, mut holds: impl FnMut(&str) -> bool) -> Vec<Instant> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = lines
            .iter()
            .filter(|(at, line)| *at >= since && holds(line));
        mine.map(|(at, _)| *at).collect()
    }

    /// Waits for such a line; when it came. Nothing if it does not within the time.
    pub fn wait(
        &self,
        since: Instant,
        limit: Duration,
        mut holds: impl FnMut(&str) -> bool,
    ) -> Option<Instant> {
        loop {
            if let Some(at) = self.lines(since, &mut holds).first() {
                return Some(*at);
            }
            if since.elapsed() > limit {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Has it ended by itself? Then that is an error, with what it said last.
    pub fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("cannot wait")? {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let said = lines.iter().rev().take(5).map(|(_, line)| line.as_str());
            // A message that quotes a configuration is very long; what matters ends it.
            let last: Vec<String> = said
                .map(|line| line.chars().rev().take(300).collect::<Vec<_>>())
                .map(|tail| tail.into_iter().rev().collect())
                .collect();
            bail!("whoever checks ended: {status}: {last:?}");
        }
        Ok(())
    }

    /// Asks it to end; an agent removes what it has in the kernel.
    pub fn stop(mut self) -> Result<()> {
        self.alive()?;
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).context("cannot signal")?;
        let begun = Instant::now();
        while self.child.try_wait().context("cannot wait")?.is_none() {
            if begun.elapsed() > Duration::from_secs(15) {
                bail!("whoever checks does not end");
            }
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
        Ok(())
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        // Ended and reaped by `stop`: both do nothing then.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
