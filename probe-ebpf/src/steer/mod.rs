//! Which endpoint a segment belongs to, and what becomes of it.
//!
//! [`forward`] decides for segments from clients, [`reverse`] for segments from
//! endpoints, [`forward_error`] and [`reverse_error`] for ICMP errors about them, [`follow`] for
//! later fragments; [`own::steer`] for what processes of the node connect to. All are given tables by the [`Tables`] trait and answer with a
//! verdict; none touches the packet, so all of it runs on the host under
//! test and in the kernel over maps.
//!
//! The life of a TCP flow: the client's SYN finds a listener, the service's decision
//! names the endpoint, and a note is left in a small cache (`recent`): forged SYNs
//! come no further. The endpoint's SYN-ACK finds the note, and two entries are
//! written as long as room is granted to unknown clients (else at the client's next
//! segment), one keyed by what the client sends (forward), one by what the endpoint
//! sends (reverse). The endpoint's later segments find theirs; the client's need none
//! as long as all flows of the service go one way ([`SLOT_ALONE`]). A RST in either
//! direction, or the end of both, removes both entries at once, since the client's
//! kernel may use the port again for another connection with the same endpoint; what
//! comes late finds a note once more. UDP flows have entries from their first datagram
//! on and end by idleness.
//!
//! Invariants:
//! - Only a listener's destination, or a known flow's source, is ever translated.
//! - To an endpoint, two connections of one client never look alike: a connection
//!   straight to the endpoint's own address is written down too, and whichever comes
//!   second gets another source port. Until there is a clash it passes unchanged.
//! - A flow in the tables stays with its endpoint while that endpoint is not down,
//!   whatever the selection says meanwhile.
//! - Where entries are looked at, a segment in mid-connection that none knows makes
//!   one (as conntrack does), so a lost table costs a single-endpoint service nothing.
//! - Full tables refuse nobody: a flow without entries goes where the decision says.

mod errors;
mod flow;
mod forward;
mod fragments;
pub mod own;
mod recent;
mod redispatch;
mod relay;
mod reverse;
mod spread;
mod tables;

pub use errors::{forward as forward_error, reverse as reverse_error};
pub use fragments::follow;
pub use relay::concerns as relays;
pub use tables::{Insert, Tables};

#[cfg(doc)]
use crate::abi::SLOT_ALONE;
use crate::abi::{
    Address, FORWARD_DSR, FlowKey, ForwardFlow, Listener, More, Reason, ReverseFlow, Syn,
};
use crate::packet::{
    Frame, Piece, Quoted, Segment,
    rewrite::{Family, Side, Translation},
    syn::{self, Ends},
};

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<A> {
    /// It goes on as it is.
    Pass(Reason),
    /// It is answered with a RST and goes no further.
    Reset(Reason),
    /// It goes no further: UDP has no RST to answer with.
    Drop(Reason),
    /// It goes on with other addresses, counted for this endpoint.
    Translate(Translation<A>, u32),
    /// As `Translate`, and it is sent on from here: the kernel would not forward a packet
    /// that comes in with an address of its own.
    Relay(Translation<A>, u32),
    /// It refuses a SYN, and becomes the SYN to another endpoint, between these ends.
    Again(Ends<A>),
}

/// A [`Verdict`] of which every field is always there.
///
/// Not the enum itself: where ways meet, the compiler may lay down the fields that
/// a variant does not have, and the kernel's verifier takes offence at what was never
/// written.
#[derive(Clone, Copy)]
pub struct Ruling<A> {
    /// Which variant.
    pub fate: Fate,
    /// Why, unless it is translated.
    pub reason: Reason,
    /// The endpoint, if it is translated.
    pub endpoint: u32,
    /// How, if it is translated.
    pub translation: Translation<A>,
}

