//! A link or gateway of this node that is gone: nobody is left for it.

use super::*;
use crate::failover::cut::{Hop, Way, Ways};

/// Ways to hosts, as a test says, and whose gateway was to be proven.
#[derive(Clone, Default)]
pub struct Known {
    ways: Arc<Mutex<BTreeMap<IpAddr, Way>>>,
    proven: Arc<Mutex<Vec<IpAddr>>>,
}

impl Ways for Known {
    fn way(&mut self, host: IpAddr) -> Option<Way> {
        self.ways.lock().unwrap().get(&host).cloned()
    }
    fn prove(&mut self, host: IpAddr) {
        self.proven.lock().unwrap().push(host);
    }
}

const GATEWAY: [u8; 4] = [10, 0, 0, 254];

impl Known {
    fn set(&self, endpoint: u8, gateway: Option<Hop>, link: Option<&str>) {
        let host = IpAddr::from([10, 0, 0, endpoint + 1]);
        let way = Way {
            host,
            gateway: gateway.map(|hop| (GATEWAY.into(), hop)),
            gone: link.map(|name| Gone::Link(name.to_owned())),
        };
        self.ways.lock().unwrap().insert(host, way);
    }

    fn both(&self, gateway: Option<Hop>, link: Option<&str>) {
        for endpoint in [0, 1] {
            self.set(endpoint, gateway, link);
        }
    }
}

impl Bench {
    /// Both are up, and then the first one is down without a word.
    async fn master_is_silent(&self) -> Vec<Did> {
        for endpoint in [0, 1] {
            self.check(endpoint, Kind::Ok).await;
        }
        self.did().await;
        for _ in 0..2 {
            self.check(0, Kind::ConnectTimeout).await;
        }
        self.did().await
    }

    async fn cut_off(&self) -> Option<status::CutOff> {
        self.status().await.services[0].cut_off.clone()
    }
}

const OVER: [Did; 3] = [Select(1), Down(0), Heard(Reason::MasterDown)];

/// Without how long it took.
fn timeless(did: Vec<Did>) -> Vec<Did> {
    let untimed = |did: &Did| !matches!(did, FailedOver(_));
    did.into_iter().filter(untimed).collect()
}

#[tokio::test(start_paused = true)]
async fn the_selection_is_held_while_the_link_is_gone() {
    let bench = Bench::new(&config("  all_down: refuse"), Recorder::default(), &[]);
    bench.ways.both(None, Some("eth0"));
    assert_eq!(bench.master_is_silent().await, [CutOff("link")]);
    let cut = bench.cut_off().await.unwrap();
    assert_eq!(
        (cut.what.as_str(), cut.reason.as_str()),
        ("link", "eth0 has no carrier")
    );
    assert!(bench.explain().await.because[0].contains("eth0 has no carrier"));
    // The others follow, and however long it takes nobody is left, refused or marked.
    bench.check(1, Kind::Unreachable).await;
    bench.check(1, Kind::Unreachable).await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.did().await, [Doubts(false)]);
    let service = bench.status().await.services[0].clone();
    assert!(service.endpoints.iter().all(|e| e.state == "down"));
    assert_eq!(service.selection.endpoint.as_deref(), Some("master"));
    // The link is back: both are asked, and with a word of one it is over for all.
    bench.ways.both(None, None);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(bench.triggered(0).await && bench.triggered(1).await);
    bench.check(0, Kind::Unreachable).await;
    assert_eq!(bench.did().await, [], "neighbours are being asked for");
    bench.later().await;
    bench.check(1, Kind::Ok).await;
    bench.did().await;
    assert!(bench.cut_off().await.is_none());
    bench.later().await;
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(timeless(bench.did().await), OVER);
    let told: Vec<_> = bench.journal.after(0, 1000).events;
    let told: Vec<_> = told.iter().map(|event| event.what.to_string()).collect();
    assert!(
        told.contains(
            &"sense: its endpoints cannot be reached from this node: eth0 has no carrier; the \
          selection is held"
                .to_owned()
        )
    );
    assert!(told.contains(&"sense: its endpoints can be reached again".to_owned()));
    bench.end().await;
}

/// After the way's return whoever is silent is believed, without a word of anybody.
#[tokio::test(start_paused = true)]
async fn a_way_that_is_back_is_waited_for_a_second() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.ways.both(None, Some("eth0"));
    assert_eq!(bench.master_is_silent().await, [CutOff("link")]);
    bench.ways.both(None, None);
    tokio::time::sleep(Duration::from_millis(500)).await;
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(bench.triggered(0).await);
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(timeless(bench.did().await), OVER);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_of_one_endpoint_is_its_own_failure() {
    // Its own link is gone; the backup is behind another one, or a gateway.
    for gateway in [None, Some(Hop::Known), Some(Hop::Silent)] {
        let bench = Bench::new(&config(""), Recorder::default(), &[]);
        bench.ways.set(0, None, Some("veth1"));
        bench.ways.set(1, gateway, None);
        assert_eq!(bench.master_is_silent().await, OVER);
        bench.end().await;
    }
    // Nobody is doubted who says so himself, nor where that is not wanted.
    let bench = Bench::new(&config("suspect_self: off\n"), Recorder::default(), &[]);
    bench.ways.both(None, Some("eth0"));
    assert_eq!(bench.master_is_silent().await, OVER);
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.ways.both(None, Some("eth0"));
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    bench.did().await;
    for _ in 0..2 {
        bench.check(0, Kind::Refused).await;
    }
    assert_eq!(timeless(bench.did().await), OVER);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_asked_where_all_behind_it_are_silent() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    // While the backup is well nobody asks, and the master is left.
    bench.ways.both(Some(Hop::Known), None);
    assert_eq!(bench.master_is_silent().await, OVER);
    assert!(bench.ways.proven.lock().unwrap().is_empty());
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    bench.ways.both(Some(Hop::Asked), None);
    bench.check(0, Kind::ConnectTimeout).await;
    bench.check(1, Kind::ConnectTimeout).await;
    bench.check(1, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    assert!(bench.cut_off().await.is_none(), "nothing is proven");
    bench.ways.both(Some(Hop::Silent), None);
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(bench.did().await, [CutOff("gateway")]);
    let reason = bench.cut_off().await.unwrap().reason;
    assert_eq!(reason, "the gateway 10.0.0.254 does not answer");
    bench.end().await;
}

/// All on one host, or only one endpoint: a gateway that answers clears itself.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_answers_is_no_excuse() {
    let text = "interfaces: {edge: [a]}\nservices: [{name: sense, listeners: ['10.96.0.10:80'], \
                endpoints: [{name: master, address: '10.0.0.1:80'}], check: {http: {}, rise: 2, \
                fall: 2}, all_down: refuse}]";
    let bench = Bench::new(&config::parse(text).unwrap(), Recorder::default(), &[]);
    bench.ways.set(0, Some(Hop::Asked), None);
    bench.check(0, Kind::Ok).await;
    bench.did().await;
    for _ in 0..2 {
        bench.check(0, Kind::ResponseTimeout).await;
    }
    assert_eq!(bench.did().await, []);
    bench.ways.set(0, Some(Hop::Known), None);
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(bench.triggered(0).await);
    bench.check(0, Kind::ResponseTimeout).await;
    assert_eq!(bench.did().await, [Refuse, Down(0), Heard(Reason::AllDown)]);
    bench.end().await;
}
