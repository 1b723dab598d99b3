//! Several endpoints in a tier: who shares, by which weights, and when all of it moves.

use super::*;

/// Three masters, the third of them without weight, and two backups.
pub(super) fn tiers(extra: &str) -> Config {
    let endpoints: String = [(0, 2), (0, 1), (0, 0), (1, 1), (1, 1)]
        .iter()
        .enumerate()
        .map(|(i, (tier, weight))| {
            let name = if i == 0 { "m.domain.com" } else { "10.0.0.2" };
            format!("  - {{name: e{i}, address: '{name}:8{i}', tier: {tier}, weight: {weight}}}\n")
        })
        .collect();
    let text = format!(
        "interfaces: {{edge: [br0]}}\nservices:\n- name: sense\n  listeners: \
         ['10.96.0.10:80']\n  endpoints:\n{endpoints}  check: {{http: {{path: /}}, inter: 10ms, \
         rise: 2, fall: 2}}\n{extra}"
    );
    config::parse(&text).unwrap()
}

impl Bench {
    async fn judge(&self, endpoint: usize, kind: Kind) {
        for _ in 0..2 {
            self.check(endpoint, kind).await;
        }
    }
}

/// Up is who neither its checks nor its agent calls down; who drains is left as one that is up.
#[tokio::test(start_paused = true)]
async fn an_endpoint_says_how_it_wants_to_be_treated() {
    let text = tiers("  agent_check: {port: 9777}");
    let bench = Bench::new(&text, Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    bench.says(0, "up ready 100%").await;
    assert_eq!(bench.did().await, []);
    let members = Heard(Reason::MembersChanged);

    bench.says(0, "drain").await;
    assert_eq!(
        bench.did().await,
        [Select(1), Rest(0, true), members.clone()]
    );
    let endpoint = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(endpoint.state, "up");
    assert_eq!(endpoint.agent_said.as_deref(), Some("up, drain, 100%"));
    bench.says(0, "ready, 50%").await;
    assert_eq!(
        bench.did().await,
        [
            Rest(0, false),
            Weigh(0, 2 * 20 * 50),
            Weigh(1, 20 * 100),
            Spread(vec![0, 1]),
            members.clone()
        ]
    );
    bench.says(0, "100%").await;
    assert_eq!(
        bench.did().await,
        [Weigh(0, 2), Weigh(1, 1), Spread(vec![0, 1])]
    );

    bench.says(0, "down # by hand\n").await;
    assert_eq!(bench.did().await, [Select(1), Down(0), members.clone()]);
    let endpoint = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(endpoint.state, "down");
    assert_eq!(endpoint.verdict.as_deref(), Some("agent-said"));
    // Good checks do not bring it up, bad ones do not hold its agent's word.
    bench.judge(0, Kind::Ok).await;
    bench.judge(0, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    bench.says(0, "up").await;
    assert_eq!(bench.did().await, []);
    bench.judge(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Spread(vec![0, 1]), members.clone()]
    );

    // Maintenance of all of a tier is a failover, and its end lets it wait like any other.
    bench.says(0, "maint").await;
    bench.says(1, "maint").await;
    assert_eq!(
        bench.did().await,
        [
            Select(1),
            Rest(0, true),
            Down(0),
            members,
            Spread(vec![3, 4]),
            Rest(1, true),
            Down(1),
            Heard(Reason::MasterDown)
        ]
    );
    bench.says(1, "ready").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.did().await, [Rest(1, false), Up(1)]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.did().await, [Select(1), Heard(Reason::Failback)]);
    bench.end().await;
}

