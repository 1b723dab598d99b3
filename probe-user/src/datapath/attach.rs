//! Attaching the programs to an interface, or replacing those of an earlier agent.
//!
//! Preference and fallback: TCX (Linux 6.6), else clsact; XDP in the driver, else
//! generic, else TC at the uplink's ingress. Each step down is a sentence in
//! [`Attached::degraded`]. At ingress we go first, so that others see the endpoint's
//! address, as they would without us; at egress last, for the same reason.

use std::{fs, mem};

use aya::{
    Ebpf,
    programs::{
        Link as _, LinkOrder, Program, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaXdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        tc::{
            NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        },
        xdp::XdpLink,
    },
};
use probe_ebpf::names;

use super::{
    Attached, Error, ForeignXdp, Role, TcMode, TcWay, XdpMode, XdpWay, detach, first_line,
    io_error, netlink,
    pins::{Hook, Pins},
    tables::Tables,
};

/// clsact filter priorities, best first: ours come first at ingress and last at egress.
/// All filters of one priority are of one kind and protocol, so somebody's may have to
/// be made way for. What the kernel chooses itself is 0xc000 and below.
const INGRESS_PRIORITIES: [u16; 4] = [1, 2, 3, 4];
const EGRESS_PRIORITIES: [u16; 4] = [0xffff, 0xfffe, 0xfffd, 0xfffc];
/// Our filter's handle, so that several programs may share a priority.
const FILTER_HANDLE: TcHandle = TcHandle::new(0x70, 0x7262);

/// Which interface.
#[derive(Clone, Copy)]
pub struct Interface<'a> {
    /// Its index, by which everything is done.
    pub ifindex: u32,
    /// Its name, for messages and for the calls that want one.
    pub name: &'a str,
}

/// A program of the object by its name.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .expect("the object holds every program of names::PROGRAMS, with its type")
}

/// Attaches what the role needs.
pub fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    tables: &mut Tables,
    interface: Interface<'_>,
    role: Role,
    xdp: Option<(&'static str, XdpMode)>,
    tc: TcMode,
) -> Result<Attached, Error> {
    let link = netlink::find(interface.ifindex)
        .map_err(|e| Error::failed(format!("looking at {}", interface.name), e))?;
    let Some(link) = link else {
        return Err(Error::failed(
            format!("attaching to {}", interface.name),
            std::io::Error::from(std::io::ErrorKind::NotFound),
        ));
    };
    if !link.ethernet {
        return Err(Error::failed(
            format!("attaching to {}", interface.name),
            "it carries no Ethernet frames, and only those are steered",
        ));
    }

    let mut attached = Attached {
        tc: TcWay::Tcx,
        xdp: XdpWay::None,
        degraded: Vec::new(),
        inherited: true,
    };
    // XDP first: it is what may be refused, and then nothing else has been touched.
    match xdp.filter(|_| role == Role::Uplink) {
        Some((name, mode)) => {
            attach_xdp(ebpf, pins, interface, link.xdp, name, mode, &mut attached)?;
        }
        None => unpin(pins, interface, Hook::Xdp),
    }
    let mut hooks = vec![(Hook::Egress, names::PROGRAM_TC_REVERSE)];
    let ingress = match attached.xdp {
        XdpWay::None => Some(names::PROGRAM_TC_FORWARD),
        _ if tables.relays() => Some(names::PROGRAM_TC_RELAY),
        _ => None,
    };
    hooks.extend(ingress.map(|program| (Hook::Ingress, program)));
    if ingress.is_none() {
        unpin(pins, interface, Hook::Ingress);
    }
    for program in [names::PROGRAM_TC_FORWARD, names::PROGRAM_TC_RELAY] {
        if ingress != Some(program) {
            detach::remove_filter(interface.name, TcAttachType::Ingress, program)?;
        }
    }
    for (hook, program) in hooks {
        attach_tc(
            ebpf,
            pins,
            tables,
            interface,
            hook,
            program,
            tc,
            &mut attached,
        )?;
    }
    Ok(attached)
}

/// Drops a pin that is no longer wanted, and with it the link.
fn unpin(pins: &Pins, interface: Interface<'_>, hook: Hook) {
    // Mostly it is not there.
    let _ = fs::remove_file(pins.link(interface.ifindex, hook));
}

