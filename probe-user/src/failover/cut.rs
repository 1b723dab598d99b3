//! When the way to a service's endpoints is gone rather than the endpoints.
//!
//! [`super::distrust`] infers from who is silent together that it may be this node. Here the node
//! itself is the witness: the carrier of the link and the state of the gateway, by which the
//! kernel would send. A witness speaks of a service only if it concerns *all* its endpoints, the
//! backup included: if one can be reached otherwise, leaving the others is right. And it must not
//! be an endpoint's own death in disguise: a link counts if a gateway is behind it or two hosts
//! are, since the other end of a link with one host is that host. Each network of its own and a
//! gateway of its own are no shared way; who fails so has failed independently.
//!
//! A gateway that is gone is slow to be noticed: the kernel believes for half a minute what it knows.
//! So where all endpoints of a service behind one gateway are silent it is asked at once
//! ([`Ways::prove`]), and the service is held meanwhile, *unproven*; it answers within a round
//! trip, or the kernel gives it up after three questions, a second apart.
//!
//! While a [`Cut`] holds, endpoints of the service that go down without a word are not believed to
//! be. It is over with a word of any of them, or when the way has been there for [`GRACE`]; then
//! each is judged by its next check. [`Cut`] is pure; nothing here is about more than one service.

use std::{fmt, net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::distrust::LONGEST;

/// From the way's return to the judgement: a switch's port opens, neighbours are asked for.
pub const GRACE: Duration = Duration::from_secs(1);
/// Between two looks at a way that is gone.
const AGAIN: Duration = Duration::from_millis(100);
/// The same while a gateway is asked.
const SOON: Duration = Duration::from_millis(20);
/// A gateway that was asked is given up by the kernel long before.
const PROOF: Duration = Duration::from_secs(5);

/// What is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The interface has no carrier, or is down.
    Link(String),
    /// Nobody answers at the address of the gateway.
    Gateway(IpAddr),
    /// There is no route.
    Route,
}

impl Gone {
    /// Words of all kinds.
    pub const WORDS: [&str; 3] = ["link", "gateway", "route"];

    /// Its kind's word.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Link(_) => Self::WORDS[0],
            Self::Gateway(_) => Self::WORDS[1],
            Self::Route => Self::WORDS[2],
        }
    }
}

/// For people.
impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "{name} has no carrier"),
            Self::Gateway(at) => write!(f, "the gateway {at} does not answer"),
            Self::Route => f.write_str("there is no route"),
        }
    }
}

/// What the kernel knows of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// It is there, or was believed to be a short time ago.
    Known,
    /// It is being asked whether it still is.
    Asked,
    /// It does not answer.
    Silent,
    /// Nobody wanted anything of it for a while.
    Forgotten,
}

/// The way to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub host: IpAddr,
    /// By which gateway, if it is no neighbour.
    pub gateway: Option<(IpAddr, Hop)>,
    /// There is none: no route, or a link that is down.
    pub gone: Option<Gone>,
}

impl Way {
    /// Does nothing speak against it?
    pub fn is_well(&self) -> bool {
        let known = self.gateway.is_none_or(|(_, hop)| hop == Hop::Known);
        self.gone.is_none() && known
    }

    /// Is the same gone of both, or do both need one gateway?
    pub fn shares(&self, other: &Self) -> bool {
        let gateway = |way: &Self| way.gateway.map(|(at, _)| at);
        self.gone == other.gone && (self.gone.is_some() || gateway(self) == gateway(other))
    }
}

/// Looks at ways.
pub trait Ways: Send {
    /// The way to a host now; nothing if that cannot be known.
    fn way(&mut self, host: IpAddr) -> Option<Way>;
    /// Has the kernel ask whether the gateway on the way there is there.
    fn prove(&mut self, host: IpAddr);
}

/// What became of the ways to all endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// This, which all of them need, is gone.
    Gone(Gone),
    /// Their gateway is being asked.
    Asked,
    /// Nothing is known of their gateway.
    Forgotten,
    /// At least one is there, or they have nothing in common.
    Well,
}

/// What the ways to all endpoints of a service show together.
pub fn together(ways: &[Way]) -> Seen {
    let Some(first) = ways.first() else {
        return Seen::Well;
    };
    let several = ways.iter().any(|way| way.host != first.host);
    if ways.iter().any(|way| way.is_well() || !way.shares(first)) {
        return Seen::Well;
    }
    if let Some(gone) = &first.gone {
        let behind = ways.iter().any(|way| way.gateway.is_some());
        return match several || behind {
            true => Seen::Gone(gone.clone()),
            false => Seen::Well,
        };
    }
    // Each was asked for at its own time: what was found last is so.
    match ways.last().and_then(|way| way.gateway) {
        None | Some((_, Hop::Known)) => Seen::Well,
        Some((_, Hop::Asked)) => Seen::Asked,
        Some((gateway, Hop::Silent)) => Seen::Gone(Gone::Gateway(gateway)),
        Some((_, Hop::Forgotten)) => Seen::Forgotten,
    }
}

