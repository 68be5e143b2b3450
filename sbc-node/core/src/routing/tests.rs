//! Routing as a whole: identification, selection, admission, reload.

use std::time::Duration;

use regex::Regex;

use super::*;
use crate::net::Transport;

const INSIDE: InterfaceId = InterfaceId(0);
const OUTSIDE: InterfaceId = InterfaceId(1);

fn peer(host: &str) -> Peer {
    Peer { host: host.into(), port: Some(5060), transport: Some(Transport::Udp) }
}

fn trunk(name: &str, interface: InterfaceId, peers: &[&str]) -> TrunkConfig {
    TrunkConfig {
        realm: if interface == INSIDE { "core" } else { "public" }.into(),
        peers: peers.iter().map(|p| peer(p)).collect(),
        ..TrunkConfig::new(name, interface)
    }
}

fn group(name: &str, members: &[(&str, u32)], strategy: Strategy) -> GroupConfig {
    GroupConfig {
        name: name.into(),
        strategy,
        members: members.iter().map(|(t, w)| Member { trunk: (*t).into(), weight: *w }).collect(),
        limits: CallLimits::default(),
    }
}

fn route(name: &str, matches: RouteMatch, target: &str) -> RouteConfig {
    RouteConfig {
        name: name.into(),
        matches,
        target: RouteTarget::To(target.into()),
        strip: 0,
        prefix: "".into(),
    }
}

fn from(trunk: &str) -> RouteMatch {
    RouteMatch { trunks: vec![trunk.into()], ..RouteMatch::default() }
}

/// One PBX inside, two carriers outside as a group.
fn config() -> RoutingConfig {
    RoutingConfig {
        trunks: vec![
            trunk("pbx", INSIDE, &["10.0.0.1"]),
            trunk("one", OUTSIDE, &["192.0.2.1", "192.0.2.2"]),
            trunk("two", OUTSIDE, &["198.51.100.1"]),
        ],
        groups: vec![group("carriers", &[("one", 1), ("two", 1)], Strategy::Ordered)],
        routes: vec![
            route("out", from("pbx"), "carriers"),
            route(
                "in",
                RouteMatch { realms: vec!["public".into()], ..RouteMatch::default() },
                "pbx",
            ),
        ],
        ..RoutingConfig::default()
    }
}

fn build(config: RoutingConfig) -> Routing {
    Routing::new(Arc::new(Table::build(config, None, Instant::now()).unwrap()), 1)
}

fn get(routing: &Routing, name: &str) -> Arc<Trunk> {
    routing.table().trunk_by_name(name).unwrap().clone()
}

fn query(ruri_user: &str) -> RouteQuery<'_> {
    RouteQuery {
        ruri_user,
        ruri_host: "sbc.example",
        from_user: "100",
        to_user: ruri_user,
        ..RouteQuery::default()
    }
}

fn hosts(plan: &Plan) -> Vec<String> {
    plan.targets.iter().map(|h| h.peer().host.to_string()).collect()
}

fn flow(interface: InterfaceId, remote: &str) -> Flow {
    Flow {
        interface,
        transport: Transport::Udp,
        local: "10.0.0.254:5060".parse().unwrap(),
        remote: remote.parse().unwrap(),
        conn: None,
    }
}

#[test]
fn peers_are_sources_and_strangers_get_the_policy() {
    let routing = build(config());
    let name = |f| routing.identify(&f).map(|t| t.name().to_string());
    assert_eq!(name(flow(INSIDE, "10.0.0.1:33000")).as_deref(), Some("pbx"));
    assert_eq!(name(flow(OUTSIDE, "192.0.2.2:5060")).as_deref(), Some("one"));
    assert_eq!(name(flow(OUTSIDE, "10.0.0.1:5060")), None);
    let reject = routing.unknown_source();
    assert_eq!((reject.status, reject.silent), (403, false));
    let silent = build(RoutingConfig { unknown_source: UnknownSource::Silent, ..config() });
    assert!(silent.unknown_source().silent);
}

