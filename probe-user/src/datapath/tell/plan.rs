//! Which flows are told when, and how often.
//!
//! Pure: walks of the flow tables come in with the time, and out comes whom to tell. The kernel
//! of a client answers challenges as often as it likes (Linux: one in 500 ms a connection,
//! `tcp_invalid_ratelimit`, and before Linux 6.1 a thousand a second in all,
//! `tcp_challenge_ack_limit`), and a challenge may be lost. So a flow that is still in the tables
//! a while after it was told is told again, a few times.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::datapath::EndpointId;

/// After a switch, when to look for flows: at once, and again, since a flow may get its entries
/// just after its endpoint was marked, and to see who is gone.
const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_millis(700),
];

/// After each time that a flow was told, how long it has to go. The first is for challenges that
/// were lost or came to a host that answers no more at the moment; the second is longer than a
/// connection's own limit; after the last one it is left to its next packet.
const PAUSES: [Duration; 7] = [
    Duration::from_millis(100),
    Duration::from_millis(600),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(2),
    Duration::from_secs(2),
];

/// A RST may be lost like any packet, and nobody repeats it. So long after it was seen to go,
/// longer than a connection's limit on acknowledgments, a flow's client is asked once more.
const CONFIRM: Duration = Duration::from_millis(600);

/// A flow whose endpoint is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// Where it connected to.
    pub vip: SocketAddr,
    /// The client's port as the endpoint sees it.
    pub seen_port: u16,
    /// The endpoint.
    pub endpoint: EndpointId,
}

/// What is to be done after a walk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Whom to tell.
    pub tell: Vec<Flow>,
    /// Who was told and is not there any more.
    pub gone: Vec<Flow>,
    /// Who is left to its next packet from now on.
    pub given_up: Vec<Flow>,
    /// Who has been gone for a while.
    pub confirm: Vec<Flow>,
}

#[derive(Debug)]
struct Attempt {
    flow: Flow,
    tries: usize,
    /// When it is told again; nothing once it was given up.
    due: Option<Instant>,
    /// The last walk that found it.
    walk: u64,
}

/// The flows that are being told.
#[derive(Debug, Default)]
pub struct Plan {
    attempts: HashMap<(SocketAddr, SocketAddr), Attempt>,
    /// Who is gone, and when to ask them once more.
    gone: VecDeque<(Instant, Vec<Flow>)>,
    /// When a switch was last heard of, and how many of [`LOOKS`] were made since.
    switched: Option<(Instant, usize)>,
    walks: u64,
}

impl Plan {
    /// Endpoints may have been lost.
    pub fn switched(&mut self, now: Instant) {
        self.switched = Some((now, 0));
    }

    /// When the next walk is to be made.
    pub fn due(&self) -> Option<Instant> {
        let look = self.switched.map(|(at, looks)| at + LOOKS[looks]);
        let attempts = self.attempts.values().filter_map(|attempt| attempt.due);
        let confirm = self.gone.front().map(|(due, _)| *due);
        attempts.chain(look).chain(confirm).min()
    }

    /// How many flows it knows.
    pub fn size(&self) -> usize {
        let gone = self.gone.iter().map(|(_, flows)| flows.len());
        self.attempts.len() + gone.sum::<usize>()
    }

    /// Is nobody left to be told?
    pub fn is_done(&self) -> bool {
        self.gone.is_empty() && self.attempts.values().all(|attempt| attempt.due.is_none())
    }

    /// A walk that began at this time found these flows of lost endpoints, and no other.
    pub fn walked(&mut self, found: &[Flow], now: Instant) -> Round {
        self.walks += 1;
        if let Some((at, looks)) = self.switched {
            let made = LOOKS.iter().filter(|look| at + **look <= now).count();
            let made = made.max(looks);
            self.switched = (made < LOOKS.len()).then_some((at, made));
        }
        let mut round = Round::default();
        for flow in found {
            let attempt = self.attempt(flow, now);
            if attempt.due.is_none_or(|due| due > now) {
                continue;
            }
            attempt.due = PAUSES.get(attempt.tries).map(|pause| now + *pause);
            if attempt.due.is_some() {
                attempt.tries += 1;
                round.tell.push(*flow);
            } else {
                round.given_up.push(*flow);
            }
        }
        while let Some((_, flows)) = self.gone.pop_front_if(|(due, _)| *due <= now) {
            round.confirm.extend(flows);
        }
        let walks = self.walks;
        let gone = self
            .attempts
            .extract_if(|_, attempt| attempt.walk != walks)
            .map(|(_, attempt)| attempt.flow);
        round.gone.extend(gone);
        if !round.gone.is_empty() {
            self.gone.push_back((now + CONFIRM, round.gone.clone()));
        }
        round
    }