#[allow(clippy::too_many_arguments, reason = "one call site, all of it needed")]
fn attach_tc(
    ebpf: &mut Ebpf,
    pins: &Pins,
    tables: &mut Tables,
    interface: Interface<'_>,
    hook: Hook,
    name: &'static str,
    mode: TcMode,
    attached: &mut Attached,
) -> Result<(), Error> {
    let direction = match hook {
        Hook::Egress => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    };
    let what = format!("attaching {name} to {} {}", interface.name, hook.name());
    let classifier = program::<SchedClassifier>(ebpf, name);
    if mode != TcMode::Clsact && attached.tc == TcWay::Tcx {
        match attach_tcx(classifier, pins, interface, hook, direction) {
            Ok(inherited) => {
                attached.inherited &= inherited;
                // An earlier agent may have used clsact here. Now both are on; take its away.
                return detach::remove_filter(interface.name, direction, name);
            }
            Err(error) if mode == TcMode::Tcx => return Err(Error::failed(what, error)),
            Err(error) => {
                attached.degraded.push(format!(
                    "no TCX ({}; Linux 6.6 and later have it): clsact is used",
                    first_line(error.as_ref())
                ));
            }
        }
    }
    attached.tc = TcWay::Clsact;
    let (priority, inherited) = attach_clsact(classifier, tables, interface, direction)
        .map_err(|e| Error::failed(what, e))?;
    attached.inherited &= inherited;
    if priority != priorities(direction)[0] {
        attached.degraded.push(format!(
            "at {} of {} somebody's filter of another kind or protocol has the priority that \
             probe's would take, which is at {priority} now: what that filter takes is not steered",
            hook.name(),
            interface.name
        ));
    }
    unpin(pins, interface, hook);
    Ok(())
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Answers whether an earlier agent's link was taken over.
fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    interface: Interface<'_>,
    hook: Hook,
    direction: TcAttachType,
) -> Result<bool, AnyError> {
    let pin = pins.link(interface.ifindex, hook);
    if let Ok(old) = PinnedLink::from_pin(&pin) {
        let replaced = SchedClassifierLink::try_from(FdLink::from(old))
            .map_err(AnyError::from)
            .and_then(|link| Ok(program.attach_to_link(link)?));
        if let Ok(id) = replaced {
            // The pin holds the link from here on.
            drop(program.take_link(id)?);
            return Ok(true);
        }
        // The interface it was on is gone, and its index was given to another.
        fs::remove_file(&pin)?;
    }
    let order = match hook {
        Hook::Egress => LinkOrder::last(),
        _ => LinkOrder::first(),
    };
    let id =
        program.attach_with_options(interface.name, direction, TcAttachOptions::TcxOrder(order))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(&pin)?;
    Ok(false)
}

/// Where to try, best first.
fn priorities(direction: TcAttachType) -> [u16; 4] {
    match direction {
        TcAttachType::Egress => EGRESS_PRIORITIES,
        _ => INGRESS_PRIORITIES,
    }
}

