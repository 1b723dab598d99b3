//! Direct server return: what goes there is sent on as it is, what comes back goes another way.

use super::*;

/// Behind direct server return: the endpoints own the VIP.
fn server_return() -> Host {
    let mut host = Host::new();
    for endpoint in host.endpoints.values_mut() {
        endpoint.forward = FORWARD_DSR;
        endpoint.port_be = 80u16.to_be();
    }
    host.listeners.retain(|_, l| l.kind != LISTENER_OWN);
    host
}

/// Sent on to this endpoint as it is?
fn as_it_is(host: &Host, segment: &Segment<V4>) -> Option<u32> {
    match forward(host, segment) {
        Verdict::Relay(translation, id) => {
            assert!(translation.is_identity(segment, Side::Destination));
            let hop = Tables::<V4>::work(host).expect("there is room").hop;
            assert_eq!(Some(hop), host.endpoints.get(&id).map(|e| e.v4_be));
            Some(id)
        }
        _ => None,
    }
}

#[test]
fn server_return_stays_where_it_began() {
    let mut host = server_return();
    assert_eq!(as_it_is(&host, &from_client(SYN)), Some(MASTER));
    host.decide(steer_to(BACKUP));
    // Not answered yet: it follows the selection, and so does its client's next word.
    assert_eq!(as_it_is(&host, &from_client(SYN)), Some(BACKUP));
    assert_eq!(as_it_is(&host, &from_client(ACK)), Some(BACKUP));
    host.decide(steer_to(MASTER));
    for flags in [ACK, FIN | ACK, ACK] {
        assert_eq!(as_it_is(&host, &from_client(flags)), Some(BACKUP));
    }
    assert_eq!((host.flows(), host.open.get()), ((1, 1), 1));
    // The backup goes down.
    host.endpoints.get_mut(&BACKUP).unwrap().state = ENDPOINT_DOWN;
    assert_eq!(
        forward(&host, &from_client(ACK)),
        Verdict::Reset(Reason::EndpointDown)
    );
    assert_eq!(host.open.get(), 0);
}

#[test]
fn server_return_ends_with_its_client() {
    let host = server_return();
    for flags in [SYN, ACK, RST] {
        assert_eq!(as_it_is(&host, &from_client(flags)), Some(MASTER));
    }
    assert_eq!(host.open.get(), 0);
    // The port again, and an end that is not seen here.
    for flags in [SYN, ACK, FIN | ACK, ACK, SYN, ACK] {
        assert_eq!(as_it_is(&host, &from_client(flags)), Some(MASTER));
    }
    assert_eq!((host.flows(), host.open.get()), ((1, 1), 1));
    // A lost table costs nothing, nor does a reset that nobody knows.
    let host = server_return();
    assert_eq!(as_it_is(&host, &from_client(RST)), Some(MASTER));
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(as_it_is(&host, &from_client(ACK)), Some(MASTER));
    assert_eq!(host.flows(), (1, 1));
}

/// Where its answers cross this node they pass, and tell what they tell.
#[test]
fn server_return_of_answers_that_are_seen() {
    let host = server_return();
    assert_eq!(as_it_is(&host, &from_client(SYN)), Some(MASTER));
    let answer = |flags| segment((VIP, 80), (CLIENT, 40000), flags);
    for flags in [SYN | ACK, ACK, FIN | ACK] {
        assert_eq!(
            reverse(&host, &answer(flags)),
            Verdict::Pass(Reason::Direct)
        );
    }
    let fin = from_client(FIN | ACK);
    assert_eq!(as_it_is(&host, &fin), Some(MASTER));
    let mut last = answer(ACK);
    last.ack = fin.next_seq();
    assert_eq!(reverse(&host, &last), Verdict::Pass(Reason::Direct));
    assert_eq!(host.open.get(), 0);
}

#[test]
fn a_flood_to_server_return_goes_without_entries() {
    let host = server_return();
    host.grants.set(10);
    for port in 0..1000 {
        let syn = segment((CLIENT, port), (VIP, 80), SYN);
        assert_eq!(as_it_is(&host, &syn), Some(MASTER));
    }
    assert_eq!(host.flows(), (10, 10));
}