/// The share of who was down grows; at the start, and of who serves alone, nothing is slow.
#[tokio::test(start_paused = true)]
async fn who_comes_back_to_a_tier_begins_with_a_small_share() {
    let text = tiers("  slow_start: 10s");
    let bench = Bench::new(&text, Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    bench.judge(0, Kind::Refused).await;
    let members = Heard(Reason::MembersChanged);
    assert_eq!(bench.did().await, [Select(1), Down(0), members.clone()]);
    bench.judge(0, Kind::Ok).await;
    // A twentieth of 2, to all of 1; all of 1 is 2,000.
    assert_eq!(
        bench.did().await,
        [
            Up(0),
            Weigh(0, 200),
            Weigh(1, 2000),
            Spread(vec![0, 1]),
            members.clone()
        ]
    );
    let percent = |status: &status::Status, e: usize| status.services[0].endpoints[e].slow_start;
    let status = bench.status().await;
    assert_eq!((percent(&status, 0), percent(&status, 1)), (Some(5), None));
    tokio::time::sleep(Duration::from_millis(5_010)).await;
    let did = bench.did().await;
    assert_eq!(did[did.len() - 2..], [Weigh(0, 2000), Spread(vec![0, 1])]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let did = bench.did().await;
    assert_eq!(
        did[did.len() - 3..],
        [Weigh(0, 2), Weigh(1, 1), Spread(vec![0, 1])]
    );
    // Nothing more, and none of it was a switch.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.did().await, []);
    let status = bench.status().await;
    assert_eq!(percent(&status, 0), None);
    assert_eq!(status.services[0].selection.members_changed, 2);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_tier_shares_and_moves_as_one() {
    let bench = Bench::new(&tiers("  failback: {hold: 5s}"), Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    assert_eq!(bench.did().await, []);
    let members = Heard(Reason::MembersChanged);
    // One is left: the fast way, without a ring. No failover.
    bench.judge(0, Kind::Refused).await;
    assert_eq!(bench.did().await, [Select(1), Down(0), members.clone()]);
    let selection = &bench.status().await.services[0].selection;
    assert_eq!(selection.switches, 0);
    assert_eq!(selection.members_changed, 1);
    assert_eq!(selection.reason, "initial");
    assert_eq!(selection.endpoint.as_deref(), Some("e1"));
    bench.judge(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Spread(vec![0, 1]), members.clone()]
    );
    // The last one takes the tier along.
    bench.judge(1, Kind::Refused).await;
    bench.judge(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [
            Select(0),
            Down(1),
            members.clone(),
            Spread(vec![3, 4]),
            Down(0),
            Heard(Reason::MasterDown)
        ]
    );
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.kind, "spread");
    assert_eq!(service.selection.endpoint, None);
    assert_eq!(service.selection.endpoints, ["e3", "e4"]);
    assert_eq!(service.selection.tier, Some(1));
    assert_eq!(service.selection.switches, 1);
    let serving: Vec<_> = service.endpoints.iter().map(|e| e.serving).collect();
    assert_eq!(serving, [false, false, false, true, true]);
    let weights: Vec<_> = service.endpoints.iter().map(|e| e.weight).collect();
    assert_eq!(weights, [2, 1, 0, 1, 1]);
    bench.judge(1, Kind::Ok).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.judge(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(1), Up(0)]);
    tokio::time::sleep(Duration::from_millis(2010)).await;
    assert_eq!(
        bench.did().await,
        [Spread(vec![0, 1]), Heard(Reason::Failback)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_to_serve_is_kept_and_never_marked_down() {
    let bench = Bench::new(&tiers(""), Recorder::default(), &[]);
    for i in [3, 4, 0] {
        bench.check(i, Kind::Refused).await;
    }
    bench.check(1, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Spread(vec![0, 1]),
            Down(3),
            Down(4),
            Select(1),
            Down(0),
            Heard(Reason::MembersChanged)
        ]
    );
    bench.judge(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Select(0), Down(1), Heard(Reason::MembersChanged)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_clients_stay_even_one_is_chosen_by_a_ring() {
    let config = tiers("  affinity: {client_ip: 1m}");
    let bench = Bench::new(&config, Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    bench.judge(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Spread(vec![1]), Down(0), Heard(Reason::MembersChanged)]
    );
    assert_eq!(bench.status().await.services[0].affinity_ms, Some(60_000));
    bench.end().await;
    // Unless it is the only one of its tier.
    let bench = Bench::new(&config_of_two_with_affinity(), Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.end().await;
}

fn config_of_two_with_affinity() -> Config {
    config("  affinity: {client_ip: 1m}")
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_takes_a_ring_over() {
    let of = |ids: &[u32]| {
        Some(Choice::Spread(
            ids.iter().copied().map(EndpointId).collect(),
        ))
    };
    let recorder = Recorder {
        inherited: of(&[3, 4]),
        inherited_marks: vec![Mark::Down, Mark::Up, Mark::Up, Mark::Up, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::new(&tiers("  failback: {hold: 5s}"), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![3, 4])]);
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.reason, "inherited");
    let states: Vec<_> = service.endpoints.iter().map(|e| e.state.as_str()).collect();
    assert_eq!(states, ["down", "unknown", "unknown", "up", "up"]);
    // What was in use takes `fall` failures to leave.
    bench.check(3, Kind::ResponseTimeout).await;
    assert_eq!(bench.did().await, []);
    bench.end().await;
    // One of them was marked down, one has left the configuration: who is left goes on.
    let recorder = Recorder {
        inherited: of(&[0, 1, 77]),
        inherited_marks: vec![Mark::Down, Mark::Up, Mark::Up, Mark::Up, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::new(&tiers(""), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.reason, "inherited");
    bench.end().await;
}