/// Room for what a program lays down while it decides about a segment that the fast way
/// is not for: the stack has 512 bytes, over all functions that call each other. One a
/// CPU is enough, since programs do not interrupt each other.
#[repr(C)]
pub struct Work<A: Address> {
    /// What is decided about, if it is a segment.
    pub segment: Segment<A>,
    /// [`reverse_fast`] has found that the segment has no entry.
    pub unknown: bool,
    /// What is decided about, if it is an ICMP error.
    pub quoted: Quoted<A>,
    /// What is decided about, if it is a later fragment.
    pub piece: Piece<A>,
    /// What was decided.
    pub ruling: Ruling<A>,
    /// What the segment says if it is a SYN; or of one that is sent again.
    pub syn: Syn,
    /// The rest of its options.
    pub more: More,
    /// One more than the endpoint that was asked first by a SYN that was sent on; else zero.
    origin: u32,
    listener: Listener,
    /// Where the flow would have gone before the last switch.
    previous: u32,
    /// What the client's segments are known by.
    key: FlowKey<A>,
    /// What the endpoint's segments are known by.
    back_key: FlowKey<A>,
    /// The neighbour, or the address behind one, that what is sent on from here goes to.
    pub hop: A,
    /// Where the way was found to for that.
    pub led: A,
    /// Hardware addresses for what is sent on from here: destination and source.
    pub macs: [[u8; 6]; 2],
    /// The interface that what is sent on from here leaves by.
    pub out: u32,
    /// The MTU of the way on, if the kernel told it for a segment that is too long for it.
    pub mtu: u16,
    /// Source and destination of an ICMP error or later fragment that is sent on from here,
    /// as they shall stand.
    pub ends: [A; 2],
    /// [`crate::abi::Endpoint::forward`] of the endpoint of `back_key`.
    forward: u32,
    /// The endpoint of a flow that is to be written down.
    target: u32,
    /// Its `FLOW_*` bits.
    state: u32,
    /// What became of it, see [`flow::Entered`].
    entered: u32,
    forth: ForwardFlow,
    back: ReverseFlow<A>,
}

/// The variants of [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// See [`Verdict::Pass`].
    Pass,
    /// See [`Verdict::Reset`].
    Reset,
    /// See [`Verdict::Drop`].
    Drop,
    /// See [`Verdict::Translate`].
    Translate,
    /// See [`Verdict::Relay`]; from a client to an endpoint.
    Relay,
    /// See [`Verdict::Relay`]; from an endpoint to a client.
    Reply,
    /// See [`Verdict::Again`].
    Again,
    /// Not decided yet: what is to be done takes room.
    Slow,
}

impl<A: Family> Ruling<A> {
    #[inline(always)]
    fn plain(fate: Fate, reason: Reason) -> Self {
        Self {
            fate,
            reason,
            endpoint: 0,
            translation: Translation::nothing(),
        }
    }

    #[inline(always)]
    fn pass(reason: Reason) -> Self {
        Self::plain(Fate::Pass, reason)
    }

    #[inline(always)]
    fn translate(translation: Translation<A>, endpoint: u32) -> Self {
        Self {
            fate: Fate::Translate,
            reason: Reason::Direct,
            endpoint,
            translation,
        }
    }

    /// The same as an enum.
    pub fn verdict(&self) -> Verdict<A> {
        match self.fate {
            Fate::Pass => Verdict::Pass(self.reason),
            Fate::Reset => Verdict::Reset(self.reason),
            Fate::Drop => Verdict::Drop(self.reason),
            Fate::Translate | Fate::Slow => Verdict::Translate(self.translation, self.endpoint),
            Fate::Relay | Fate::Reply => Verdict::Relay(self.translation, self.endpoint),
            Fate::Again => Verdict::Again(self.ends()),
        }
    }

    /// Of [`Fate::Again`]: the ends of the SYN.
    #[inline(always)]
    pub fn ends(&self) -> Ends<A> {
        Ends {
            src_be: self.translation.client_be,
            dst_be: self.translation.addr_be,
            src_port_be: self.translation.client_port_be,
            dst_port_be: self.translation.port_be,
        }
    }
}

