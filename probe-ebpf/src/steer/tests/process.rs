//! Where processes of the node itself connect to.

use super::*;

/// A process of the node connects.
fn call(to: V4, port: u16, cookie: u64) -> own::Call<V4> {
    own::Call {
        to_be: to,
        to_port_be: port.to_be(),
        protocol: TCP,
        cookie,
    }
}

#[test]
fn a_process_of_the_node_goes_where_the_selection_says() {
    let mut host = Host::new();
    let to_vip = |host: &Host| own::steer(host, &call(VIP, 80, 7));
    let master = own::Answer {
        fate: own::Fate::Steer,
        reason: Reason::Direct,
        addr_be: MASTER_ADDR,
        port_be: 8080u16.to_be(),
        follows: true,
        service: 1,
        endpoint: MASTER,
    };
    assert_eq!(to_vip(&host), master);
    // Going by the slot alone is a matter of packets.
    host.decide(alone(MASTER));
    assert_eq!(to_vip(&host), master);
    // Down, and selected all the same: all are down.
    host.mark(MASTER, ENDPOINT_DOWN);
    assert_eq!(to_vip(&host), master);
    host.decide(steer_to(BACKUP));
    let backup = to_vip(&host);
    assert_eq!((backup.fate, backup.endpoint), (own::Fate::Steer, BACKUP));
    assert_eq!(
        (backup.addr_be, backup.port_be),
        (BACKUP_ADDR, 8081u16.to_be())
    );
    // An instance's own listener, whatever is selected.
    host.decide(steer_to(MASTER));
    let direct = own::steer(&host, &call(OTHER_VIP, 80, 7));
    assert_eq!((direct.fate, direct.endpoint), (own::Fate::Steer, BACKUP));
    assert!(!direct.follows);
    // What it does to nobody's packets is nothing.
    assert_eq!(host.flows(), (0, 0));
    assert!(host.counted.borrow().is_empty() && host.events.borrow().is_empty());
}

#[test]
fn a_process_of_the_node_is_left_alone_or_refused() {
    let host = Host::new();
    let fate = |to: V4, port: u16, protocol: u8| {
        let call = own::Call {
            protocol,
            ..call(to, port, 7)
        };
        let answer = own::steer(&host, &call);
        (answer.fate, answer.reason)
    };
    let pass = |reason| (own::Fate::Pass, reason);
    assert_eq!(fate(CLIENT, 80, TCP), pass(Reason::NotListener));
    assert_eq!(fate(VIP, 81, TCP), pass(Reason::NotListener));
    assert_eq!(fate(VIP, 80, UDP), pass(Reason::NotListener));
    // The agent's checks go there.
    assert_eq!(fate(MASTER_ADDR, 8080, TCP), pass(Reason::Direct));
    let decide = |action, target| {
        host.decide(Decision {
            action,
            ..steer_to(target)
        });
        fate(VIP, 80, TCP)
    };
    assert_eq!(decide(Action::Pass, 0), pass(Reason::Undecided));
    assert_eq!(
        decide(Action::Refuse, 0),
        (own::Fate::Refuse, Reason::Refused)
    );
    assert_eq!(decide(Action::Steer, 99), pass(Reason::Undecided));
    // A ring that is another service's.
    assert_eq!(decide(Action::Spread, 99), pass(Reason::Undecided));
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().families = FAMILY_V6;
    let answer = own::steer(&host, &call(VIP, 80, 7));
    assert_eq!(
        (answer.fate, answer.reason),
        (own::Fate::Refuse, Reason::NoAddress)
    );
}

#[test]
fn sockets_of_the_node_share_the_endpoints_of_a_tier() {
    let mut host = Host::shared();
    let goes = |host: &Host, cookie| own::steer(host, &call(VIP, 80, cookie)).endpoint;
    let mut shares: HashMap<u32, u32> = HashMap::new();
    for cookie in 1..=3000 {
        let id = goes(&host, cookie);
        // A datagram socket that asks again.
        assert_eq!(goes(&host, cookie), id);
        *shares.entry(id).or_default() += 1;
    }
    for id in [MASTER, BACKUP, THIRD] {
        assert!((800..1200).contains(&shares[&id]), "{shares:?}");
    }
    assert!(host.affinities.borrow().is_empty());

    // The node is one client, and stays where it is while that may be.
    host.keep_clients(10);
    let kept = goes(&host, 1);
    for cookie in 2..100 {
        assert_eq!(goes(&host, cookie), kept);
        host.later(5);
    }
    host.rings
        .insert(2, ring_of(&[MASTER, BACKUP, THIRD, THIRD]));
    host.decide(spread_over(2));
    assert_eq!(goes(&host, 100), kept);
    host.mark(kept, ENDPOINT_DOWN);
    let others: Vec<u32> = [MASTER, BACKUP, THIRD]
        .into_iter()
        .filter(|id| *id != kept)
        .collect();
    host.rings.insert(3, ring_of(&others));
    host.decide(spread_over(3));
    let next = goes(&host, 101);
    assert!(others.contains(&next));
    assert_eq!(goes(&host, 102), next);
    assert_eq!(host.affinities.borrow().len(), 1);
}

#[test]
fn mapped_addresses_are_those_of_ipv4() {
    let bytes = VIP.mapped();
    assert_eq!(own::mapped(VIP), V6::from_bytes(bytes));
    assert_eq!(own::unmapped(V6::from_bytes(bytes)), Some(VIP));
    for other in [
        V6::default(),
        V6::from_bytes(*b"0123456789abcdef"),
        V6::from_bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 10, 0, 0, 1]),
        V6::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]),
    ] {
        assert_eq!(own::unmapped(other), None);
    }
}
