//! Later fragments go where their first one went.
//!
//! Only the first has ports. When it is translated, its addresses and
//! identification are remembered with the server's new address; the others find it
//! there, in either direction. One that overtakes its first passes untranslated, as
//! does one that comes after a minute, when identifications begin to come again.

use super::{Tables, Verdict};
use crate::{
    abi::{FRAGMENT_LIFE, FragmentKey, FragmentTrack, Reason, seen},
    packet::{
        Piece, Segment,
        rewrite::{Family, Side, Translation},
    },
};

/// What becomes of a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceVerdict<A> {
    /// It goes on as it is.
    Pass(Reason),
    /// It gets the server's new address, counted for this endpoint.
    Translate(A, u32),
}

/// See [`FragmentKey::direction`].
#[inline(always)]
const fn direction(side: Side) -> u8 {
    match side {
        Side::Destination => 0,
        Side::Source => 1,
    }
}

/// Remembers a first fragment that is translated.
#[inline(always)]
pub fn remember<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    side: Side,
    verdict: &Verdict<A>,
) {
    if !segment.fragmented {
        return;
    }
    if let Verdict::Translate(Translation { addr_be, .. }, endpoint) = verdict {
        let key = FragmentKey {
            src_be: segment.src_be,
            dst_be: segment.dst_be,
            id_be: segment.id_be,
            protocol: if A::VERSION == 4 { segment.protocol } else { 0 },
            direction: direction(side),
            pad: 0,
        };
        let track = FragmentTrack {
            addr_be: *addr_be,
            endpoint: *endpoint,
            seen: seen(tables.now_ns()),
        };
        tables.put_fragment(&key, &track);
    }
}

/// Does a later fragment belong to a packet that was translated?
#[inline(always)]
pub fn follow<A: Family, T: Tables<A>>(
    tables: &T,
    piece: &Piece<A>,
    side: Side,
) -> PieceVerdict<A> {
    let key = FragmentKey {
        src_be: piece.src_be,
        dst_be: piece.dst_be,
        id_be: piece.id_be,
        protocol: piece.protocol,
        direction: direction(side),
        pad: 0,
    };
    match tables.fragment(&key) {
        Some(track) if seen(tables.now_ns()).wrapping_sub(track.seen) <= FRAGMENT_LIFE => {
            PieceVerdict::Translate(track.addr_be, track.endpoint)
        }
        _ => PieceVerdict::Pass(Reason::Fragment),
    }
}