/// A client's segment: is it for a listener, and where does it go?
#[inline(always)]
pub fn forward<A: Family, T: Tables<A>, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    segment: &Segment<A>,
) -> Ruling<A> {
    let look = |clock| syn::glance(frame, segment, clock);
    let ruling = forward::fast(tables, segment, look);
    match tables.work() {
        Some(work) if ruling.fate == Fate::Slow => {
            work.segment = *segment;
            look_at(tables, frame, work);
            forward_slow(tables, work);
            work.ruling
        }
        _ => ruling,
    }
}

/// [`forward`], as far as it goes without much room. [`Fate::Slow`] means that
/// [`forward_slow`] shall decide. What a SYN says beside its header tells `look`, given the
/// clock, if that takes but a glance.
#[inline(always)]
pub fn forward_fast<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    look: impl FnOnce(u32) -> Option<Syn>,
) -> Ruling<A> {
    forward::fast(tables, segment, look)
}

/// Lays down what [`Work::segment`] says if it is a SYN, for [`forward_slow`].
#[inline(always)]
pub fn look_at<A: Family, T: Tables<A>, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    work: &mut Work<A>,
) {
    if work.segment.opens() {
        let clock = tables.clock();
        let Work {
            segment, syn, more, ..
        } = work;
        syn::read(frame, segment, clock, syn, more);
    }
}

/// Rules about [`Work::segment`] in [`Work::ruling`].
#[inline(always)]
pub fn forward_slow<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    work.origin = 0;
    forward::slow(tables, work);
    if work.ruling.fate == Fate::Again {
        redispatch::offer(tables, work);
    }
    fragments::remember(tables, work, Side::Destination);
}

/// An endpoint's segment: does it belong to a steered flow?
#[inline(always)]
pub fn reverse<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Ruling<A> {
    let ruling = reverse::fast(tables, segment);
    match tables.work() {
        Some(work) if ruling.fate == Fate::Slow => {
            work.segment = *segment;
            work.unknown = ruling.reason == Reason::NotSteered;
            reverse_slow(tables, work);
            work.ruling
        }
        _ => ruling,
    }
}

/// [`reverse`], see [`forward_fast`]. [`Reason::NotSteered`] with [`Fate::Slow`] means that the
/// segment has no entry, which shall stand in [`Work::unknown`].
#[inline(always)]
pub fn reverse_fast<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Ruling<A> {
    reverse::fast(tables, segment)
}

/// See [`forward_slow`].
#[inline(always)]
pub fn reverse_slow<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    work.origin = 0;
    reverse::slow(tables, work);
    if work.ruling.fate == Fate::Again {
        redispatch::offer(tables, work);
    }
    fragments::remember(tables, work, Side::Source);
}

impl<A: Family> Work<A> {
    /// Rules that the segment gets these ends, unless it has them already: a direct
    /// connection keeps its bytes unless it had to make way.
    #[inline(always)]
    fn steer(&mut self, side: Side, translation: Translation<A>, endpoint: u32) {
        let identical = translation.is_identity(&self.segment, side);
        self.ruling = Ruling {
            fate: if identical {
                Fate::Pass
            } else {
                Fate::Translate
            },
            reason: Reason::Direct,
            endpoint,
            translation,
        };
    }

    /// Does the segment that is sent on get other addresses than it has, or only other hardware
    /// addresses?
    #[inline(always)]
    pub fn is_translated(&self) -> bool {
        self.forward != FORWARD_DSR
    }

    /// The same of the ICMP error or later fragment.
    #[inline(always)]
    pub fn ends_change(&self) -> bool {
        self.hop == self.ends[1]
    }

    /// Rules that the segment is answered with a RST.
    #[inline(always)]
    fn reset(&mut self, reason: Reason) {
        self.ruling.fate = Fate::Reset;
        self.ruling.reason = reason;
    }

    /// Rules that the segment passes.
    #[inline(always)]
    fn pass(&mut self, reason: Reason) {
        self.ruling.fate = Fate::Pass;
        self.ruling.reason = reason;
    }
}

#[cfg(test)]
mod tests;
