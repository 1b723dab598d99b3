//! Very many idle connections: how soon all of them are told that their server is gone.
//!
//! A process may have only so many descriptors, so clients and servers are processes of
//! this very program, as many as are needed; each client has an address of its own. What
//! a connection is: opened, a byte there and back, silence.
//!
//! Such clients would be on other machines, and these are on the one that tells them. So they do
//! not wake up for each connection, which would cost about as much as telling it: they look every
//! [`LOOK`], which makes a time too long by as much, and close nothing before they are asked.

use std::{
    env, fs,
    io::{self, BufRead, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use lab::{
    Agent, Lab, Namespace, Process, Server, Way,
    foreign::Gate,
    topology::{BACKUP_V4, MASTER_V4, PORT, VIP_V4},
};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        resource::{Resource, getrlimit},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, listen,
            setsockopt, socket, sockopt,
        },
    },
    time::{ClockId, clock_gettime},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    figures::{Time, ms},
    round::verdict_after,
    ways::probe_config,
};

/// Of the idle connections; the lab's server answers the checks at its own.
const FLOWS_PORT: u16 = 9000;
/// What a connection takes in the kernel, both ends of it, generously.
const BYTES_A_FLOW: u64 = 16 << 10;
/// Descriptors that a process needs for itself, and room for uneven shares.
const SPARE: u64 = 2_000;
/// Handshakes that a client has under way.
const AT_ONCE: usize = 64;
/// How often clients that wait for the end look for it.
const LOOK: Duration = Duration::from_millis(1);
/// For all to be told.
const WINDOW: Duration = Duration::from_secs(5);
/// Of a check: opening so many at once keeps the machine busy, and nothing is to be down.
const TIMEOUT: &str = "200ms";

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Flows {
    pub wanted: usize,
    /// Why not all of them, if not.
    pub limited: Option<String>,
    pub open: usize,
    pub opening_took_s: f64,
    pub ended_before: usize,
    pub told: usize,
    /// From the fault, which is that all packets from and to the master vanish.
    pub verdict: Time,
    /// From the verdict to when half of them, and the last one, was told.
    pub half_told: Time,
    pub all_told: Time,
}

/// What this program does as one of many.
#[derive(Subcommand)]
pub enum Worker {
    /// Hold idle connections
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        from: Ipv4Addr,
        #[arg(long)]
        to: SocketAddrV4,
        #[arg(long)]
        count: usize,
    },
    /// Answer each with its byte
    #[command(hide = true)]
    Answer {
        #[arg(long)]
        listen: SocketAddrV4,
    },
}

/// How many fit this machine, and why not more.
fn fit(wanted: usize) -> Result<(usize, Option<String>)> {
    let info = fs::read_to_string("/proc/meminfo").context("the memory")?;
    let free = info
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_whitespace()
                .next()
        })
        .and_then(|kib| kib.parse::<u64>().ok())
        .context("no MemAvailable")?;
    let room = usize::try_from(free * 1024 / 2 / BYTES_A_FLOW)?;
    if room < wanted {
        let why = format!("half of the memory that is free holds {room}");
        return Ok((room, Some(why)));
    }
    Ok((wanted, None))
}

