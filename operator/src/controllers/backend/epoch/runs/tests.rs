use super::*;

/// Three servers, as the operator sees them at a second.
struct World {
    seen: Vec<Seen>,
    members: BTreeSet<String>,
    emptied: BTreeSet<String>,
    above: BTreeMap<String, u64>,
    floor: Option<u64>,
    second: i64,
}

impl World {
    fn new() -> Self {
        let names = ["a", "b", "c"];
        World {
            seen: names.iter().map(|name| mk_seen(name, &format!("{name}1"))).collect(),
            members: names.iter().map(|name| (*name).to_owned()).collect(),
            emptied: BTreeSet::new(),
            above: BTreeMap::new(),
            floor: None,
            second: 100,
        }
    }

    fn next(&self, epoch: Option<&EpochStatus>) -> EpochStatus {
        let now = Timestamp::from_second(self.second).unwrap();
        let facts = Facts {
            seen: &self.seen,
            members: &self.members,
            emptied: &self.emptied,
            above: &self.above,
            floor: self.floor,
            longest_ttl: Duration::from_secs(15),
            now,
            is_over: &|_, at| now >= at,
        };
        next(epoch, &facts)
    }

    /// As [`World::next`], with the markers that its result asks for.
    fn step(&mut self, epoch: Option<&EpochStatus>) -> EpochStatus {
        let next = self.next(epoch);
        for run in next.runs.iter().filter(|run| run.open) {
            if let Some(seen) = self.seen.iter_mut().find(|seen| seen.server == run.server) {
                seen.marker = Marker::Found(next.number);
            }
        }
        next
    }

    fn see(&mut self, server: &str) -> &mut Seen {
        self.seen.iter_mut().find(|seen| seen.server == server).unwrap()
    }

    fn opened() -> (Self, EpochStatus) {
        let mut world = World::new();
        let first = world.step(None);
        assert_eq!((first.number, first.open), (1, false));
        let open = world.step(Some(&first));
        assert_eq!((open.number, opens(&open)), (1, "abc".to_owned()));
        assert_eq!(world.next(Some(&open)), open);
        (world, open)
    }

    /// One server is gone, and others may be in its place.
    fn remove(&mut self, server: &str) {
        self.members.remove(server);
        self.seen.retain(|seen| seen.server != server);
    }

    fn add(&mut self, seen: Seen) {
        self.members.insert(seen.server.clone());
        self.seen.push(seen);
    }
}

fn mk_seen(server: &str, replid: &str) -> Seen {
    let tags = vec![format!("tag-{server}")];
    let (server, replid) = (server.to_owned(), replid.to_owned());
    Seen { server, replid, took_over: None, marker: Marker::Missing, tags }
}

/// The servers that are open.
fn opens(epoch: &EpochStatus) -> String {
    epoch.runs.iter().filter(|run| run.open).map(|run| run.server.as_str()).collect()
}

#[test]
fn a_failover_raises_the_number_and_closes_that_server_only() {
    let (mut world, open) = World::opened();
    world.remove("b");
    world.add(Seen { took_over: Some("b1".into()), ..mk_seen("d", "d1") });
    world.see("d").marker = Marker::Found(1);
    let raised = world.step(Some(&open));
    assert_eq!((raised.number, opens(&raised)), (2, "ac".to_owned()));
    assert!(raised.open && raised.runs.len() == 3);
    world.second = 115;
    assert_eq!(opens(&world.step(Some(&raised))), "ac");
    world.second = 116;
    let opened = world.step(Some(&raised));
    assert_eq!((opened.number, opens(&opened)), (2, "acd".to_owned()));
    assert_eq!(world.next(Some(&opened)), opened);
}

#[test]
fn a_restart_a_flush_a_later_marker_and_a_doubt_do_the_same() {
    type Loss = fn(&mut World);
    let losses: [(&str, Loss, u64); 4] = [
        ("restart", |world| world.see("b").replid = "b2".into(), 2),
        ("flush", |world| world.see("b").marker = Marker::Missing, 2),
        ("a later marker", |world| world.see("b").marker = Marker::Found(7), 8),
        ("a doubt", |world| world.above = [("b".to_owned(), 4)].into(), 5),
    ];
    for (what, lose, number) in losses {
        let (mut world, open) = World::opened();
        lose(&mut world);
        let raised = world.next(Some(&open));
        assert_eq!((raised.number, opens(&raised)), (number, "ac".to_owned()), "{what}");
    }
}

#[test]
fn a_server_that_does_not_answer_stays_what_it_was() {
    let (mut world, open) = World::opened();
    world.seen.retain(|seen| seen.server != "b");
    assert_eq!(world.next(Some(&open)), open);
}

#[test]
fn one_more_server_opens_without_a_new_number() {
    let (mut world, open) = World::opened();
    world.add(mk_seen("d", "d1"));
    let more = world.step(Some(&open));
    assert_eq!((more.number, opens(&more)), (1, "abc".to_owned()));
    let more = world.step(Some(&more));
    assert_eq!((more.number, opens(&more)), (1, "abcd".to_owned()));
}

#[test]
fn a_server_that_left_empty_is_forgotten_and_one_that_vanished_closes_all() {
    let (mut world, open) = World::opened();
    world.remove("b");
    let mut emptied = World { emptied: ["b".to_owned()].into(), ..World::new() };
    emptied.seen.clone_from(&world.seen);
    emptied.members.clone_from(&world.members);
    let left = emptied.next(Some(&open));
    assert_eq!((left.number, opens(&left)), (1, "ac".to_owned()));
    let vanished = world.next(Some(&open));
    assert_eq!((vanished.number, opens(&vanished)), (2, String::new()));
    assert!(!vanished.open);
}

#[test]
fn markers_move_to_other_places_without_a_new_epoch() {
    let (mut world, open) = World::opened();
    world.see("b").tags = vec!["other".into()];
    let moved = world.next(Some(&open));
    assert_eq!((moved.number, opens(&moved)), (1, "abc".to_owned()));
    assert_eq!(moved.runs[1].tags, ["other"]);
}

#[test]
fn what_is_created_again_starts_above_and_waits() {
    let mut world = World { floor: Some(7), ..World::new() };
    let again = world.step(None);
    assert_eq!((again.number, again.open), (8, false));
    assert!(!world.step(Some(&again)).open);
    world.second = 116;
    assert_eq!(opens(&world.step(Some(&again))), "abc");
    // A marker that is there although nothing is known of it.
    let mut world = World::new();
    world.see("c").marker = Marker::Found(3);
    let again = world.step(None);
    assert_eq!((again.number, opens(&world.step(Some(&again)))), (4, String::new()));
}