#[test]
fn names_are_sources_once_resolved() {
    let mut c = config();
    c.trunks.push(trunk("named", OUTSIDE, &["sip.example.net"]));
    let mut routing = build(c);
    let stranger = flow(OUTSIDE, "203.0.113.5:5060");
    assert!(routing.identify(&stranger).is_none());
    let named = get(&routing, "named");
    routing.learn(&named, 0, &["203.0.113.5".parse().unwrap()]);
    assert_eq!(&**routing.identify(&stranger).unwrap().name(), "named");
    let one = get(&routing, "one");
    routing.learn(&one, 0, &["203.0.113.6".parse().unwrap()]);
    assert!(routing.identify(&flow(OUTSIDE, "203.0.113.6:5060")).is_none());
    let table = Table::build(config(), Some(routing.table()), Instant::now()).unwrap();
    routing.reload(Arc::new(table));
    assert!(routing.identify(&stranger).is_none());
}

#[test]
fn the_first_route_that_holds_decides_and_none_is_404() {
    let mut routing = build(config());
    let (now, pbx, one) = (Instant::now(), get(&routing, "pbx"), get(&routing, "one"));
    let plan = routing.route(now, &pbx, &query("123")).unwrap();
    assert_eq!(&*plan.route, "out");
    assert_eq!(hosts(&plan), ["192.0.2.1", "192.0.2.2", "198.51.100.1"]);
    assert_eq!(hosts(&routing.route(now, &one, &query("123")).unwrap()), ["10.0.0.1"]);
    let mut c = config();
    c.routes.pop();
    let mut routing = build(c);
    let reject = routing.route(now, &one, &query("123")).unwrap_err();
    assert_eq!((reject.status, reject.cause), (404, RejectCause::NoRoute));
}

#[test]
fn conditions_on_users_and_domains() {
    let mut c = config();
    c.routes = vec![
        route(
            "service",
            RouteMatch {
                ruri: Some(UserMatch::Regex(Regex::new("^1[0-9]{2}$").unwrap())),
                domains: vec!["SBC.example".into()],
                ..RouteMatch::default()
            },
            "pbx",
        ),
        route(
            "prefix",
            RouteMatch {
                ruri: Some(UserMatch::Prefix(vec!["+1".into(), "001".into()])),
                from: Some(UserMatch::Prefix(vec!["10".into()])),
                ..RouteMatch::default()
            },
            "carriers",
        ),
    ];
    let mut routing = build(c);
    let (now, pbx) = (Instant::now(), get(&routing, "pbx"));
    let mut by = |q: RouteQuery<'_>| routing.route(now, &pbx, &q).map(|p| p.route.to_string());
    assert_eq!(by(query("112")).as_deref(), Ok("service"));
    assert_eq!(by(RouteQuery { ruri_host: "other", ..query("112") }).unwrap_err().status, 404);
    assert_eq!(by(query("0012125551234")).as_deref(), Ok("prefix"));
    assert_eq!(by(RouteQuery { from_user: "2", ..query("+1212") }).unwrap_err().status, 404);
}

#[test]
fn a_prefix_table_chooses_strips_and_blocks() {
    let csv = "prefix,target\n+49,carriers\n+4930,one,1,00\n+4990,reject\n";
    let mut c = config();
    c.routes = vec![
        RouteConfig {
            target: RouteTarget::Table(Arc::new(PrefixTable::parse(csv, 9).unwrap())),
            ..route("lcr", from("pbx"), "")
        },
        route("rest", from("pbx"), "two"),
    ];
    let mut routing = build(c);
    let (now, pbx) = (Instant::now(), get(&routing, "pbx"));
    let plan = routing.route(now, &pbx, &query("+493012")).unwrap();
    assert_eq!(hosts(&plan), ["192.0.2.1", "192.0.2.2"]);
    let numbers = &plan.targets[0].numbers;
    assert_eq!((numbers.ruri.as_str(), numbers.to.as_str()), ("00493012", "00493012"));
    assert_eq!(routing.route(now, &pbx, &query("+498912")).unwrap().targets.len(), 3);
    let blocked = routing.route(now, &pbx, &query("+499012")).unwrap_err();
    assert_eq!((blocked.status, blocked.cause), (403, RejectCause::Blocked));
    assert_eq!(&*routing.route(now, &pbx, &query("777")).unwrap().route, "rest");
}