/// Answers at which priority, and whether an earlier agent's filter was taken over.
fn attach_clsact(
    program: &mut SchedClassifier,
    tables: &mut Tables,
    interface: Interface<'_>,
    direction: TcAttachType,
) -> Result<(u16, bool), AnyError> {
    if !netlink::has_clsact(interface.ifindex)? {
        match qdisc_add_clsact(interface.name) {
            Ok(()) => tables.remember_qdisc(interface.ifindex)?,
            Err(TcError::AlreadyAttached) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let ours = |priority| {
        SchedClassifierLink::attached(interface.name, direction, priority, FILTER_HANDLE, None)
    };
    let mut refusal = None;
    let mut rest = priorities(direction).into_iter();
    for priority in rest.by_ref() {
        let options = TcAttachOptions::Netlink(NlOptions {
            priority,
            handle: FILTER_HANDLE,
            classid: None,
        });
        let (id, inherited) = match program.attach_with_options(interface.name, direction, options)
        {
            Ok(id) => (id, false),
            Err(error) => match io_error(&error).and_then(std::io::Error::raw_os_error) {
                // Our priority and handle are taken, so by an earlier agent: replace in place.
                Some(libc::EEXIST) => (program.attach_to_link(ours(priority)?)?, true),
                // Somebody's filter there is of another kind or protocol.
                Some(libc::EINVAL) => {
                    refusal = Some(error);
                    continue;
                }
                _ => return Err(error.into()),
            },
        };
        // A filter has no pin: it stays until somebody removes it. Dropping the link would.
        mem::forget(program.take_link(id)?);
        for worse in rest {
            // Where an earlier agent had to go; mostly nothing is there.
            drop(ours(worse)?.detach());
        }
        return Ok((priority, inherited));
    }
    Err(refusal.map_or_else(|| "no priority is left".into(), AnyError::from))
}

/// Attaches XDP, or replaces an earlier agent's program in its link. Where the kernel
/// refuses and the mode is `auto`, says why and leaves the ingress to TC.
fn attach_xdp(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interface: Interface<'_>,
    present: Option<netlink::XdpOnLink>,
    name: &'static str,
    mode: XdpMode,
    attached: &mut Attached,
) -> Result<(), Error> {
    let what = format!("attaching {name} to {}", interface.name);
    let pin = pins.link(interface.ifindex, Hook::Xdp);
    let program = program::<Xdp>(ebpf, name);
    if let Ok(old) = PinnedLink::from_pin(&pin) {
        let acceptable = present.filter(|present| match mode {
            XdpMode::Native => present.mode == "native",
            XdpMode::Generic => present.mode == "generic",
            XdpMode::Auto | XdpMode::Off => true,
        });
        let replaced = acceptable.and_then(|present| {
            let link = XdpLink::try_from(FdLink::from(old)).ok()?;
            let id = program.attach_to_link(link).ok()?;
            let way = match present.mode {
                "generic" => XdpWay::Generic,
                _ => XdpWay::Native,
            };
            Some((way, id))
        });
        if let Some((way, id)) = replaced {
            // The pin holds the link from here on.
            drop(program.take_link(id).map_err(|e| Error::failed(what, e))?);
            attached.xdp = way;
            return Ok(());
        }
        // On an interface that is gone, or in a mode that is no longer wanted.
        fs::remove_file(&pin).map_err(|e| Error::failed(what.clone(), e))?;
    }
    let ways: &[XdpWay] = match mode {
        XdpMode::Native => &[XdpWay::Native],
        XdpMode::Generic => &[XdpWay::Generic],
        XdpMode::Auto | XdpMode::Off => &[XdpWay::Native, XdpWay::Generic],
    };
    let mut refusals = Vec::new();
    for way in ways {
        let flag = match way {
            XdpWay::Generic => AyaXdpMode::Skb,
            _ => AyaXdpMode::Driver,
        };
        let done = program
            .attach_to_if_index(interface.ifindex, flag)
            .map_err(AnyError::from)
            .and_then(|id| {
                let link: FdLink = program.take_link(id)?.try_into()?;
                Ok(link.pin(&pin)?)
            });
        match done {
            Ok(_pinned) => {
                attached.xdp = *way;
                attached.inherited = false;
                if let Some(error) = refusals.pop() {
                    attached.degraded.push(format!(
                        "no native XDP on {} ({error}): generic XDP is used, which costs more a \
                         packet",
                        interface.name
                    ));
                }
                return Ok(());
            }
            Err(error) => {
                // EBUSY: somebody's program is there. EEXIST: it is there in the other mode,
                // and a native and a generic one exclude each other (`dev_xdp_attach` of
                // Linux). Either way the other mode need not be tried.
                let errno = io_error(error.as_ref()).and_then(std::io::Error::raw_os_error);
                if matches!(errno, Some(libc::EBUSY | libc::EEXIST))
                    && let Ok(Some(link)) = netlink::find(interface.ifindex)
                    && let Some(xdp) = link.xdp
                {
                    let program = foreign(xdp);
                    if mode != XdpMode::Auto {
                        return Err(Error::ForeignXdp {
                            interface: interface.name.to_owned(),
                            program,
                        });
                    }
                    attached.degraded.push(format!(
                        "{} carries {program}, which is not probe's: what comes in there is \
                         steered by TC behind it, which costs more a packet; once it is gone, a \
                         restart of the agent takes XDP",
                        interface.name
                    ));
                    return Ok(());
                }
                refusals.push(first_line(error.as_ref()));
            }
        }
    }
    let refusals = refusals.join("; ");
    if mode != XdpMode::Auto {
        return Err(Error::failed(what, refusals));
    }
    attached.degraded.push(format!(
        "neither native nor generic XDP on {} ({refusals}): what comes in there is steered by TC, \
         which costs more a packet",
        interface.name
    ));
    Ok(())
}

/// Whose program is in the way.
fn foreign(xdp: netlink::XdpOnLink) -> ForeignXdp {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == xdp.id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "its name is told with CAP_SYS_ADMIN only".to_owned());
    ForeignXdp {
        id: xdp.id,
        name,
        mode: xdp.mode,
    }
}
