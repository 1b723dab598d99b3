//! One byte string: decisions, then a frame.

use std::{
    fs,
    path::{Path, PathBuf},
};

use probe_ebpf::packet::rewrite::Side;

use crate::opinion;

/// Bytes of decisions before the frame.
const HEAD: usize = 21;

/// The server is the segment's source, not its destination.
const SOURCE: u8 = 1;
/// Checksums are made right first, as far as etherparse finds them.
const REPAIR: u8 = 2;
/// The frame is longer than what can be reached of it, as a packet of several buffers is.
const LONGER: u8 = 4;

/// A frame and what to do to it.
#[derive(Clone, Debug)]
pub struct Case {
    flags: u8,
    /// The server's new port.
    pub port: u16,
    /// The client's port from here on.
    pub client_port: u16,
    /// The server's new address; IPv4 takes the first four bytes.
    pub address: [u8; 16],
    frame: Vec<u8>,
}

impl Case {
    /// `None` if the bytes end before the frame begins.
    pub fn read(data: &[u8]) -> Option<Self> {
        let (head, frame) = data.split_first_chunk::<HEAD>()?;
        let [flags, p0, p1, c0, c1, address @ ..] = *head;
        Some(Self {
            flags,
            port: u16::from_be_bytes([p0, p1]),
            client_port: u16::from_be_bytes([c0, c1]),
            address,
            frame: frame.to_vec(),
        })
    }

    /// A frame as it is, its destination to be translated.
    pub fn new(frame: Vec<u8>, address: [u8; 16], port: u16, client_port: u16) -> Self {
        Self {
            flags: 0,
            port,
            client_port,
            address,
            frame,
        }
    }

    /// The bytes that [`Case::read`] reads.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![self.flags];
        out.extend(self.port.to_be_bytes());
        out.extend(self.client_port.to_be_bytes());
        out.extend(self.address);
        out.extend(&self.frame);
        out
    }

    /// Which side of the frame is the server's.
    pub fn side(&self) -> Side {
        if self.flags & SOURCE != 0 {
            Side::Source
        } else {
            Side::Destination
        }
    }

    pub(crate) fn is_longer(&self) -> bool {
        self.flags & LONGER != 0
    }

    /// The same with a frame cut after `length` bytes.
    pub fn cut(&self, length: usize) -> Self {
        let mut cut = self.clone();
        cut.frame.truncate(length);
        cut
    }

    /// The frame. A heap block of exactly its length, so that the address sanitizer sees
    /// any access beyond it.
    pub fn frame(&self) -> Box<[u8]> {
        let mut frame = self.frame.clone().into_boxed_slice();
        if self.flags & REPAIR != 0 {
            opinion::repair(&mut frame);
        }
        frame
    }
}

/// Every stored frame, by its path in `tests/cases`, in order.
pub fn stored() -> Vec<(String, Vec<u8>)> {
    below("../cases")
}

/// Every stored answer, by its path in `tests/cases/answers`, in order.
pub fn stored_answers() -> Vec<(String, Vec<u8>)> {
    below("../cases/answers")
}

/// Every stored conversation, by its path in `tests/cases/talks`, in order.
pub fn stored_talks() -> Vec<(String, Vec<u8>)> {
    below("../cases/talks")
}

fn below(root: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut all = Vec::new();
    for folder in ["made", "found"] {
        let folder = root.join(folder);
        if !folder.exists() {
            // git keeps no empty folder, and the fuzzer may have found nothing.
            continue;
        }
        let entries = fs::read_dir(&folder).expect("a readable folder");
        let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(&root).expect("below it").display();
            all.push((name.to_string(), fs::read(&path).expect("a readable file")));
        }
    }
    all
}

/// Numbers below what is asked, the same ones each time.
pub fn draws() -> impl FnMut(usize) -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}