#[test]
fn numbers_are_translated_in_then_matched_then_translated_out() {
    let mut c = config();
    let rule = |pattern, replace: &str| Translation {
        fields: vec![],
        pattern: Regex::new(pattern).unwrap(),
        replace: replace.into(),
    };
    c.trunks[0].translate_in = vec![rule("^0([1-9].*)$", "+49$1")];
    c.trunks[1].translate_out = vec![rule(r"^\+(.*)$", "00$1")];
    c.routes[0].matches.ruri = Some(UserMatch::Prefix(vec!["+49".into()]));
    let mut routing = build(c);
    let (now, pbx) = (Instant::now(), get(&routing, "pbx"));
    let q = RouteQuery { pai_user: Some("030100"), ..query("030123") };
    let plan = routing.route(now, &pbx, &q).unwrap();
    let one = &plan.targets[0].numbers;
    assert_eq!((one.ruri.as_str(), one.pai.as_deref()), ("004930123", Some("004930100")));
    assert_eq!(plan.targets[2].numbers.ruri, "+4930123");
    assert_eq!(plan.targets[2].numbers.from, "100");
}

#[test]
fn what_is_down_disabled_held_or_full_is_skipped() {
    let mut c = config();
    c.trunks[2].limits.max_calls = Some(1);
    let mut routing = build(c);
    let (now, pbx) = (Instant::now(), get(&routing, "pbx"));
    let (one, two) = (get(&routing, "one"), get(&routing, "two"));
    let policy = ProbePolicy { down_after: 1, ..ProbePolicy::default() };
    one.peer_health(0).unwrap().probed(&policy, false);
    let plan = routing.route(now, &pbx, &query("1")).unwrap();
    assert_eq!(hosts(&plan), ["192.0.2.2", "198.51.100.1"]);
    let permit = routing.admit_hop(now, &plan, &plan.targets[1]).unwrap();
    assert_eq!(two.calls(), 1);
    let full = routing.admit_hop(now, &plan, &plan.targets[1]).unwrap_err();
    assert_eq!(full.cause, RejectCause::MaxCalls);
    assert_eq!(hosts(&routing.route(now, &pbx, &query("1")).unwrap()), ["192.0.2.2"]);
    one.peer_health(1).unwrap().hold(now + Duration::from_secs(3));
    let none = routing.route(now, &pbx, &query("1")).unwrap_err();
    assert_eq!((none.status, none.cause), (503, RejectCause::NoTrunk));
    drop(permit);
    assert_eq!(hosts(&routing.route(now, &pbx, &query("1")).unwrap()), ["198.51.100.1"]);
    two.set_enabled(false);
    let later = now + Duration::from_secs(3);
    assert_eq!(hosts(&routing.route(later, &pbx, &query("1")).unwrap()), ["192.0.2.2"]);
}

#[test]
fn emergency_calls_pass_every_limit_and_are_counted() {
    let mut c = config();
    c.trunks[0].limits.max_calls = Some(0);
    c.trunks[1].limits.max_calls = Some(0);
    c.groups[0].limits.max_cps = Some(0.0);
    c.admission.node.max_calls = Some(0);
    c.admission.emergency = vec!["112".into()];
    let mut routing = build(c);
    let (now, pbx) = (Instant::now(), get(&routing, "pbx"));
    assert_eq!(routing.route(now, &pbx, &query("113")).unwrap_err().status, 503);
    assert_eq!(routing.admit(now, &pbx, false).unwrap_err().cause, RejectCause::MaxCalls);
    let plan = routing.route(now, &pbx, &query("112")).unwrap();
    assert!(plan.emergency);
    assert_eq!(plan.targets.len(), 3);
    let a = routing.admit(now, &pbx, plan.emergency).unwrap();
    let b = routing.admit_hop(now, &plan, &plan.targets[0]).unwrap();
    assert_eq!((routing.table().calls(), pbx.calls(), plan.targets[0].trunk.calls()), (1, 1, 1));
    drop((a, b));
    assert_eq!((routing.table().calls(), pbx.calls()), (0, 0));
}

