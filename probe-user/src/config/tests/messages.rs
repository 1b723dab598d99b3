//! Every bad input and its one message.

mod services;

use super::*;

/// What is replaced, by what, and the whole message.
type Row = (&'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    // Shape.
    (
        "rise: 2",
        "rize: 2",
        "services[0].check.rize: `rize: 2`: unknown field `rize` at line 17, column 7; \
         accepted: tcp, http, script, redis, postgres, grpc, udp, exec, inter, fastinter, downinter, spread_checks, in_flight, timeout, rise, fall",
    ),
    (
        "services:",
        "datapath: {tcp: auto}\nservices:",
        "datapath.tcp: `datapath: {tcp: auto}`: unknown field `tcp` at line 4, column 12; \
         accepted: bpffs, tc, xdp, flows, learn, timeouts, source, xdp_send, cgroup, log",
    ),
    (
        "    check:",
        "    slow_start: 30\n    check:",
        "services[0].slow_start: `30`: a duration needs a unit; accepted: a whole number with a unit (ms, s, m, h), from 0s to 24h",
    ),
    (
        "    check:",
        "    agent_check: {port: 0}\n    check:",
        "services[0].agent_check.port: `0`: not a number in range; accepted: a whole number from 1 to 65535",
    ),
    (
        "    check:",
        "    agent_check: {port: 1, inter: 10ms}\n    check:",
        "services[0].agent_check.inter: `10ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 100ms to 24h",
    ),
    (
        "    check:",
        "    agent_check: {port: 1, address: host}\n    check:",
        "services[0].agent_check.address: `host`: not an IP address; accepted: an IPv4 or IPv6 address",
    ),
    (
        "    check:",
        "    chek:",
        "services[0].chek: `chek:`: unknown field `chek` at line 13, column 5; accepted: name, \
         listeners, endpoints, check, checks, failback, all_down, on_marked_down, on_failback, drain, \
         forward, affinity, sentinel, observe, life_signs, error_limit, single_writer, slow_start, agent_check, mode",
    ),
    (
        "    check:\n      http: {path: /status, expect: {status: 200, body: {contains: version}}}\n      inter: 10ms\n      timeout: 100ms\n      rise: 2\n      fall: 3\n",
        "",
        "services[0]: nothing is checked; accepted: either `check` or `checks`",
    ),
    (
        "[\"veth*\"]",
        "[\"veth*\"",
        "interfaces.edge: `services:`: illegal placement of ':' indicator at line 4, column 9",
    ),
    // Full NAT.
    (
        "    check:",
        "    forward: full-nat\n    check:",
        "services[0].forward: `full-nat`: datapath.source has no IPv4 address, and 10.96.0.10:8079 \
         is IPv4; accepted: a source in every family of the service's listeners, or forward: nat",
    ),
    (
        "services:",
        "datapath: {source: [10.0.0.5, 10.0.0.6]}\nservices:",
        "datapath.source[1]: `10.0.0.6`: a second address of this family; accepted: at most one \
         IPv4 and one IPv6 address of this node that nothing else on it uses",
    ),
    (
        "services:",
        "datapath: {source: 127.0.0.1}\nservices:",
        "datapath.source[0]: `127.0.0.1`: not an address that packets can come back to; accepted: \
         at most one IPv4 and one IPv6 address of this node that nothing else on it uses",
    ),
    (
        "services:",
        "datapath: {source: 10.96.0.10}\nservices:",
        "services[0].listeners[0]: `10.96.0.10:8079`: the address of this listener of service sense \
         is in datapath.source; accepted: an address that is not a source of full NAT",
    ),
    // Durations and counts.
    (
        "inter: 10ms",
        "inter: 0",
        "services[0].check.inter: `0`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "inter: 10ms",
        "inter: 500us",
        "services[0].check.inter: `500us`: shorter than a millisecond; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "inter: 10ms",
        "inter: 10",
        "services[0].check.inter: `10`: a duration needs a unit; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "inter: 10ms",
        "inter: -1s",
        "services[0].check.inter: `-1s`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "timeout: 100ms",
        "timeout: 0ms",
        "services[0].check.timeout: `0ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "timeout: 100ms",
        "timeout: 99999999999999999999h",
        "services[0].check.timeout: `99999999999999999999h`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "timeout: 100ms",
        "timeout: 25h",
        "services[0].check.timeout: `25h`: too long; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "rise: 2",
        "fastinter: 0ms\n      rise: 2",
        "services[0].check.fastinter: `0ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
    ),
    (
        "rise: 2",
        "spread_checks: 51\n      rise: 2",
        "services[0].check.spread_checks: `51`: not a number in range; accepted: a whole number from 0 to 50",
    ),
    (
        "rise: 2",
        "rise: 0",
        "services[0].check.rise: `0`: not a number in range; accepted: a whole number from 1 to 1000",
    ),
    (
        "fall: 3",
        "fall: 0",
        "services[0].check.fall: `0`: not a number in range; accepted: a whole number from 1 to 1000",
    ),
    (
        "hold: 5s",
        "hold: soon",
        "services[0].failback.hold: `soon`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 0s to 24h",
    ),
    (
        "hold: 5s",
        "hold: 5s, max_hold: 4999ms",
        "services[0].failback.max_hold: `4999ms`: less than `hold`, which is 5s; accepted: at least as long as `hold`; as long as it, fail-backs never wait longer",
    ),
    (
        "mode: auto, hold: 5s",
        "mode: manual, max_hold: 5m",
        "services[0].failback.max_hold: `5m`: a manual fail-back has no hold time; accepted: no `max_hold`, or mode: auto",
    ),
    (
        "mode: auto, hold",
        "mode: manual, hold",
        "services[0].failback.hold: `5s`: a manual fail-back has no hold time; accepted: no `hold`, or mode: auto",
    ),
    (
        "mode: auto",
        "mode: never",
        "services[0].failback.mode: `never`: not known; accepted: auto, manual",
    ),
    // The rest.
    (
        "\"veth*\"",
        "\"veth[0-9]\"",
        "interfaces.edge[0]: `veth[0-9]`: only * and ? are special; accepted: an interface name of 1 to 15 bytes; * stands for any text, ? for one character",
    ),
    (
        "edge: [\"veth*\"]",
        "edge: []",
        "interfaces: no interface is named, so nothing would be steered; accepted: edge: [PATTERN, ...] for pods' links, uplink: [NAME, ...] for outside clients, node: on for processes of the node itself",
    ),
    (
        "edge: [\"veth*\"]",
        "edge: [eth0]\n  uplink: [eth0]",
        "interfaces.uplink[0]: `eth0`: is an edge too; accepted: each interface either as edge or as uplink",
    ),
    (
        "edge: [\"veth*\"]",
        "node: yes",
        "interfaces.node: `yes`: not known; accepted: auto, on, off",
    ),
    (
        "services:",
        "datapath: {cgroup: cgroup}\nservices:",
        "datapath.cgroup: `cgroup`: not an absolute path; accepted: an absolute path as /sys/fs/cgroup",
    ),
    (
        "services:",
        "datapath: {tc: fast}\nservices:",
        "datapath.tc: `fast`: not known; accepted: auto, tcx, clsact",
    ),
    (
        "services:",
        "datapath: {flows: 0}\nservices:",
        "datapath.flows: `0`: not a number in range; accepted: a whole number from 1024 to 16777216",
    ),
    (
        "services:",
        "datapath: {timeouts: {opening: 999ms}}\nservices:",
        "datapath.timeouts.opening: `999ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1s to 24h",
    ),
    (
        "services:",
        "datapath: {timeouts: {datagrams_answered: 2d}}\nservices:",
        "datapath.timeouts.datagrams_answered: `2d`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 1s to 24h",
    ),
    (
        "services:",
        "datapath: {timeouts: {idle: 1m}}\nservices:",
        "datapath.timeouts.idle: `datapath: {timeouts: {idle: 1m}}`: unknown field `idle` at line 4, column 23; accepted: opening, established, closing, datagrams, datagrams_answered",
    ),
    (
        "    failback:",
        "    drain: never\n    failback:",
        "services[0].drain: `never`: not a duration; accepted: unlimited, or a whole number with a unit (ms, s, m, h), from 0s to 24h",
    ),
    (
        "services:",
        "control: {state: orders}\nservices:",
        "control.state: `orders`: not an absolute path; accepted: an absolute path as /var/lib/probe",
    ),
    (
        "services:",
        "control: {group: ''}\nservices:",
        "control.group: ``: names nobody; accepted: a group's name or number",
    ),
    (
        "services:",
        "control: {socket: probe.sock}\nservices:",
        "control.socket: `probe.sock`: not an absolute path; accepted: an absolute path as /run/probe/probe.sock",
    ),
    (
        "services:",
        "metrics: {listen: \"9377\"}\nservices:",
        "metrics.listen: `9377`: not an address with a port; accepted: ADDRESS:PORT as 127.0.0.1:9377 or [::]:9377, or off",
    ),
    (
        "services:",
        "page: {listen: localhost:9378}\nservices:",
        "page.listen: `localhost:9378`: not an address with a port; accepted: ADDRESS:PORT as 127.0.0.1:9378 or [::1]:9378, or off",
    ),
    (
        "services:",
        "resolve: {every: 10ms}\nservices:",
        "resolve.every: `10ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 100ms to 24h",
    ),
    (
        "    failback:",
        "    all_down: drop\n    failback:",
        "services[0].all_down: `drop`: not known; accepted: keep, refuse",
    ),
    (
        "    failback:",
        "    on_marked_down: drain\n    failback:",
        "services[0].on_marked_down: `drain`: not known; accepted: reset, keep, {drain: TIME}",
    ),
    (
        "    failback:",
        "    on_marked_down: {drain: 10}\n    failback:",
        "services[0].on_marked_down.drain: `10`: a duration needs a unit; accepted: a whole number with a unit (ms, s, m, h), from 0s to 24h",
    ),
    (
        "    failback:",
        "    on_failback: {drian: 10s}\n    failback:",
        "services[0].on_failback.drian: `on_failback: {drian: 10s}`: unknown field `drian` at line 19, column 19; accepted: drain",
    ),
    (
        "    failback:",
        "    on_failback: unlimited\n    failback:",
        "services[0].on_failback: `unlimited`: not known; accepted: reset, keep, {drain: TIME}",
    ),
    (
        "    failback:",
        "    on_failback: reset\n    drain: 10s\n    failback:",
        "services[0].drain: `10s`: says the same as `on_failback`, which is there too; accepted: no `drain`",
    ),
    (
        "services:",
        "suspect_self: yes\nservices:",
        "suspect_self: `yes`: not known; accepted: on, off",
    ),
    (
        "services:",
        "checking: {realtime: yes}\nservices:",
        "checking.realtime: `yes`: not known; accepted: auto, on, off",
    ),
    (
        "services:",
        "checking: {per_second: 0}\nservices:",
        "checking.per_second: `0`: not a number in range; accepted: a whole number from 1 to 4294967295",
    ),
    // Signals.
    (
        "    failback:",
        "    sentinel: yes\n    failback:",
        "services[0].sentinel: `yes`: not known; accepted: on, off",
    ),
    (
        "    failback:",
        "    observe: layer4\n    failback:",
        "services[0].observe: `layer4`: not known; accepted: off, trigger, mark-down",
    ),
    (
        "    failback:",
        "    observe: mark-down\n    error_limit: 0\n    failback:",
        "services[0].error_limit: `0`: not a number in range; accepted: a whole number from 1 to 1000",
    ),
    (
        "    failback:",
        "    observe: mark-down\n    error_limit: ten\n    failback:",
        "services[0].error_limit: `ten`: not a number in range; accepted: a whole number from 1 to 1000",
    ),
    (
        "    failback:",
        "    error_limit: 5\n    failback:",
        "services[0].error_limit: `5`: observe: trigger counts no errors; accepted: no `error_limit`, or observe: mark-down",
    ),
    (
        "    failback:",
        "    observe: off\n    error_limit: 5\n    failback:",
        "services[0].error_limit: `5`: observe: off counts no errors; accepted: no `error_limit`, or observe: mark-down",
    ),
];