    /// What is known of a flow that a walk found.
    fn attempt(&mut self, flow: &Flow, now: Instant) -> &mut Attempt {
        let new = Attempt {
            flow: *flow,
            tries: 0,
            due: Some(now),
            walk: self.walks,
        };
        match self.attempts.entry((flow.client, flow.vip)) {
            Entry::Vacant(vacant) => vacant.insert(new),
            Entry::Occupied(occupied) => {
                let attempt = occupied.into_mut();
                if attempt.flow != *flow {
                    // Another connection, from the same port.
                    *attempt = new;
                }
                attempt.walk = self.walks;
                attempt
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn flow(port: u16, endpoint: u32) -> Flow {
        Flow {
            client: ([10, 0, 1, 2], port).into(),
            vip: ([10, 96, 0, 10], 80).into(),
            seen_port: port,
            endpoint: EndpointId(endpoint),
        }
    }

    #[test]
    fn each_is_told_at_once_and_then_gone() {
        let now = Instant::now();
        let mut plan = Plan::default();
        assert_eq!(plan.due(), None);
        plan.switched(now);
        assert_eq!(plan.due(), Some(now));
        let both = [flow(1, 7), flow(2, 7)];
        let round = plan.walked(&both, now);
        assert_eq!(round.tell, both);
        // Looked at again soon, told again later.
        assert_eq!(plan.due(), Some(now + 10 * MILLI));
        let round = plan.walked(&both[..1], now + 10 * MILLI);
        assert_eq!((round.tell, round.gone), (vec![], vec![both[1]]));
        let round = plan.walked(&both[..1], now + 100 * MILLI);
        assert_eq!(round.tell, both[..1]);
        let round = plan.walked(&[], now + 700 * MILLI);
        assert_eq!(round.gone, both[..1]);
        // Of the one that went first.
        assert_eq!(round.confirm, both[1..]);
        assert_eq!(plan.due(), Some(now + 1300 * MILLI));
        let round = plan.walked(&[], now + 1300 * MILLI);
        assert_eq!(round.confirm, both[..1]);
        assert!(plan.is_done());
        assert_eq!(plan.due(), None);
    }

    #[test]
    fn who_does_not_go_is_given_up_once() {
        let mut now = Instant::now();
        let begun = now;
        let mut plan = Plan::default();
        plan.switched(now);
        let deaf = [flow(1, 7)];
        let (mut told, mut given_up) = (0, 0);
        while let Some(due) = plan.due() {
            now = now.max(due);
            let round = plan.walked(&deaf, now);
            told += round.tell.len();
            given_up += round.given_up.len();
            assert!(round.gone.is_empty());
        }
        assert_eq!((told, given_up), (PAUSES.len(), 1));
        assert!(now - begun < Duration::from_secs(10));
        assert!(plan.is_done());
        // Another switch does not begin it anew.
        plan.switched(now);
        assert_eq!(plan.walked(&deaf, now), Round::default());
        // The endpoint was up meanwhile.
        plan.walked(&[], now);
        assert_eq!(plan.walked(&deaf, now).tell, deaf);
    }

    #[test]
    fn another_connection_of_the_same_port_is_another() {
        let now = Instant::now();
        let mut plan = Plan::default();
        plan.switched(now);
        plan.walked(&[flow(1, 7)], now);
        let round = plan.walked(&[flow(1, 8)], now + MILLI);
        assert_eq!(round.tell, [flow(1, 8)]);
        assert!(round.gone.is_empty());
    }

    proptest! {
        /// Whatever comes and goes when: nobody is told more often than allowed, nor sooner than
        /// the pause after the last time; each flow that was told goes, is given up or is due.
        #[test]
        fn pauses_are_kept(steps in prop::collection::vec((0u32..3000, 0u8..16, any::<bool>()), 1..60)) {
            let mut now = Instant::now();
            let mut plan = Plan::default();
            let mut told: HashMap<u16, (usize, Instant)> = HashMap::new();
            for (pause, present, switched) in steps {
                now += MILLI * pause;
                if switched {
                    plan.switched(now);
                }
                let ports = (0..4).filter(|i| present & 1 << i != 0);
                let found: Vec<_> = ports.map(|port| flow(port, 7)).collect();
                let round = plan.walked(&found, now);
                for flow in &round.gone {
                    prop_assert!(!found.contains(flow));
                    prop_assert!(told.remove(&flow.client.port()).is_some());
                }
                for flow in &round.tell {
                    let (times, last) = told.entry(flow.client.port()).or_insert((0, now));
                    if *times > 0 {
                        prop_assert!(now - *last >= PAUSES[*times - 1]);
                    }
                    (*times, *last) = (*times + 1, now);
                    prop_assert!(*times <= PAUSES.len());
                }
                for flow in &found {
                    prop_assert!(told.contains_key(&flow.client.port()));
                }
                prop_assert!(plan.due().is_none_or(|due| due > now));
            }
        }
    }
}