#[test]
fn a_reload_keeps_counters_health_and_ids_by_name() {
    let mut routing = build(config());
    let (now, pbx, one) = (Instant::now(), get(&routing, "pbx"), get(&routing, "one"));
    let policy = ProbePolicy { down_after: 1, ..ProbePolicy::default() };
    one.peer_health(1).unwrap().probed(&policy, false);
    let permit = routing.admit(now, &pbx, false).unwrap();
    get(&routing, "two").set_enabled(false);

    let mut next = config();
    next.trunks.remove(0);
    next.trunks.insert(0, trunk("new", INSIDE, &["10.0.0.9"]));
    next.trunks.push(trunk("pbx", INSIDE, &["10.0.0.1"]));
    next.trunks[1].peers.remove(0);
    next.routes.push(route("new", RouteMatch::default(), "new"));
    let table = Table::build(next, Some(routing.table()), now).unwrap();
    routing.reload(Arc::new(table));

    assert_eq!(get(&routing, "pbx").id, pbx.id);
    assert_ne!(get(&routing, "new").id, pbx.id);
    assert_eq!(get(&routing, "pbx").calls(), 1);
    let one = get(&routing, "one");
    assert_eq!(one.peer_health(0).unwrap().state(), PeerHealth::Down);
    assert!(!get(&routing, "two").is_enabled());
    drop(permit);
    assert_eq!((get(&routing, "pbx").calls(), routing.table().calls()), (0, 0));
}

#[test]
fn everything_wrong_is_told_together_and_changes_nothing() {
    let running = build(config());
    let mut c = config();
    c.trunks[0].enabled = false;
    c.trunks.push(trunk("one", OUTSIDE, &[]));
    c.trunks.push(trunk("thief", OUTSIDE, &["192.0.2.1"]));
    c.trunks.push(trunk("mute", INSIDE, &[]));
    c.groups.push(group("lost", &[("nobody", 0)], Strategy::Weighted));
    c.groups.push(group("two", &[], Strategy::Ordered));
    c.routes.push(route("bad", from("ghost"), "nowhere"));
    c.routes.push(route("mute", RouteMatch::default(), "mute"));
    let errors = Table::build(c, Some(running.table()), Instant::now()).unwrap_err();
    let told: Vec<_> = errors.iter().map(|e| (e.item, e.to_string())).collect();
    let want = [
        (Item::Trunk(3), "the name \"one\" is taken; trunks and groups share one space of names"),
        (Item::Trunk(4), "source 192.0.2.1 belongs to trunk \"one\" on the same interface already"),
        (Item::Group(1), "all weights are 0"),
        (Item::Group(1), "there is no trunk \"nobody\""),
        (Item::Group(2), "the name \"two\" is taken; trunks and groups share one space of names"),
        (Item::Group(2), "the group has no trunks"),
        (Item::Route(2), "there is no trunk \"ghost\""),
        (Item::Route(2), "there is no group or trunk \"nowhere\""),
        (Item::Route(3), "trunk \"mute\" has no peers, so that nothing can be sent to it"),
        (Item::Group(1), "no route leads to group \"lost\""),
        (Item::Group(2), "no route leads to group \"two\""),
    ];
    assert_eq!(told, want.map(|(item, text)| (item, text.to_owned())));
    assert!(get(&running, "pbx").is_enabled());
}
