//! Directives that steer no connection by address: what they are, and where they belong.
//!
//! The first row whose words begin a line decides; more words come before fewer.

use super::words::Line;
use crate::import::report::Note;

/// What becomes of a directive.
#[derive(Clone, Copy)]
enum Fate {
    Carried,
    Changed,
    Left,
    Lost,
}

use Fate::{Carried, Changed, Left, Lost};

const L7: &str =
    "layer 7: keep a proxy for it, before the VIP or at each endpoint, or the application";
const PROCESS: &str = "about HAProxy's process";
const LOGS: &str = "packets do not tell; the application logs its requests";
const STATS: &str = "probe has its own: probe status, /metrics, /healthz";
const QUEUE: &str = "packets do not queue: limit connections in the application";
const ACL: &str = "a condition for rules of layer 7";
const CONTENT: &str = "needs a connection's content, or a proxy that ends it";
const KERNEL: &str = "clients and servers have one connection: their kernels' settings hold";

const DIRECTIVES: &[(&[&str], Fate, &str)] = &[
    // Layer 7.
    (
        &["http-check", "disable-on-404"],
        Lost,
        "a 404 takes an endpoint down here; there it only kept new clients away",
    ),
    (
        &["http-check", "send-state"],
        Left,
        "checks do not tell the server about its state",
    ),
    (&["http-request"], Left, L7),
    (&["http-response"], Left, L7),
    (&["http-after-response"], Left, L7),
    (&["http-error"], Left, L7),
    (
        &["http-reuse"],
        Left,
        "a pool of the proxy's own connections: clients have theirs",
    ),
    (&["http-send-name-header"], Left, L7),
    (&["redirect"], Left, L7),
    (&["reqadd"], Left, L7),
    (&["reqrep"], Left, L7),
    (&["reqirep"], Left, L7),
    (&["reqdel"], Left, L7),
    (&["reqidel"], Left, L7),
    (&["reqdeny"], Left, L7),
    (&["reqallow"], Left, L7),
    (&["rspadd"], Left, L7),
    (&["rsprep"], Left, L7),
    (&["rspirep"], Left, L7),
    (&["rspdel"], Left, L7),
    (&["rspidel"], Left, L7),
    (&["compression"], Left, L7),
    (&["filter"], Left, L7),
    (&["errorfile"], Left, L7),
    (&["errorfiles"], Left, L7),
    (&["errorloc"], Left, L7),
    (&["errorloc302"], Left, L7),
    (&["errorloc303"], Left, L7),
    (&["capture"], Left, L7),
    (&["declare"], Left, L7),
    (&["unique-id-format"], Left, L7),
    (&["unique-id-header"], Left, L7),
    (&["cookie"], Left, L7),
    (&["appsession"], Left, L7),
    (&["dynamic-cookie-key"], Left, L7),
    (&["acl"], Left, ACL),
    (
        &["monitor-uri"],
        Left,
        "a page of the proxy's; /healthz is the agent's own",
    ),
    (
        &["monitor-net"],
        Left,
        "connections of monitors are steered like any other",
    ),
    (
        &["monitor"],
        Left,
        "a page of the proxy's; /healthz is the agent's own",
    ),
    (
        &["option", "forwardfor"],
        Changed,
        "the client's own address arrives at the server, as the peer of its connection; the header is not added",
    ),
    (&["option", "originalto"], Left, L7),
    (
        &["option", "forwarded"],
        Changed,
        "the client's own address arrives at the server, as the peer of its connection; the header is not added",
    ),
    (&["option", "http"], Left, L7),
    (&["option", "httpclose"], Left, L7),
    (&["option", "http-server-close"], Left, L7),
    (&["option", "http-keep-alive"], Left, L7),
    (&["option", "http-tunnel"], Left, L7),
    (&["option", "http-pretend-keepalive"], Left, L7),
    (&["option", "http-buffer-request"], Left, L7),
    (&["option", "http-ignore-probes"], Left, L7),
    (&["option", "http-no-delay"], Left, L7),
    (&["option", "http-use-proxy-header"], Left, L7),
    (&["option", "http-use-htx"], Left, L7),
    (&["option", "http-drop-request-trailers"], Left, L7),
    (&["option", "http-drop-response-trailers"], Left, L7),
    (&["option", "h1-case-adjust-bogus-client"], Left, L7),
    (&["option", "h1-case-adjust-bogus-server"], Left, L7),
    (&["option", "accept-invalid-http-request"], Left, L7),
    (&["option", "accept-invalid-http-response"], Left, L7),
    (
        &["option", "accept-unsafe-violations-in-http-request"],
        Left,
        L7,
    ),
    (
        &["option", "accept-unsafe-violations-in-http-response"],
        Left,
        L7,
    ),
    (&["option", "checkcache"], Left, L7),
    (&["option", "disable-h2-upgrade"], Left, L7),
    (
        &["option", "http_proxy"],
        Lost,
        "a server that each request names: a layer-7 proxy",
    ),
    (&["option", "dispatch"], Lost, L7),
    (
        &["option", "transparent"],
        Lost,
        "an address that each client names: nothing to choose from",
    ),
    (
        &["dispatch"],
        Lost,
        "one address without a check: write it as an endpoint",
    ),
    // What holds here by itself.
    (
        &["option", "log-health-checks"],
        Carried,
        "every change of health is logged",
    ),
    (
        &["option", "clitcpka"],
        Carried,
        "clients and servers have one connection, with their own keepalives",
    ),
    (
        &["option", "srvtcpka"],
        Carried,
        "clients and servers have one connection, with their own keepalives",
    ),
    (
        &["option", "tcpka"],
        Carried,
        "clients and servers have one connection, with their own keepalives",
    ),
    (
        &["option", "abortonclose"],
        Carried,
        "a client's close reaches the server itself",
    ),
    (
        &["option", "nolinger"],
        Carried,
        "clients and servers have one connection",
    ),
    (
        &["option", "independent-streams"],
        Carried,
        "clients and servers have one connection",
    ),
    (&["option", "splice-auto"], Carried, "no byte is copied"),
    (&["option", "splice-request"], Carried, "no byte is copied"),
    (&["option", "splice-response"], Carried, "no byte is copied"),
    (
        &["option", "tcp-smart-accept"],
        Carried,
        "clients and servers have one connection",
    ),
    (
        &["option", "tcp-smart-connect"],
        Carried,
        "clients and servers have one connection",
    ),
    (
        &["option", "prefer-last-server"],
        Changed,
        "a connection stays with its endpoint; of new ones that is affinity: {client_ip: ...}",
    ),
    (
        &["option", "persist"],
        Changed,
        "clients of an endpoint that is down go to another",
    ),
    (
        &["option", "redispatch"],
        Changed,
        "a client that is refused is sent on to the next endpoint before it hears of it; one that gets no answer waits until the endpoint is marked down",
    ),
    (
        &["option", "spop-check"],
        Lost,
        "a kind of check that probe has not",
    ),
    (&["option", "tcplog"], Left, LOGS),
    (&["option", "httplog"], Left, LOGS),
    (&["option", "httpslog"], Left, LOGS),
    (&["option", "dontlognull"], Left, LOGS),
    (&["option", "dontlog-normal"], Left, LOGS),
    (&["option", "logasap"], Left, LOGS),
    (&["option", "log-separate-errors"], Left, LOGS),
    (&["option", "error-log-format"], Left, LOGS),
    (&["option", "socket-stats"], Left, STATS),
    (&["option", "contstats"], Left, STATS),
    (&["option", "idle-close-on-response"], Left, KERNEL),
    (&["option", "set-var"], Left, L7),
    (
        &["retries"],
        Changed,
        "a client that is not answered repeats its SYN by itself, and goes to an endpoint that is up",
    ),
    (
        &["retry-on"],
        Left,
        "a request that a server has accepted cannot be sent again by packets: the client, or a layer-7 proxy",
    ),
    (&["hash-type"], Changed, "always consistent (Maglev)"),
    (
        &["hash-balance-factor"],
        Left,
        "connections are shared by hash alone",
    ),
    (
        &["hash-preserve-affinity"],
        Left,
        "connections are shared by hash alone",
    ),
    (&["fullconn"], Left, QUEUE),
    (&["maxconn"], Left, QUEUE),
    (
        &["rate-limit"],
        Left,
        "connections are not slowed down: an nft limit before the VIP does that",
    ),
    (&["backlog"], Left, KERNEL),
    (
        &["source"],
        Changed,
        "the client's address is kept; forward: full-nat hides it",
    ),
    // Contents of connections.
    (&["tcp-request", "inspect-delay"], Left, CONTENT),
    (&["tcp-request", "content"], Left, CONTENT),
    (&["tcp-request", "session"], Left, CONTENT),
    (
        &["tcp-request", "connection"],
        Left,
        "which clients may connect: an nft rule before the VIP",
    ),
    (&["tcp-response"], Left, CONTENT),
    (&["ignore-persist"], Left, L7),
    (&["force-persist"], Left, L7),
    (&["use-fcgi-app"], Lost, "FastCGI: a layer-7 proxy"),
    // Logs, statistics, the process.
    (&["log"], Left, LOGS),
    (&["log-format"], Left, LOGS),
    (&["log-format-sd"], Left, LOGS),
    (&["log-steps"], Left, LOGS),
    (&["log-tag"], Left, LOGS),
    (&["error-log-format"], Left, LOGS),
    (&["stats"], Left, STATS),
    (&["email-alert"], Left, "alerts come from metrics"),
    (&["description"], Left, "a remark"),
    (&["id"], Carried, "services go by their names"),
    (&["guid"], Carried, "services go by their names"),
    (&["grace"], Left, PROCESS),
    (&["bind-process"], Left, PROCESS),
    (
        &["load-server-state-from-file"],
        Carried,
        "the last choice is kept over a restart of the agent",
    ),
    (
        &["server-state-file-name"],
        Carried,
        "the last choice is kept over a restart of the agent",
    ),
    (&["max-keep-alive-queue"], Left, QUEUE),
    (&["max-session-srv-conns"], Left, QUEUE),
    (&["clitcpka-cnt"], Left, KERNEL),
    (&["clitcpka-idle"], Left, KERNEL),
    (&["clitcpka-intvl"], Left, KERNEL),
    (&["srvtcpka-cnt"], Left, KERNEL),
    (&["srvtcpka-idle"], Left, KERNEL),
    (&["srvtcpka-intvl"], Left, KERNEL),
    (&["external-check"], Left, "see option external-check"),
    (&["tcp-check", "set-var"], Left, "checks have no variables"),
    (
        &["tcp-check", "unset-var"],
        Left,
        "checks have no variables",
    ),
    (&["http-check", "set-var"], Left, "checks have no variables"),
    (
        &["http-check", "unset-var"],
        Left,
        "checks have no variables",
    ),
    (&["tcp-check", "comment"], Left, "a remark"),
    (&["http-check", "comment"], Left, "a remark"),
    (
        &["stick", "on"],
        Lost,
        "a key inside of the connection: a layer-7 proxy; affinity here is by client address",
    ),
    (
        &["stick", "match"],
        Lost,
        "a key inside of the connection: a layer-7 proxy; affinity here is by client address",
    ),
    (
        &["stick", "store-request"],
        Lost,
        "a key inside of the connection: a layer-7 proxy; affinity here is by client address",
    ),
    (
        &["stick", "store-response"],
        Lost,
        "a key inside of the connection: a layer-7 proxy; affinity here is by client address",
    ),
];

