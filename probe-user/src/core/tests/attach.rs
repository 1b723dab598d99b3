//! Interfaces come and go, are renamed, and cannot be attached.

use super::*;

#[tokio::test(start_paused = true)]
async fn interfaces_come_and_go() {
    let recorder = Recorder {
        attached: vec![3, 4, 9],
        broken: ["veth2".to_owned()].into(),
        ..Recorder::default()
    };
    let existing = [
        interface(1, "lo"),
        interface(2, "eth0"),
        interface(3, "dummy0"),
        interface(4, "veth1"),
    ];
    let bench = Bench::new(&config(""), recorder, &existing);
    let name = |text: &str| text.to_owned();
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Select(0),
            // Inherited and no longer wanted; inherited and gone.
            Detach(name("dummy0")),
            Forget(9),
            Did::Attached(name("eth0")),
            Did::Attached(name("veth1")),
        ]
    );
    for change in [
        // The watcher's first dump repeats what is known.
        Change::Appeared(interface(4, "veth1")),
        Change::Appeared(interface(5, "veth2")),
        Change::Appeared(interface(6, "eth1")),
        Change::Renamed {
            from: name("veth1"),
            to: interface(4, "veth9"),
        },
        Change::Gone(interface(6, "eth1")),
    ] {
        bench.changes.send(change).await.unwrap();
    }
    assert_eq!(bench.did().await, []);
    let status = bench.status().await.interfaces;
    assert_eq!(status[1].name, "veth9");
    assert_eq!(status[1].xdp.as_deref(), Some("none"));
    assert_eq!(status[2].tc, None);
    assert!(status[2].degraded[0].starts_with("not attached: "));
    // What failed is tried again.
    tokio::time::sleep(interfaces::RETRY).await;
    assert_eq!(bench.did().await, [Did::Attached(name("veth2"))]);
    for change in [
        Change::Renamed {
            from: name("veth9"),
            to: interface(4, "other"),
        },
        Change::Gone(interface(5, "veth2")),
    ] {
        bench.changes.send(change).await.unwrap();
    }
    assert_eq!(bench.did().await, [Detach(name("other")), Forget(5)]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_literal_interface_must_be_attached_at_the_start() {
    let recorder = Recorder {
        broken: ["br0".to_owned()].into(),
        ..Recorder::default()
    };
    let config = config("");
    let ears = Box::new(Ears(recorder.did.clone()));
    let (orders, journal) = (StandingOrders::default(), Arc::default());
    let at = resolved(&config);
    let mut core = Core::new(&config, at, orders, journal, recorder, String::new(), ears).unwrap();
    core.attach(&[interface(7, "br0")]).unwrap_err();
}
