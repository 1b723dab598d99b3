//! Later fragments go where their first one went.
//!
//! Only the first has ports. When it is translated, its addresses and
//! identification are remembered with its new addresses and how it is sent; the others
//! find it there, in either direction. One that overtakes its first passes untranslated, as
//! does one that comes after a minute, when identifications begin to come again.

use super::{Fate, Tables, Work};
use crate::{
    abi::{
        FRAGMENT_LEFT, FRAGMENT_LIFE, FRAGMENT_RELAYED, FRAGMENT_REPLIED, FragmentKey,
        FragmentTrack, Reason, seen,
    },
    packet::rewrite::{Family, Side},
};

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
pub fn remember<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, side: Side) {
    let Work {
        segment, ruling, ..
    } = work;
    let way = match ruling.fate {
        Fate::Translate => FRAGMENT_LEFT,
        Fate::Relay => FRAGMENT_RELAYED,
        Fate::Reply => FRAGMENT_REPLIED,
        _ => return,
    };
    if segment.fragmented {
        let key = FragmentKey {
            src_be: segment.src_be,
            dst_be: segment.dst_be,
            id_be: segment.id_be,
            protocol: if A::VERSION == 4 { segment.protocol } else { 0 },
            direction: direction(side),
            pad: 0,
        };
        let track = FragmentTrack {
            addr_be: ruling.translation.addr_be,
            client_be: ruling.translation.client_be,
            endpoint: ruling.endpoint,
            seen: seen(tables.now_ns()),
            way,
        };
        tables.put_fragment(&key, &track);
    }
}

/// Does the later fragment [`Work::piece`] belong to a packet that was translated? Then
/// [`Work::ruling`] has the new addresses, and no ports.
#[inline(always)]
pub fn follow<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, side: Side) {
    let Work { piece, ruling, .. } = work;
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
            ruling.translation.addr_be = track.addr_be;
            ruling.translation.client_be = track.client_be;
            ruling.endpoint = track.endpoint;
            ruling.fate = match track.way {
                FRAGMENT_RELAYED => {
                    work.ends = [track.client_be, track.addr_be];
                    work.hop = tables
                        .endpoint(track.endpoint)
                        .and_then(A::of_endpoint)
                        .unwrap_or(track.addr_be);
                    Fate::Relay
                }
                FRAGMENT_REPLIED => {
                    work.ends = [track.addr_be, track.client_be];
                    work.hop = track.client_be;
                    Fate::Reply
                }
                _ => Fate::Translate,
            };
        }
        _ => work.pass(Reason::Fragment),
    }
}
