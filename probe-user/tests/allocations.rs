//! A good check over a kept connection allocates nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::mpsc;

use probe_user::{
    config,
    health::{
        Kind, Probe, RiseFall, State,
        budget::Budget,
        lane::{Asks, Lane},
        lateness::Pulse,
        probe::Recipe,
        scheduler::{Intervals, Reports, Rhythm, Shared, Trigger},
    },
};

thread_local! {
    /// Allocations of this thread; the server has one of its own.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // A thread that ends has no counter any more, and nobody asks.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all of it is the system's allocator; counting touches no memory that is allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers whoever connects, each on a thread of its own.
fn server(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            thread::spawn(move || {
                let mut request = [0; 1024];
                while stream.read(&mut request).is_ok_and(|read| read > 0) {
                    stream.write_all(answer).expect("an answer");
                }
            });
        }
    });
    target
}

#[test]
fn a_good_check_over_a_kept_connection_allocates_nothing() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nX-Role: primary\r\nContent-Length: 7\r\n\r\nversion"[..],
        b"HTTP/1.1 200 OK\r\nX-Role: primary\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nvers\r\n3\r\nion\r\n0\r\n\r\n",
    ] {
        let target = server(answer);
        let config = config::parse(
            "interfaces: {edge: [a]}\nservices: [{name: a, listeners: ['10.0.0.1:80'], endpoints: \
             [{name: b, address: '10.0.0.2:80'}], check: {http: {connection: reuse, expect: \
             {headers: [{name: X-Role, equals: primary}], body: {contains: version}, not: {body: \
             {contains: error}}}}, timeout: 20s}}]",
        )
        .expect("a configuration");
        let mut probe = Probe::new(config.services()[0].check(), target, "a");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let allocations = runtime.block_on(async move {
            let mut before = 0;
            for i in 0..1100 {
                if i == 100 {
                    before = COUNT.get();
                }
                let verdict = probe.run().await;
                assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
            }
            COUNT.get() - before
        });
        assert_eq!(allocations, 0, "in a thousand checks");
    }
}

/// So many that the lane looks after them by itself, and several of each endpoint at one time.
#[test]
fn nor_do_those_of_a_lane_where_checks_overlap() {
    let http = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nversion";
    let http = (
        "http: {connection: reuse, expect: {body: {contains: version}}}",
        http,
    );
    let master = "+PONG\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    let redis = ("redis: {connection: reuse, role: master}", master);
    let fresh = ("redis: {connection: fresh}", "+PONG\r\n");
    let script = ("script: {steps: [{send: a}, {expect: b}]}", "abc");
    for (check, answer) in [http, redis, fresh, script] {
        let allocations = of_a_lane(check, answer.as_bytes());
        // A stall may make more of them overlap than ever before.
        assert!(
            allocations.contains(&0),
            "in a thousand checks, {check}: {allocations:?}"
        );
    }
}

/// Allocations of a thousand checks, four times.
fn of_a_lane(check: &str, answer: &'static [u8]) -> Vec<u64> {
    let target = server(answer);
    let config = config::parse(&format!(
        "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: ['10.0.0.1:80'], endpoints: \
         [{{name: b, address: '10.0.0.2:80'}}], check: {{{check}, inter: 1ms, timeout: 20s, \
         in_flight: 3}}}}]",
    ))
    .expect("a configuration");
    let inter = Duration::from_millis(1);
    let rhythm = Rhythm {
        intervals: Intervals {
            inter,
            fastinter: inter,
            downinter: inter,
        },
        offset: Duration::ZERO,
        phase: inter,
        spread: 0,
        timeout: Duration::from_secs(20),
        in_flight: 3,
        life_signs: None,
        health: RiseFall::new(2, 2, State::Up),
    };
    let shared = Shared {
        pulse: Arc::new(Pulse::new(Duration::from_secs(20))),
        budget: Arc::new(Budget::new(None, None)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let (urgent, mut reports) = mpsc::channel(4096);
        let quiet = urgent.clone();
        let lane = Lane::new(shared.clone(), Reports { urgent, quiet }).expect("a lane");
        let door = lane.door();
        let mut seats = Vec::new();
        for key in 0..4 {
            let recipe = Recipe {
                check: Arc::new(config.services()[0].check().clone()),
                endpoint: target,
                authority: "a".to_owned(),
                service: "a".to_owned(),
                name: "b".to_owned(),
            };
            let asks = Asks::of(&recipe).expect("a plain check");
            seats.push(door.sit(key, asks, &rhythm, Trigger::new().1, &shared));
        }
        tokio::spawn(lane.run());
        let mut counts = Vec::new();
        for _ in 0..4 {
            let before = COUNT.get();
            for _ in 0..1000 {
                let report = reports.recv().await.expect("the lane runs");
                assert_eq!(report.verdict.kind, Kind::Ok, "{report:?}");
            }
            counts.push(COUNT.get() - before);
        }
        counts
    })
}
