//! No sequence of what can happen makes fewer than `fall` failures in a row a DOWN.

use proptest::prelude::*;

use super::{journal::What, *};

/// What happens to the master.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// A check ends, and counts or does not.
    Check(Kind, Standing),
    /// Its own agent says a line of those that take nobody down.
    Says(&'static str),
    /// A sign of failure, which makes checks and no more.
    Sign(Signal),
    /// So many milliseconds pass.
    Time(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let standing = prop_oneof![
        3 => Just(Standing::Counts),
        1 => prop::sample::select(&Standing::EXCUSES[..]),
    ];
    let kind = prop_oneof![
        2 => Just(Kind::Ok),
        3 => prop::sample::select(&Kind::ALL[..]),
    ];
    let words = prop::sample::select(&["up", "ready", "drain", "40%", "up 100% ready"][..]);
    prop_oneof![
        8 => (kind, standing).prop_map(|(kind, standing)| Happens::Check(kind, standing)),
        1 => words.prop_map(Happens::Says),
        1 => prop::sample::select(&Signal::ALL[..]).prop_map(Happens::Sign),
        1 => (0u64..3000).prop_map(Happens::Time),
    ]
}

/// Failures that counted, in a row; nothing before the first verdict.
#[derive(Default)]
struct Row(Option<u32>);

impl Row {
    fn note(&mut self, kind: Kind, standing: Standing) {
        if standing == Standing::Counts {
            match kind.success() {
                Some(true) => self.0 = Some(0),
                Some(false) => self.0 = Some(self.0.map_or(u32::MAX, |n| n.saturating_add(1))),
                None => {}
            }
        }
    }
}

async fn fewer_are_too_few(fall: u32, all: Vec<Happens>) -> Result<(), TestCaseError> {
    let text = format!(
        "interfaces: {{edge: [a]}}\nservices: [{{name: sense, listeners: ['10.96.0.10:80'], \
         endpoints: [{{name: master, address: '10.0.0.1:80', agent_check: {{port: 9777}}}}, \
         {{name: backup, address: '10.0.0.2:80'}}], check: {{http: {{}}, rise: 2, fall: {fall}, \
         in_flight: 3}}, life_signs: on, observe: trigger}}]"
    );
    let bench = Bench::new(&config::parse(&text).unwrap(), Recorder::default(), &[]);
    bench.check(1, Kind::Ok).await;
    let (mut row, mut seen) = (Row::default(), 0);
    for happens in &all {
        match *happens {
            Happens::Check(kind, standing) => {
                row.note(kind, standing);
                bench.check_that(standing, 0, 0, kind).await;
            }
            Happens::Says(words) => bench.says(0, words).await,
            Happens::Sign(signal) => {
                let whose = Whose::Steered(ServiceId(0), EndpointId(0));
                bench.signal(whose, signal).await;
            }
            Happens::Time(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
        bench.did().await;
        let page = bench.journal.after(seen, 1000);
        seen = page.last;
        for event in &page.events {
            let down = matches!(&event.what, What::State { state, endpoint, .. }
                if state == "down" && endpoint == "master");
            let left = matches!(&event.what, What::Switch { reason, .. }
                if reason == Reason::MasterDown.label());
            // Who wants no new clients is left too, and has not failed.
            let said = all.iter().any(|of| matches!(of, Happens::Says("drain")));
            if down || left && !said {
                prop_assert!(
                    row.0.is_some_and(|row| row >= fall),
                    "{} after {:?} failures",
                    event.what,
                    row.0
                );
            }
        }
    }
    bench.end().await;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn fewer_failures_than_fall_take_nobody_down(
        fall in 1u32..5,
        all in prop::collection::vec(happens(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(fewer_are_too_few(fall, all))?;
    }
}

/// The first bytes that did not match are in the event, and in the status.
#[tokio::test(start_paused = true)]
async fn what_did_not_match_is_told() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    let report = Report {
        key: CheckKey {
            service: 0,
            endpoint: 0,
            generation: 0,
        },
        verdict: Verdict {
            kind: Kind::BodyMismatch,
            status: Some(200),
            latency: Duration::from_micros(400),
            note: "no `version` in it".into(),
            saw: Saw::beginning(b"under\0maintenance"),
        },
        skipped: 0,
        standing: Standing::Counts,
        late: None,
    };
    bench.reports.send(report).await.unwrap();
    bench.did().await;
    let events = bench.journal.after(0, 100).events;
    let saw = events.iter().find_map(|event| match &event.what {
        What::State { verdict, saw, .. } if verdict == "body-mismatch" => saw.clone(),
        _ => None,
    });
    let expected = Some(r"under\0maintenance");
    assert_eq!(saw.as_deref(), expected);
    let master = &bench.status().await.services[0].endpoints[0];
    assert_eq!(master.saw.as_deref(), expected);
    assert_eq!(master.durations.unwrap().p99_us, 400);
    bench.end().await;
}
