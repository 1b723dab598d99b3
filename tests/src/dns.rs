//! A name server on a host of the lab, whose names a test changes.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Namespace, journal};

type Names = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// A running name server, which the host's resolver asks.
pub struct Dns {
    names: Names,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Dns {
    /// Serves on the host's loopback and makes its /etc/resolv.conf say so; only
    /// the host's own mount namespace sees that.
    pub fn start(host: &Arc<Namespace>) -> Result<Self> {
        host.ask("mount", &["-t", "tmpfs", "dns", "/mnt"])?;
        host.run(|| {
            fs::write("/mnt/resolv.conf", "nameserver 127.0.0.1\n").context("resolv.conf")
        })?;
        host.ask("mount", &["--bind", "/mnt/resolv.conf", "/etc/resolv.conf"])?;
        let socket = host.run(|| {
            let me = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
            UdpSocket::bind(me).context("cannot listen for DNS")
        })?;
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .context("timeout")?;
        let names = Names::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (names, stop) = (Arc::clone(&names), Arc::clone(&stop));
            host.thread(move || {
                serve(&socket, &names, &stop);
                Ok(())
            })
        };
        Ok(Self {
            names,
            stop,
            thread: Some(thread),
        })
    }

    /// The name has these addresses from now on; with none it does not exist.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        journal::note("dns", &format!("{name} is {addresses:?}"));
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.is_empty() {
            names.remove(name);
        } else {
            names.insert(name.to_owned(), addresses.to_vec());
        }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(socket: &UdpSocket, names: &Names, stop: &AtomicBool) {
    let mut query = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut query) else {
            continue;
        };
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answer(&query[..length], &names) {
            // A lost answer is asked for again.
            socket.send_to(&answer, from).ok();
        }
    }
}

/// Answers one query of one question (RFC 1035, section 4.1).
fn answer(query: &[u8], names: &HashMap<String, Vec<IpAddr>>) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: u16 = 1;
    const AAAA: u16 = 28;
    let mut at = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    let question = query.get(HEADER..at + 4)?;
    let addresses = names.get(&labels.join("."));
    let records: Vec<(u16, Vec<u8>)> = addresses
        .into_iter()
        .flatten()
        .filter_map(|address| match address {
            IpAddr::V4(v4) if kind == A => Some((A, v4.octets().to_vec())),
            IpAddr::V6(v6) if kind == AAAA => Some((AAAA, v6.octets().to_vec())),
            _ => None,
        })
        .collect();
    let name_error: u8 = if addresses.is_none() { 3 } else { 0 };
    let mut answer = query.get(..2)?.to_vec();
    // A response, authoritative, recursion available; one question.
    answer.extend([0x84 | (query.get(2)? & 1), 0x80 | name_error, 0, 1]);
    answer.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
    answer.extend([0, 0, 0, 0]);
    answer.extend(question);
    for (kind, data) in records {
        // The question's name, class IN, valid for no time at all.
        answer.extend([0xc0, 0x0c]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::answer;

    /// `react.test`, type A, class IN, id 0x1234, recursion desired.
    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05React\x04test\x00\x00\x01\x00\x01";

    #[test]
    fn a_known_name_is_answered() {
        let names = HashMap::from([(
            "react.test".to_owned(),
            vec![
                "10.2.0.2".parse().expect("v4"),
                "fd00::1".parse().expect("v6"),
            ],
        )]);
        let said = answer(QUERY, &names).expect("an answer");
        assert_eq!(
            &said[..12],
            b"\x12\x34\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00"
        );
        assert!(
            said.ends_with(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x0a\x02\x00\x02")
        );
    }

    #[test]
    fn an_unknown_name_does_not_exist() {
        let said = answer(QUERY, &HashMap::new()).expect("an answer");
        assert_eq!(&said[2..8], b"\x85\x83\x00\x01\x00\x00");
    }

    #[test]
    fn what_is_cut_short_gets_no_answer() {
        for length in 0..QUERY.len() {
            assert_eq!(answer(&QUERY[..length], &HashMap::new()), None);
        }
    }
}