/// Opens so many, lets the master vanish, and counts who is told.
pub fn measure(wanted: usize, mut tell: impl FnMut(&str)) -> Result<Flows> {
    let (count, limited) = fit(wanted)?;
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of descriptors")?;
    let each = limit.saturating_sub(SPARE).clamp(1, 15_000);
    let workers = count.div_ceil(usize::try_from(each)?);
    ensure!(workers <= 200, "{limit} descriptors a process are too few");
    tell(&format!("opening {count} connections, {workers} processes"));
    let lab = Lab::new(Way::Edge)?;
    lab.client
        .sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
    let gate = Gate::at(&lab.master, "eth0")?;
    let _checked = [
        Server::start(&lab, &lab.master)?,
        Server::start(&lab, &lab.backup)?,
    ];
    let at = |address: SocketAddr| SocketAddr::new(address.ip(), FLOWS_PORT);
    let servers = (0..workers)
        .map(|_| {
            let listen = at(MASTER_V4).to_string();
            worker(&lab.master, &["answer", "--listen", &listen])
        })
        .collect::<Result<Vec<_>>>()?;
    for server in &servers {
        wait_line(server, "ready", Duration::from_secs(20))?;
    }
    let mut config = probe_config(&lab);
    let tables = (count * 2).next_power_of_two().max(131_072);
    config["datapath"] = json!({"flows": tables});
    let service = &mut config["services"][0];
    service["listeners"] = json!([at(VIP_V4).to_string()]);
    service["endpoints"][0]["address"] = json!(at(MASTER_V4).to_string());
    service["endpoints"][1]["address"] = json!(at(BACKUP_V4).to_string());
    service["check"]["http"]["port"] = json!(PORT);
    service["check"]["timeout"] = json!(TIMEOUT);
    let mut agent = Agent::start(&lab, &config)?;
    agent.wait_selected("master")?;

    let begun = Instant::now();
    let mut clients = Vec::new();
    for n in 0..workers {
        let from = Ipv4Addr::new(10, 1, 0, u8::try_from(n + 10)?);
        lab.client.ip([format!("addr add {from}/24 dev eth0")])?;
        let share = count / workers + usize::from(n < count % workers);
        let (from, to, share) = (from.to_string(), at(VIP_V4).to_string(), share.to_string());
        let args = ["hold", "--from", &from, "--to", &to, "--count", &share];
        clients.push(worker(&lab.client, &args)?);
    }
    let mut open = 0;
    for client in &clients {
        open += wait_line(client, "open ", Duration::from_secs(120))?
            .parse::<usize>()
            .context("a number")?;
    }
    let opening_took = begun.elapsed();
    // Sweeps and checks go on beside so many.
    thread::sleep(Duration::from_secs(1));

    tell(&format!("{open} connections are open; the master vanishes"));
    let fault_at = Instant::now();
    gate.set(true)?;
    let fault_ns = now_ns()? - i128::try_from(fault_at.elapsed().as_nanos())?;
    thread::sleep(WINDOW);
    let mut ends = Vec::new();
    for client in &mut clients {
        client.say("tell")?;
        for end in wait_line(client, "ended", Duration::from_secs(20))?.split_whitespace() {
            ends.push(end.parse::<i128>().context("a time")? - fault_ns);
        }
    }
    let window = fault_at.elapsed();
    let verdict = verdict_after(&agent.printed(), fault_at);
    drop(agent);
    ends.sort_unstable();
    let ended_before = ends.partition_point(|end| *end < 0);
    let told = ends.len() - ended_before;
    // From the verdict on; without one, nobody was told by us.
    let after = |nth: usize| match (verdict, ends.get(ended_before + nth)) {
        (Some(verdict), Some(end)) => {
            let end = Duration::from_nanos(u64::try_from(*end).unwrap_or_default());
            Time::came(end.saturating_sub(verdict - fault_at))
        }
        (Some(verdict), None) => Time::not_by(window.saturating_sub(verdict - fault_at)),
        (None, _) => Time::not_by(window),
    };
    let there = open - ended_before;
    Ok(Flows {
        wanted,
        limited,
        open,
        opening_took_s: ms(opening_took) / 1e3,
        ended_before,
        told,
        verdict: verdict.map_or_else(|| Time::not_by(window), |at| Time::came(at - fault_at)),
        half_told: after(there / 2),
        all_told: after(there.saturating_sub(1)),
    })
}

/// This program as one of many; it ends with its standard input.
fn worker(host: &Arc<Namespace>, args: &[&str]) -> Result<Process> {
    let mut command = host.command(env::current_exe().context("where this program is")?);
    command.args(args);
    Process::start(args[0], command)
}

/// What follows on the line that begins so.
fn wait_line(process: &Process, begins: &str, limit: Duration) -> Result<String> {
    let begun = Instant::now();
    loop {
        let lines = process.lines();
        if let Some(rest) = lines.iter().find_map(|line| line.strip_prefix(begins)) {
            return Ok(rest.to_owned());
        }
        if begun.elapsed() > limit {
            bail!("{} does not say {begins:?}: {lines:?}", process.name());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn now_ns() -> Result<i128> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("the clock")?;
    Ok(i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec()))
}

/// Runs as one of many.
pub fn work(worker: &Worker) -> Result<()> {
    match worker {
        Worker::Hold { from, to, count } => hold(*from, *to, *count),
        Worker::Answer { listen } => answer(*listen),
    }
}

/// What has no place in a table of connections.
const OTHER: u64 = u64::MAX;

fn epoll_with(fd: impl AsFd) -> Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
    epoll
        .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, OTHER))
        .context("cannot wait")?;
    Ok(epoll)
}

fn wait<'a>(epoll: &Epoll, events: &'a mut [EpollEvent]) -> Result<&'a [EpollEvent]> {
    match epoll.wait(events, 1000_u16) {
        Ok(count) => Ok(&events[..count]),
        Err(Errno::EINTR) => Ok(&[]),
        Err(error) => Err(error).context("cannot wait"),
    }
}

