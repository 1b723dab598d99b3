//! ICMP errors, which find the flow that they quote.

use super::*;

/// What becomes of an ICMP error by `reporter` to the source of what it quotes, which
/// went from the first to the second.
fn error(host: &Host, reporter: V4, quoted: [(V4, u16); 2]) -> (Fate, Translation<V4>, [V4; 2]) {
    let work = host.work().unwrap();
    let [src, dst] = quoted;
    work.quoted = Quoted {
        l3: 14,
        l4: 34,
        inner_l3: 42,
        inner_l4: 62,
        src_be: reporter,
        dst_be: src.0,
        protocol: TCP,
        inner_src_be: src.0,
        inner_dst_be: dst.0,
        inner_src_port_be: src.1.to_be(),
        inner_dst_port_be: dst.1.to_be(),
    };
    forward_error(host, work);
    (work.ruling.fate, work.ruling.translation, work.ends)
}

#[test]
fn errors_about_what_full_nat_sent_on_are_sent_on() {
    const ROUTER: V4 = V4::from_bytes([192, 0, 2, 1]);
    let host = full_nat();
    let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    let port = u16::from_be(there.client_port_be);
    let hidden = [(SOURCE, port), (MASTER_ADDR, 8080)];
    let back = Translation {
        addr_be: VIP,
        port_be: 80u16.to_be(),
        client_be: CLIENT,
        client_port_be: 40000u16.to_be(),
    };
    // To the client, by a router or by the endpoint itself.
    for reporter in [ROUTER, MASTER_ADDR] {
        let ruled = (Fate::Reply, back, [VIP, CLIENT]);
        assert_eq!(error(&host, reporter, hidden), ruled);
    }
    // To the endpoint, by a router or by the client itself.
    let answer = [(VIP, 80), (CLIENT, 40000)];
    for reporter in [ROUTER, CLIENT] {
        let ruled = (Fate::Relay, there, [SOURCE, MASTER_ADDR]);
        assert_eq!(error(&host, reporter, answer), ruled);
    }
    // Of no flow.
    for quoted in [
        [(SOURCE, port ^ 1), (MASTER_ADDR, 8080)],
        [(SOURCE, port), (BACKUP_ADDR, 8080)],
        [(VIP, 80), (CLIENT, 40001)],
    ] {
        assert_eq!(error(&host, ROUTER, quoted).0, Fate::Pass);
    }
    // Not addressed to whom it quotes.
    let work = host.work().unwrap();
    work.quoted.inner_src_be = VIP;
    work.quoted.inner_dst_be = CLIENT;
    work.quoted.inner_dst_port_be = 40000u16.to_be();
    work.quoted.dst_be = MASTER_ADDR;
    forward_error(&host, work);
    assert_eq!(work.ruling.fate, Fate::Pass);
}

#[test]
fn an_error_about_an_unanswered_syn_finds_its_endpoint() {
    let host = Host::shared();
    for port in 40_000..40_010 {
        let Verdict::Translate(there, id) = forward(&host, &from_port(port, SYN)) else {
            panic!("not steered");
        };
        // SAFETY: see `Host::work`.
        let work = unsafe { &mut *host.work };
        work.quoted.inner_src_be = VIP;
        work.quoted.inner_src_port_be = 80u16.to_be();
        work.quoted.inner_dst_be = CLIENT;
        work.quoted.inner_dst_port_be = port.to_be();
        work.quoted.dst_be = VIP;
        work.quoted.protocol = TCP;
        work.ruling.endpoint = 0;
        forward_error(&host, work);
        assert_eq!(work.ruling.fate, Fate::Translate, "port {port} at {id}");
        assert_eq!(work.ruling.translation.addr_be, there.addr_be);
    }
}
