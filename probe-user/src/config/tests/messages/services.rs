//! Bad input about a service's listeners, endpoints, families, tiers, names and check.

use super::Row;

pub(super) const ROWS: &[Row] = &[
    // Listeners.
    (
        "\"10.96.0.10:8079\"",
        "\"10.96.0.10:8079\", \"10.96.0.10:8079\"",
        "services[0].listeners[1]: `10.96.0.10:8079`: already a listener of service sense (services[0].listeners[0]); accepted: each VIP:port once",
    ),
    (
        "10.96.0.12:8079",
        "10.96.0.10:8079",
        "services[0].endpoints[0].listeners[0]: `10.96.0.10:8079`: already a listener of service sense (services[0].listeners[0]); accepted: each VIP:port once",
    ),
    (
        "\"10.96.0.12:8079\"",
        "\"10.96.0.12:8079\", \"10.96.0.12:8079\"",
        "services[0].endpoints[0].listeners[1]: `10.96.0.12:8079`: already a listener of endpoint sense/sen2 (services[0].endpoints[0].listeners[0]); accepted: each VIP:port once",
    ),
    (
        "10.96.0.10:8079",
        "10.0.0.2:8079",
        "services[0].listeners[0]: `10.0.0.2:8079`: is the own address of endpoint sense/sen2: what is sent to it would be steered in a circle; accepted: a VIP:port at which no endpoint listens",
    ),
    (
        "10.96.0.10:8079",
        "10.96.0.10",
        "services[0].listeners[0]: `10.96.0.10`: a listener needs a port; accepted: ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535, with /udp behind it for datagrams",
    ),
    (
        "10.96.0.10:8079",
        "10.96.0.10:0",
        "services[0].listeners[0]: `10.96.0.10:0`: port 0; accepted: ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535",
    ),
    (
        "10.96.0.10:8079",
        "vip.domain.com:8079",
        "services[0].listeners[0]: `vip.domain.com:8079`: not an address with a port; accepted: ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535, with /udp behind it for datagrams",
    ),
    (
        "10.96.0.10:8079",
        "0.0.0.0:8079",
        "services[0].listeners[0]: `0.0.0.0:8079`: the unspecified address is nobody's: clients connect to one address; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "[::]:8079",
        "services[0].listeners[0]: `[::]:8079`: the unspecified address is nobody's: clients connect to one address; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "[ff02::1]:8079",
        "services[0].listeners[0]: `[ff02::1]:8079`: TCP has no multicast; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "224.0.0.1:8079",
        "services[0].listeners[0]: `224.0.0.1:8079`: TCP has no multicast; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "127.0.0.2:8079",
        "services[0].listeners[0]: `127.0.0.2:8079`: loopback packets never cross an interface that is managed; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "255.255.255.255:8079",
        "services[0].listeners[0]: `255.255.255.255:8079`: TCP has no broadcast; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "[fe80::1]:8079",
        "services[0].listeners[0]: `[fe80::1]:8079`: a link-local address means something else on every link; accepted: a unicast address",
    ),
    (
        "10.96.0.10:8079",
        "[::ffff:10.96.0.10]:8079",
        "services[0].listeners[0]: `[::ffff:10.96.0.10]:8079`: an IPv4-mapped address never is in a packet: write the IPv4 address; accepted: a unicast address",
    ),
    (
        "[\"10.96.0.10:8079\"]",
        "[]",
        "services[0].listeners: nobody could reach the service; accepted: at least one VIP:port",
    ),
    // Endpoints.
    (
        "react1.domain.com:8079",
        "react1.domain.com",
        "services[0].endpoints[1].address: `react1.domain.com`: an endpoint needs a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "address: 10.0.0.2:8079",
        "address: 10.0.0.2",
        "services[0].endpoints[0].address: `10.0.0.2`: an endpoint needs a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "address: 10.0.0.2:8079",
        "address: \"[fd00::2]\"",
        "services[0].endpoints[0].address: `[fd00::2]`: an endpoint needs a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "react1.domain.com:8079",
        "react1.domain.com:0",
        "services[0].endpoints[1].address: `react1.domain.com:0`: port 0; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "react1.domain.com:8079",
        "react1.domain.com:70000",
        "services[0].endpoints[1].address: `react1.domain.com:70000`: not a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "react1.domain.com:8079",
        "re_act!.domain:80",
        "services[0].endpoints[1].address: `re_act!.domain:80`: neither an address nor a DNS name; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "react1.domain.com:8079",
        "10.0.0.256:80",
        "services[0].endpoints[1].address: `10.0.0.256:80`: neither an address nor a DNS name; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "address: 10.0.0.2:8079",
        "address: 127.0.0.1:8079",
        "services[0].endpoints[0].address: `127.0.0.1:8079`: loopback packets never cross an interface that is managed; accepted: a unicast address",
    ),
    (
        "react1.domain.com:8079",
        "10.0.0.2:8079",
        "services[0].endpoints[1].address: `10.0.0.2:8079`: endpoint sen2 has this address; accepted: an address of its own for each endpoint of a service",
    ),
    (
        "address: 10.0.0.2:8079",
        "address: [\"10.0.0.2:8079\", \"10.0.0.3:8079\"]",
        "services[0].endpoints[0].address[1]: `10.0.0.3:8079`: a second address of the same family; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "address: 10.0.0.2:8079",
        "address: [\"10.0.0.2:8079\", \"[fd00::2]:80\"]",
        "services[0].endpoints[0].address[1]: `[fd00::2]:80`: the addresses' ports differ; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    (
        "address: 10.0.0.2:8079",
        "address: [\"10.0.0.2:8079\", \"a.b:8079\"]",
        "services[0].endpoints[0].address[1]: `a.b:8079`: a DNS name in a list: a name brings both families by itself; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
    ),
    // Families.
    (
        "\"10.96.0.10:8079\"",
        "\"10.96.0.10:8079\", \"[fd00:96::10]:8079\"",
        "services[0].endpoints[0].address: `10.0.0.2:8079`: no IPv6 address, and the listener [fd00:96::10]:8079 is IPv6; accepted: an address in every family of the service's listeners, as [IPV4:PORT, \"[IPV6]:PORT\"]",
    ),
    (
        "10.96.0.12:8079",
        "[fd00:96::12]:8079",
        "services[0].endpoints[0].address: `10.0.0.2:8079`: no IPv6 address, and the listener [fd00:96::12]:8079 is IPv6; accepted: an address in every family of the service's listeners, as [IPV4:PORT, \"[IPV6]:PORT\"]",
    ),
    // Tiers and names.
    (
        "address: react1.domain.com:8079",
        "address: react1.domain.com:8079\n        tier: 2",
        "services[0].endpoints[1].tier: `2`: there is no endpoint in tier 1; accepted: tiers 0, 1, 2, ... without a gap; an endpoint without `tier` is in that of its place in the list, from 0",
    ),
    (
        "address: react1.domain.com:8079",
        "address: react1.domain.com:8079\n        tier: -1",
        "services[0].endpoints[1].tier: `-1`: not a number in range; accepted: a whole number from 0 to 254",
    ),
    (
        "address: react1.domain.com:8079",
        "address: react1.domain.com:8079\n        weight: 257",
        "services[0].endpoints[1].weight: `257`: not a number in range; accepted: a whole number from 0 to 256",
    ),
    (
        "failback:",
        "affinity: {client_ip: 0s}\n    failback:",
        "services[0].affinity.client_ip: `0s`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1s to 24h",
    ),
    (
        "failback:",
        "affinity: {cookie: a}\n    failback:",
        "services[0].affinity.cookie: `affinity: {cookie: a}`: unknown field `cookie` at line 19, column 16; accepted: client_ip",
    ),
    (
        "name: sen1",
        "name: sen2",
        "services[0].endpoints[1].name: `sen2`: another endpoint of the service has this name; accepted: a name that is unique within the service",
    ),
    (
        "name: sense",
        "name: \"\"",
        "services[0].name: ``: empty name; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
    ),
    (
        "name: sense",
        "name: a/b",
        "services[0].name: `a/b`: '/' in a name; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
    ),
    (
        "name: sense",
        "name: \"-a\"",
        "services[0].name: `-a`: a name begins with a letter or digit; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
    ),
    (
        "name: sen1",
        "name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "services[0].endpoints[1].name: `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`: name of 64 bytes; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
    ),
    // The check.
    (
        "{contains: version}",
        "{regex: \"(\"}",
        "services[0].check.http.expect.body.regex: `(`: invalid regex: unclosed group; accepted: a regular expression without look-around and back-references",
    ),
    (
        "{contains: version}",
        "{contains: a, regex: b}",
        "services[0].check.http.expect.body: both `contains` and `regex` are given; accepted: one of `contains: TEXT`, `hex: BYTES` and `regex: EXPRESSION`",
    ),
    (
        "{contains: version}",
        "{contains: \"\"}",
        "services[0].check.http.expect.body.contains: ``: every body contains the empty text; accepted: the text to look for",
    ),
    (
        "status: 200",
        "status: 20",
        "services[0].check.http.expect.status: `20`: not a status; accepted: a status as 200, a range as 200-299, several as 200-299,404, or a list of these; 100 to 599",
    ),
    (
        "status: 200",
        "status: [200, 299-200]",
        "services[0].check.http.expect.status[1]: `299-200`: the range is empty; accepted: a status as 200, a range as 200-299, several as 200-299,404, or a list of these; 100 to 599",
    ),
    (
        "path: /status",
        "path: status",
        "services[0].check.http.path: `status`: not a request path; accepted: / and visible ASCII characters without blanks, others percent-encoded",
    ),
    (
        "path: /status",
        "path: \"/a\\r\\nX: y\"",
        "services[0].check.http.path: `/a\r\nX: y`: not a request path; accepted: / and visible ASCII characters without blanks, others percent-encoded",
    ),
    (
        "path: /status",
        "method: HEAD",
        "services[0].check.http.method: `HEAD`: an answer to HEAD has no body, and `expect` says something of one; accepted: GET, or no body in `expect`",
    ),
    (
        "path: /status",
        "method: PATCH",
        "services[0].check.http.method: `PATCH`: not known; accepted: GET, HEAD, OPTIONS, POST, PUT",
    ),
    (
        "path: /status",
        "host: \"a b\"",
        "services[0].check.http.host: `a b`: not a Host header; accepted: a host name or address, with a port if need be",
    ),
    (
        "path: /status",
        "port: 0",
        "services[0].check.http.port: `0`: not a number in range; accepted: a whole number from 1 to 65535",
    ),
];