fn edge(key: usize) -> EpollEvent {
    let all = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
    EpollEvent::new(all | EpollFlags::EPOLLET, key as u64)
}

fn tcp(flags: SockFlag) -> Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).context("no socket")
}

fn answer(at: SocketAddrV4) -> Result<()> {
    let socket = tcp(SockFlag::empty())?;
    setsockopt(&socket, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
    setsockopt(&socket, sockopt::ReusePort, &true).context("SO_REUSEPORT")?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(at)).with_context(|| format!("bind {at}"))?;
    listen(&socket, Backlog::new(4096).context("a backlog")?).context("listen")?;
    let listener = TcpListener::from(socket);
    let epoll = epoll_with(&listener)?;
    let mut held: Vec<TcpStream> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 512];
    println!("ready");
    loop {
        for event in wait(&epoll, &mut events)? {
            if event.data() == OTHER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).context("a socket")?;
                    epoll.add(&stream, edge(held.len())).context("epoll")?;
                    held.push(stream);
                }
                continue;
            }
            let mut byte = [0];
            let mut stream = &held[event.data() as usize];
            // A connection that breaks is its client's matter.
            if matches!(stream.read(&mut byte), Ok(1)) {
                stream.write_all(&byte).ok();
            }
        }
    }
}

fn hold(from: Ipv4Addr, to: SocketAddrV4, count: usize) -> Result<()> {
    let stdin = io::stdin();
    let epoll = epoll_with(&stdin)?;
    let mut held: Vec<TcpStream> = Vec::with_capacity(count);
    let mut answered = vec![false; count];
    let mut ends: Vec<i128> = Vec::new();
    let (mut open, mut failed, mut again, mut said) = (0, 0, 0, false);
    let mut events = vec![EpollEvent::empty(); 512];
    loop {
        while held.len() < count && held.len() - open - failed < AT_ONCE {
            let stream = begin(from, to)?;
            epoll.add(&stream, edge(held.len())).context("epoll")?;
            held.push(stream);
        }
        if !said && open + failed == count {
            said = true;
            println!("open {open}");
        }
        if said {
            thread::sleep(LOOK);
        }
        let happened = wait(&epoll, &mut events)?;
        let now = now_ns()?;
        for event in happened {
            if event.data() == OTHER {
                if !order(&ends)? {
                    return Ok(());
                }
                continue;
            }
            let key = event.data() as usize;
            match progress(&held[key], event.events()) {
                Progress::None => {}
                Progress::Open => {
                    open += 1;
                    answered[key] = true;
                }
                Progress::Ended if said => {
                    if std::mem::take(&mut answered[key]) {
                        ends.push(now);
                    }
                }
                Progress::Ended => {
                    open -= usize::from(answered[key]);
                    answered[key] = false;
                    if again == count {
                        failed += 1;
                        continue;
                    }
                    again += 1;
                    let stream = begin(from, to)?;
                    epoll.add(&stream, edge(key)).context("epoll")?;
                    held[key] = stream;
                }
            }
        }
    }
}

/// A line of standard input; says whether to go on.
fn order(ends: &[i128]) -> Result<bool> {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line).context("stdin")? == 0 {
        return Ok(false);
    }
    let ends: Vec<String> = ends.iter().map(ToString::to_string).collect();
    println!("ended {}", ends.join(" "));
    Ok(true)
}

fn begin(from: Ipv4Addr, to: SocketAddrV4) -> Result<TcpStream> {
    let socket = tcp(SockFlag::empty())?;
    // The port is chosen with the destination, so all of them can be used.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).context("IP_BIND_ADDRESS_NO_PORT")?;
    let from = SockaddrIn::from(SocketAddrV4::new(from, 0));
    bind(socket.as_raw_fd(), &from).context("bind")?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error).with_context(|| format!("connect to {to}")),
    }
}

enum Progress {
    None,
    /// The byte came back.
    Open,
    Ended,
}

fn progress(mut stream: &TcpStream, events: EpollFlags) -> Progress {
    let over = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP;
    if events.intersects(over) {
        return Progress::Ended;
    }
    if events.contains(EpollFlags::EPOLLIN) {
        let mut byte = [0];
        return match stream.read(&mut byte) {
            Ok(1) => Progress::Open,
            _ => Progress::None,
        };
    }
    // Connected: that is the first thing that happens, and happens once.
    stream.write_all(b"x").ok();
    Progress::None
}
