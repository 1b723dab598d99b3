//! Later fragments, which follow their first.

use super::*;
use crate::abi::FRAGMENT_LIFE;

/// What became of a later fragment.
fn follow(host: &Host, piece: &Piece<V4>, side: Side) -> Option<(V4, u32)> {
    let work = host.work().unwrap();
    work.piece = *piece;
    super::follow(host, work, side);
    let Ruling {
        fate,
        reason,
        translation,
        endpoint,
    } = work.ruling;
    match fate {
        Fate::Translate => Some((translation.addr_be, endpoint)),
        _ => {
            assert_eq!(reason, Reason::Fragment);
            None
        }
    }
}

#[test]
fn later_fragments_follow_their_first_for_a_while() {
    let host = Host::new();
    let there = Side::Destination;
    let mut first = from_client(SYN);
    first.fragmented = true;
    first.id_be = 77;
    let piece = |id_be| Piece {
        l3: 14,
        src_be: CLIENT,
        dst_be: VIP,
        id_be,
        protocol: TCP,
    };
    assert_eq!(follow(&host, &piece(77), there), None);
    assert_eq!(goes_to(forward(&host, &first)), MASTER);
    let followed = Some((MASTER_ADDR, MASTER));
    assert_eq!(follow(&host, &piece(77), there), followed);
    assert_eq!(follow(&host, &piece(78), there), None);
    // The programs at the other end of the node see the same fragment before or after.
    assert_eq!(follow(&host, &piece(77), Side::Source), None);
    let unit = 1u64 << 30;
    host.now_ns
        .set(host.now_ns.get() + u64::from(FRAGMENT_LIFE) * unit);
    assert_eq!(follow(&host, &piece(77), there), followed);
    host.now_ns.set(host.now_ns.get() + unit);
    assert_eq!(follow(&host, &piece(77), there), None);
    // What passes unchanged leaves no trace: its others pass too.
    let mut elsewhere = segment((CLIENT, 40000), (VIP, 81), SYN);
    elsewhere.fragmented = true;
    elsewhere.id_be = 79;
    forward(&host, &elsewhere);
    assert_eq!(follow(&host, &piece(79), there), None);
}

#[test]
fn later_fragments_are_sent_on_with_their_first() {
    let host = full_nat();
    let first = |mut segment: Segment<V4>| {
        segment.fragmented = true;
        segment.id_be = 77;
        segment
    };
    let piece = |src_be, dst_be| Piece {
        l3: 14,
        src_be,
        dst_be,
        id_be: 77,
        protocol: TCP,
    };
    let followed = |piece| {
        let work = host.work().unwrap();
        work.piece = piece;
        super::follow(&host, work, Side::Destination);
        let Ruling {
            fate, translation, ..
        } = work.ruling;
        (fate, translation.addr_be, translation.client_be, work.ends)
    };
    let Verdict::Relay(there, MASTER) = forward(&host, &first(from_client(SYN))) else {
        panic!("not sent on");
    };
    assert_eq!(
        followed(piece(CLIENT, VIP)),
        (Fate::Relay, MASTER_ADDR, SOURCE, [SOURCE, MASTER_ADDR])
    );
    let port = u16::from_be(there.client_port_be);
    let answer = segment((MASTER_ADDR, 8080), (SOURCE, port), SYN | ACK);
    forward(&host, &first(answer));
    assert_eq!(
        followed(piece(MASTER_ADDR, SOURCE)),
        (Fate::Reply, VIP, CLIENT, [VIP, CLIENT])
    );
    assert_eq!(followed(piece(BACKUP_ADDR, SOURCE)).0, Fate::Pass);
}