/// A service whose endpoints cannot be reached, as far as this node knows.
#[derive(Clone, Debug)]
pub struct Cut {
    since: Instant,
    /// Nothing while that is not proven.
    gone: Option<Gone>,
    /// Since when the way is there again.
    back: Option<Instant>,
    over: Option<Instant>,
    next: Instant,
}

/// What a look has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is proven now.
    Proven(Gone),
    /// The way is there again: who was doubted shall be asked.
    Back,
    /// Who was doubted is judged by the next check.
    Over,
}

impl Cut {
    /// What all ways need is gone, or is asked whether it is.
    pub fn new(gone: Option<Gone>, now: Instant) -> Self {
        Self {
            since: now,
            next: now + if gone.is_some() { AGAIN } else { SOON },
            gone,
            back: None,
            over: None,
        }
    }

    /// Are endpoints that go down doubted?
    pub fn holds(&self) -> bool {
        self.over.is_none()
    }

    /// What is gone and since when, while that is proven.
    pub fn gone(&self) -> Option<(&Gone, Instant)> {
        let gone = self.gone.as_ref().filter(|_| self.holds())?;
        Some((gone, self.since))
    }

    /// A check of one that was doubted failed, which began then. Is it believed?
    pub fn believes(&self, begun: Instant) -> bool {
        self.over.is_some_and(|over| over <= begun)
    }

    /// When to look again.
    pub fn due(&self) -> Option<Instant> {
        self.holds().then_some(self.next)
    }

    /// An endpoint said a word: it can be reached. True if that ends it.
    pub fn heard(&mut self, now: Instant) -> bool {
        let ends = self.holds();
        self.over.get_or_insert(now);
        ends
    }

    /// So it looks now.
    pub fn look(&mut self, seen: Seen, now: Instant) -> Option<News> {
        if !self.holds() {
            return None;
        }
        let age = now.saturating_duration_since(self.since);
        self.next = now + if self.gone.is_some() { AGAIN } else { SOON };
        match (seen, &self.gone) {
            // Hosts that are gone may take their routes along.
            (Seen::Gone(Gone::Route), _) if age >= LONGEST => {}
            (Seen::Gone(gone), before) => {
                let new = before.is_none();
                self.back = None;
                self.gone = Some(gone.clone());
                return new.then_some(News::Proven(gone));
            }
            (Seen::Asked | Seen::Forgotten, Some(Gone::Gateway(_))) => return None,
            (Seen::Asked, None) if age < PROOF => return None,
            (_, None) => {}
            (_, Some(_)) => match self.back {
                None => {
                    self.back = Some(now);
                    return Some(News::Back);
                }
                Some(back) if now < back + GRACE => return None,
                Some(_) => {}
            },
        }
        self.over = Some(now);
        Some(News::Over)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn way(host: u8, gateway: Option<(u8, Hop)>, gone: Option<Gone>) -> Way {
        let at = |last: u8| IpAddr::from([10, 0, 0, last]);
        Way {
            host: at(host),
            gateway: gateway.map(|(last, hop)| (at(last), hop)),
            gone,
        }
    }

    fn link(name: &str) -> Option<Gone> {
        Some(Gone::Link(name.to_owned()))
    }

    #[test]
    fn a_witness_speaks_of_what_all_ways_need() {
        let lost = Seen::Gone(Gone::Link("eth0".to_owned()));
        let both = [way(1, None, link("eth0")), way(2, None, link("eth0"))];
        assert_eq!(together(&both), lost);
        // One host on a link of its own is at the other end of it.
        assert_eq!(together(&both[..1]), Seen::Well);
        let twice = [way(1, None, link("eth0")), way(1, None, link("eth0"))];
        assert_eq!(together(&twice), Seen::Well);
        // Behind a router it is the node's link.
        let behind = [way(1, Some((9, Hop::Known)), link("eth0"))];
        assert_eq!(together(&behind), lost);
        // Each has a link of its own, or the backup can be reached.
        let own = [way(1, None, link("veth1")), way(2, None, link("veth2"))];
        assert_eq!(together(&own), Seen::Well);
        let leave = [way(1, None, link("veth1")), way(2, None, None)];
        assert_eq!(together(&leave), Seen::Well);
        let leave = [way(2, None, None), way(1, None, link("veth1"))];
        assert_eq!(together(&leave), Seen::Well);
        let none = [
            way(1, None, Some(Gone::Route)),
            way(2, None, Some(Gone::Route)),
        ];
        assert_eq!(together(&none), Seen::Gone(Gone::Route));
        assert_eq!(together(&[]), Seen::Well);
    }

    #[test]
    fn a_gateway_speaks_of_all_behind_it() {
        let by = |hop| [way(1, Some((9, hop)), None), way(2, Some((9, hop)), None)];
        let gone = Seen::Gone(Gone::Gateway([10, 0, 0, 9].into()));
        assert_eq!(together(&by(Hop::Silent)), gone);
        assert_eq!(together(&by(Hop::Silent)[..1]), gone);
        assert_eq!(together(&by(Hop::Known)), Seen::Well);
        assert_eq!(together(&by(Hop::Asked)), Seen::Asked);
        assert_eq!(together(&by(Hop::Forgotten)), Seen::Forgotten);
        let silent = Some((9, Hop::Silent));
        // The backup has another one, or needs none.
        for other in [Some((8, Hop::Silent)), Some((8, Hop::Known)), None] {
            let mixed = [way(1, silent, None), way(2, other, None)];
            assert_eq!(together(&mixed), Seen::Well);
        }
    }

    #[test]
    fn it_is_over_with_a_word_or_when_the_way_has_been_back() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let gone = || Seen::Gone(Gone::Link("eth0".to_owned()));
        let begun = || Cut::new(link("eth0"), now);
        let mut cut = begun();
        assert!(cut.holds() && !cut.believes(after(5000)));
        // However long it takes.
        for minute in 1..10 {
            assert_eq!(cut.look(gone(), after(minute * 60_000)), None);
        }
        let mut cut = begun();
        assert_eq!(cut.look(Seen::Well, after(100)), Some(News::Back));
        // The link flaps.
        assert_eq!(cut.look(gone(), after(1000)), None);
        assert_eq!(cut.look(Seen::Well, after(1100)), Some(News::Back));
        assert_eq!(cut.look(Seen::Well, after(2000)), None);
        assert_eq!(cut.look(Seen::Well, after(2100)), Some(News::Over));
        assert!(!cut.believes(after(2000)) && cut.believes(after(2100)));
        assert_eq!((cut.due(), cut.gone()), (None, None));
        let mut cut = begun();
        assert!(cut.heard(after(50)) && !cut.heard(after(60)));
        assert!(!cut.believes(after(49)) && cut.believes(after(50)));
        // Without a route nobody is held for ever.
        let mut cut = Cut::new(Some(Gone::Route), now);
        assert_eq!(cut.look(Seen::Gone(Gone::Route), after(9900)), None);
        let over = Some(News::Over);
        assert_eq!(cut.look(Seen::Gone(Gone::Route), after(10_000)), over);
    }

