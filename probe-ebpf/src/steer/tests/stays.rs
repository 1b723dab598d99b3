//! A property: a client and two endpoints that speak TCP, an agent that switches and sweeps, a
//! flood that takes all grants: an open connection stays where it is.

use super::*;
use proptest::prelude::*;

/// What may happen next. What is impossible in the state of things is nothing.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The client opens a connection, or repeats its SYN.
    Open,
    /// An endpoint answers the SYN that it was sent, for the first time or again.
    Answer(u32),
    /// The client says something.
    Speak,
    /// Its endpoint does.
    Reply,
    /// The client ends the connection by a RST, and its port is free.
    End,
    /// The agent selects an endpoint.
    Select(u32),
    /// It sweeps.
    Sweep,
    /// There is room for clients that nobody knows, or none.
    Grants(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let endpoint = || prop_oneof![Just(MASTER), Just(BACKUP)];
    prop_oneof![
        2 => Just(Step::Open),
        3 => endpoint().prop_map(Step::Answer),
        3 => Just(Step::Speak),
        2 => Just(Step::Reply),
        1 => Just(Step::End),
        2 => endpoint().prop_map(Step::Select),
        2 => Just(Step::Sweep),
        1 => any::<bool>().prop_map(Step::Grants),
    ]
}

/// Who has which part of a connection.
#[derive(Debug, Default)]
struct World {
    /// Endpoints that hold an unanswered SYN of this connection.
    asked: Vec<u32>,
    /// The client waits for an answer.
    opening: bool,
    /// The client has one, from this endpoint.
    open: Option<u32>,
    /// The client has spoken since.
    spoke: bool,
    /// The selection has moved since the client's last SYN.
    moved: bool,
}

fn from_endpoint(id: u32, flags: u8) -> Segment<V4> {
    match id {
        MASTER => from_master(flags),
        _ => segment((BACKUP_ADDR, 8081), (CLIENT, 40000), flags),
    }
}

impl World {
    fn step(&mut self, host: &Host, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Open if self.open.is_none() => {
                (self.opening, self.moved) = (true, false);
                let id = goes_to(forward(host, &from_client(SYN)));
                if !self.asked.contains(&id) {
                    self.asked.push(id);
                }
            }
            Step::Answer(id) if self.asked.contains(&id) => {
                let verdict = reverse(host, &from_endpoint(id, SYN | ACK));
                match verdict {
                    Verdict::Translate(back, of) => {
                        prop_assert_eq!((back.addr_be, of), (VIP, id));
                        if self.opening {
                            (self.opening, self.open, self.spoke) = (false, Some(id), false);
                        }
                        // Another's answer is met by a challenge (RFC 9293 section 3.10.7.4).
                        if self.open != Some(id) {
                            self.step(host, Step::Speak)?;
                        }
                    }
                    // Not what the client is waiting for: it would refuse it.
                    _ => self.asked.retain(|of| *of != id),
                }
            }
            Step::Speak => {
                if let Some(id) = self.open {
                    self.spoke = true;
                    prop_assert_eq!(goes_to(forward(host, &from_client(ACK))), id);
                }
            }
            Step::Reply => {
                // What a flood may overwrite is known once the client has spoken.
                if let Some(id) = self.open.filter(|_| self.spoke) {
                    let verdict = reverse(host, &from_endpoint(id, ACK));
                    prop_assert_eq!(goes_to(verdict), id);
                }
            }
            Step::End => {
                if self.open.is_some() {
                    forward(host, &from_client(RST));
                    *self = Self {
                        moved: self.moved,
                        ..Self::default()
                    };
                }
            }
            Step::Select(id) => {
                host.decide(steer_to(id));
                self.moved = true;
            }
            Step::Sweep => {
                let target = Decision::unpack(host.selection.decision.get()).target;
                let elsewhere = (host.forward.borrow().values()).any(|f| f.endpoint != target);
                // After a switch the agent waits until unanswered SYNs have been repeated.
                let waits = self.opening && self.moved;
                host.decide(if elsewhere || waits {
                    steer_to(target)
                } else {
                    alone(target)
                });
                // A stamp is cleared when all that it may be about has entries, or is over.
                let settled = !self.opening && (self.open.is_none() || self.spoke);
                if settled {
                    host.selection.exceptions.set(0);
                    self.asked.clear();
                }
            }
            Step::Grants(some) => host.grants.set(if some { u32::MAX } else { 0 }),
            Step::Open | Step::Answer(_) => {}
        }
        Ok(())
    }
}

proptest! {
    /// Whatever the agent does meanwhile, and however late an endpoint answers.
    #[test]
    fn an_open_connection_stays_where_it_is(steps in prop::collection::vec(step(), 0..40)) {
        let host = Host::new();
        let mut world = World::default();
        for step in steps {
            world.step(&host, step)?;
        }
    }
}