#[test]
fn each_bad_input_has_its_one_message() {
    let rows = ROWS.iter().chain(services::ROWS);
    let wrong: Vec<_> = rows
        .map(|(from, to, expected)| (message(from, to), *expected))
        .filter(|(message, expected)| message != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn listeners_may_not_overlap_across_services() {
    let second = GOOD.split_once("services:\n").unwrap().1;
    let both = |second: &str| parse(&format!("{GOOD}{second}")).unwrap_err().to_string();
    let renamed = second.replace("name: sense", "name: other");
    assert_eq!(
        both(&renamed),
        "services[1].listeners[0]: `10.96.0.10:8079`: already a listener of service sense \
         (services[0].listeners[0]); accepted: each VIP:port once"
    );
    // One service's VIP is another service's endpoint.
    let circle = renamed
        .replace("10.96.0.10:8079", "10.96.0.20:8079")
        .replace("10.96.0.12:8079", "10.0.0.2:8079")
        .replace("address: 10.0.0.2:8079", "address: 10.0.0.9:8079");
    assert!(both(&circle).contains("own address of endpoint sense/sen2"));
    assert_eq!(
        both(second),
        "services[1].name: `sense`: another service has this name; accepted: a unique name"
    );
}

#[test]
fn other_shapes_of_nothing_are_refused() {
    for text in ["", "---\n", "[]", "services: 1", "a: b\n---\nc: d"] {
        parse(text).unwrap_err();
    }
    let none = "interfaces: {edge: [a]}\nservices: []";
    assert_eq!(
        parse(none).unwrap_err().to_string(),
        "services: there is nothing to steer; accepted: at least one service"
    );
}

#[test]
fn an_error_names_the_file() {
    let missing = load(Path::new("/nonexistent/probe.yaml")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/probe.yaml: cannot read the configuration: No such file"),
        "{missing}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probe.yaml");
    std::fs::write(&file, GOOD.replace("fall: 3", "fall: 0")).unwrap();
    assert_eq!(
        load(&file).unwrap_err().to_string(),
        format!(
            "{}: services[0].check.fall: `0`: not a number in range; accepted: a whole number \
             from 1 to 1000",
            file.display()
        )
    );
}
