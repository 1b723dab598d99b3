//! A property: whatever happens to one client port, its entries stay paired.

use super::*;
use crate::abi::FLOW_ENDED;
use proptest::prelude::*;

/// What may happen to one client port, in any order.
#[derive(Clone, Debug)]
enum Step {
    Client(u8),
    Direct(u8),
    Master(u8),
    Backup(u8),
    Select(u32, bool),
    Mark(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<u8>().prop_map(Step::Client),
        any::<u8>().prop_map(Step::Direct),
        any::<u8>().prop_map(Step::Master),
        any::<u8>().prop_map(Step::Backup),
        (prop_oneof![Just(MASTER), Just(BACKUP)], any::<bool>())
            .prop_map(|(id, fast)| Step::Select(id, fast)),
        (
            prop_oneof![Just(MASTER), Just(BACKUP)],
            prop_oneof![
                Just(ENDPOINT_UP),
                Just(ENDPOINT_DOWN),
                Just(ENDPOINT_DRAINED)
            ]
        )
            .prop_map(|(id, state)| Step::Mark(id, state)),
    ]
}

proptest! {
    /// Whatever happens: the entries come and go in pairs, the count of open flows
    /// is theirs, no RST is answered, and what comes back to the client comes from
    /// the VIP.
    #[test]
    fn flows_stay_paired(steps in prop::collection::vec(step(), 0..60)) {
        let mut host = Host::new();
        for step in steps {
            let verdict = match step {
                Step::Client(flags) => {
                    let verdict = forward(&host, &from_client(flags));
                    if flags & RST != 0 {
                        prop_assert!(!matches!(verdict, Verdict::Reset(_)));
                    }
                    verdict
                }
                Step::Direct(flags) => {
                    let verdict = forward(&host, &direct(flags));
                    prop_assert!(!matches!(verdict, Verdict::Reset(_)));
                    verdict
                }
                Step::Master(flags) => reverse(&host, &from_master(flags)),
                Step::Backup(flags) => {
                    let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), flags);
                    reverse(&host, &answer)
                }
                Step::Select(id, fast) => {
                    // As an agent finds out by a sweep.
                    let elsewhere = host.forward.borrow().iter().any(|(key, flow)| {
                        key.peer_be == VIP && flow.endpoint != id
                    });
                    let fast = fast && !elsewhere;
                    host.decide(if fast { alone(id) } else { steer_to(id) });
                    continue;
                }
                Step::Mark(id, state) => {
                    host.mark(id, state);
                    continue;
                }
            };
            if let Verdict::Translate(translation, _) = verdict {
                prop_assert!([VIP, MASTER_ADDR, BACKUP_ADDR].contains(&translation.addr_be));
            }
            let (forth, back) = host.flows();
            prop_assert_eq!(forth, back);
            let open = host.forward.borrow().iter()
                .filter(|(key, _)| key.peer_be != MASTER_ADDR)
                .filter(|(_, flow)| flow.state.get() & FLOW_ENDED == 0)
                .count();
            prop_assert_eq!(host.open.get(), open as i64);
        }
    }
}
