//! The selection table: a switch is one store.
//!
//! A syscall that updates an array element copies it with `memcpy`, which
//! promises nothing about what a program on another CPU sees meanwhile. A mapped
//! word is stored whole, and without entering the kernel.

use std::{
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use probe_ebpf::abi::{
    Action, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, KEEP_FLOWS_OF_DOWN, MAX_SERVICES,
    NO_ENDPOINT, PREVIOUS_RING, Selection, Straight,
};

use super::{Error, ServiceId, mapping::Mapping};

const WORD: usize = size_of::<u64>();
const WORDS: usize = size_of::<Selection>() / WORD;
const DECISION: usize = offset_of!(Selection, decision) / WORD;
const EXCEPTIONS: usize = offset_of!(Selection, exceptions) / WORD;
const SIDE: usize = offset_of!(Selection, side) / WORD;
/// In halves of words.
const PREVIOUS: usize = offset_of!(Selection, previous) / 4;
/// In halves of words.
const AFFINITY: usize = offset_of!(Selection, affinity) / 4;
const EPOCH: usize = offset_of!(Selection, epoch) / WORD;
const STRAIGHT: usize = offset_of!(Selection, straight_v4) / WORD;
const CHANGED: usize = offset_of!(Selection, changed_unix_ns) / WORD;

/// Are connections of an endpoint in this state over, if its service decides so?
pub(super) fn is_lost(state: u32, decision: u64) -> bool {
    match state {
        ENDPOINT_DRAINED => true,
        ENDPOINT_DOWN => Decision::unpack(decision).flags & KEEP_FLOWS_OF_DOWN == 0,
        _ => false,
    }
}

/// One service's slot as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What the datapath does.
    pub decision: Decision,
    /// Switches so far.
    pub epoch: u64,
    /// Wall clock of the last switch, nanoseconds since 1970.
    pub changed_unix_ns: u64,
}

/// A word that programs set when something begins, and the agent clears when a sweep
/// has shown that nothing of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// [`Selection::exceptions`].
    Exceptions,
    /// [`Selection::side`].
    Side,
}

/// The mapped table.
#[derive(Debug)]
pub struct Selections(Mapping);

impl Selections {
    /// Maps the table behind this map's descriptor.
    pub fn map(fd: impl AsFd) -> Result<Self, Error> {
        let mapping = Mapping::of::<Selection>(fd, MAX_SERVICES, "the selection table")?;
        Ok(Self(mapping))
    }

    fn at(service: ServiceId, word: usize) -> usize {
        assert!(service.0 < MAX_SERVICES, "service ids come from this table");
        service.0 as usize * WORDS + word
    }

    fn word(&self, service: ServiceId, word: usize) -> &AtomicU64 {
        self.0.word(Self::at(service, word))
    }

    fn previous(&self, service: ServiceId) -> &AtomicU32 {
        self.0.half(2 * Self::at(service, 0) + PREVIOUS)
    }

    /// Says for how long clients keep their endpoint, see [`Selection::affinity`].
    pub fn set_affinity(&self, service: ServiceId, units: u32) {
        let at = 2 * Self::at(service, 0) + AFFINITY;
        self.0.half(at).store(units, Ordering::Relaxed);
    }

    /// Reads a slot.
    pub fn get(&self, service: ServiceId) -> Slot {
        Slot {
            decision: Decision::unpack(self.word(service, DECISION).load(Ordering::Acquire)),
            epoch: self.word(service, EPOCH).load(Ordering::Relaxed),
            changed_unix_ns: self.word(service, CHANGED).load(Ordering::Relaxed),
        }
    }

    /// Says where IPv4 packets go while the decision is to steer by the slot alone.
    pub fn set_straight(&self, service: ServiceId, straight: Option<Straight>) {
        let word = straight.map_or(0, Straight::pack);
        self.word(service, STRAIGHT).store(word, Ordering::Release);
    }

    /// The switch. What is remembered of the selection before is stored ahead of it, since
    /// a SYN that is repeated right after it looks there; epoch and time follow it, since
    /// the decision must not wait.
    pub fn set(&self, service: ServiceId, decision: Decision, now_unix_ns: u64) {
        let before = self.get(service).decision;
        let moved = (before.action, before.target) != (decision.action, decision.target);
        let previous = match before.action {
            Action::Steer => Some(before.target),
            Action::Spread => Some(before.target | PREVIOUS_RING),
            Action::Pass | Action::Refuse => None,
        };
        if let Some(previous) = previous.filter(|_| moved) {
            self.previous(service).store(previous, Ordering::Release);
        }
        // What may not hold any more goes first, see `Selection::straight_v4`.
        self.set_straight(service, None);
        self.word(service, DECISION)
            .store(decision.pack(), Ordering::Release);
        if moved {
            self.word(service, EPOCH).fetch_add(1, Ordering::Relaxed);
            self.word(service, CHANGED)
                .store(now_unix_ns, Ordering::Relaxed);
        }
    }

    /// Clears a stamp that was set before `limit` in the unit of the datapath's clock,
    /// unless it is set again meanwhile.
    pub fn clear_stamp(&self, service: ServiceId, stamp: Stamp, limit: u32) {
        let word = match stamp {
            Stamp::Exceptions => EXCEPTIONS,
            Stamp::Side => SIDE,
        };
        let word = self.word(service, word);
        let value = word.load(Ordering::Relaxed);
        if value != 0 && (value as u32) < limit {
            // Set again: the next sweep will see.
            let _ = word.compare_exchange(value, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Empties a slot for the next service of this id.
    pub fn clear(&self, service: ServiceId) {
        for word in (0..WORDS).filter(|word| *word != PREVIOUS / 2) {
            self.word(service, word).store(0, Ordering::Release);
        }
        self.previous(service).store(NO_ENDPOINT, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe_ebpf::abi::{ENDPOINT_FREE, ENDPOINT_UP};

    #[test]
    fn marks_say_whose_flows_are_over() {
        let decision = |flags| {
            Decision {
                action: Action::Steer,
                flags,
                tier: 0,
                target: 0,
            }
            .pack()
        };
        for (state, kept, lost) in [
            (ENDPOINT_FREE, false, false),
            (ENDPOINT_UP, false, false),
            (ENDPOINT_DOWN, false, true),
            (ENDPOINT_DOWN, true, false),
            (ENDPOINT_DRAINED, false, true),
            (ENDPOINT_DRAINED, true, true),
        ] {
            let flags = if kept { KEEP_FLOWS_OF_DOWN } else { 0 };
            assert_eq!(is_lost(state, decision(flags)), lost, "{state}, {kept}");
        }
    }
}