/// What becomes of a directive that steers no connection by address.
pub fn fate(line: &Line) -> Option<Note> {
    let (_, fate, why) = DIRECTIVES.iter().find(|(words, ..)| {
        words
            .iter()
            .enumerate()
            .all(|(i, word)| line.word(i) == *word)
    })?;
    Some(match fate {
        Carried => Note::carried("", *why),
        Changed => Note::changed("", *why),
        Left => Note::left("", *why),
        Lost => Note::lost("", *why),
    })
}

/// Sections and lines that are about HAProxy itself.
pub fn section(kind: &str) -> &'static str {
    match kind {
        "global" => PROCESS,
        "peers" => {
            "state shared among proxies: what endpoints share here they share by hash, the same on every node"
        }
        "resolvers" => {
            "the node's own resolver configuration decides; how often: resolve.every; hold: resolve.hold_nx, hold_failure"
        }
        "userlist" => "passwords: a layer-7 proxy, or the application",
        "mailers" => "alerts come from metrics",
        "cache" => "answers kept: a layer-7 proxy",
        "program" => "processes beside HAProxy: the service manager",
        "http-errors" => "error pages: a layer-7 proxy, or the application",
        "ring" | "log-forward" | "log-profile" | "traces" => "logs of HAProxy",
        "fcgi-app" => "FastCGI: a layer-7 proxy",
        "crt-store" | "acme" => "certificates: whoever ends TLS",
        _ => "",
    }
}