    #[test]
    fn a_gateway_is_given_the_time_to_answer() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let gateway = Gone::Gateway([10, 0, 0, 9].into());
        // It answers: its hosts are judged at once.
        let mut cut = Cut::new(None, now);
        assert_eq!(cut.gone(), None);
        assert_eq!(cut.look(Seen::Asked, after(20)), None);
        assert_eq!(cut.look(Seen::Well, after(40)), Some(News::Over));
        // It does not, and that is said; then the kernel forgets and asks again.
        let mut cut = Cut::new(None, now);
        let proven = Some(News::Proven(gateway.clone()));
        assert_eq!(cut.look(Seen::Gone(gateway), after(3000)), proven);
        for seen in [Seen::Forgotten, Seen::Asked] {
            assert_eq!(cut.look(seen, after(60_000)), None);
        }
        assert_eq!(cut.look(Seen::Well, after(70_000)), Some(News::Back));
        // Nor is it asked for ever.
        let mut cut = Cut::new(None, now);
        assert_eq!(cut.look(Seen::Asked, after(5000)), Some(News::Over));
        assert_eq!(
            Cut::new(None, now).look(Seen::Forgotten, after(20)),
            Some(News::Over)
        );
    }

    proptest! {
        /// While the way of anybody is there nobody is held, but for the grace after a return.
        #[test]
        fn who_can_be_reached_is_never_held(
            ways in prop::collection::vec((0u8..3, 0u8..3, 0u8..3), 1..5),
            well in 0usize..4,
        ) {
            let hops = [Hop::Asked, Hop::Silent, Hop::Forgotten];
            let mut ways: Vec<_> = ways
                .into_iter()
                .map(|(host, gateway, what)| {
                    let hop = hops[usize::from(what)];
                    let gone = (gateway == 0).then(|| Gone::Link(format!("eth{what}")));
                    way(host, (gateway > 0).then_some((10 + gateway, hop)), gone)
                })
                .collect();
            let well = well.min(ways.len() - 1);
            ways[well].gone = None;
            ways[well].gateway = Some(([10, 0, 0, 99].into(), Hop::Known));
            prop_assert_eq!(together(&ways), Seen::Well);
        }
    }
}
