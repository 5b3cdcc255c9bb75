//! Hash slots of a Redis Cluster: which one a name is in, and in which of a server's slots its
//! markers are kept. Pure.
//!
//! A script may read a name of any slot that is on its own server, so a server's marker must be in
//! one of *its* slots. It is kept in two, far apart: one may be moved to another server without
//! anything being in doubt, and a flush takes both.

/// How many there are.
pub const SLOTS: u16 = 16_384;
/// How many places the markers of a server have.
const PLACES: usize = 2;

/// The slot of a name, by its hash tag if it has one.
pub fn slot_of(name: &str) -> u16 {
    let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag.map_or(name, |(tag, _)| if tag.is_empty() { name } else { tag });
    crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes()) % SLOTS
}

/// A hash tag of a slot: the first decimal number that is in it.
pub fn tag_of(slot: u16) -> String {
    (0u32..).map(|number| number.to_string()).find(|tag| slot_of(tag) == slot).unwrap_or_default()
}

/// The slots of a server: ranges with both ends, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots(Vec<(u16, u16)>);

impl Slots {
    /// Adds a range with both its ends.
    pub fn add(&mut self, from: u16, to: u16) {
        self.0.push((from, to));
        self.0.sort_unstable();
    }

    /// The ranges, with both ends.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether a slot is one of them.
    pub fn contains(&self, slot: u16) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&slot))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.iter().map(|(from, to)| usize::from(to - from) + 1).sum()
    }

    /// The hash tags that a server's markers are to have, in its own slots: those they have, as far
    /// as their slots are still there, and others in place of those that are not. Tools that move
    /// slots begin at the lowest: the highest one is the last to go, and the one in the middle is far
    /// from it.
    pub fn places(&self, kept: &[String]) -> Vec<String> {
        let mut places: Vec<String> =
            kept.iter().filter(|tag| self.contains(slot_of(tag))).cloned().collect();
        let candidates = [self.nth_back(0), self.nth_back(self.count() / 2), self.nth_back(1)];
        for slot in candidates.into_iter().flatten() {
            let is_taken = places.iter().any(|tag| slot_of(tag) == slot);
            if places.len() < PLACES && !is_taken {
                places.push(tag_of(slot));
            }
        }
        places
    }

    /// The slot that is so many below the highest.
    fn nth_back(&self, mut n: usize) -> Option<u16> {
        for (from, to) in self.0.iter().rev() {
            let here = usize::from(to - from) + 1;
            if n < here {
                return Some(to - n as u16);
            }
            n -= here;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of("123456789"), 12_739);
        assert_eq!(slot_of("a"), 15_495);
        assert_eq!(slot_of("hf:shop:{a}:l"), 15_495);
        assert_eq!(slot_of("x{}a"), crc16::State::<crc16::XMODEM>::calculate(b"x{}a") % SLOTS);
    }

    #[test]
    fn every_slot_has_a_tag() {
        for slot in (0..SLOTS).step_by(997).chain([SLOTS - 1]) {
            assert_eq!(slot_of(&tag_of(slot)), slot);
        }
    }

    #[test]
    fn places_are_kept_as_long_as_their_slots_are_there() {
        let mut slots = Slots::default();
        slots.add(100, 199);
        slots.add(10, 19);
        let slots_of =
            |places: &[String]| -> Vec<u16> { places.iter().map(|p| slot_of(p)).collect() };
        let places = slots.places(&[]);
        assert_eq!(slots_of(&places), [199, 144]);
        assert_eq!(slots.places(&places), places);

        let mut fewer = Slots::default();
        fewer.add(10, 19);
        fewer.add(100, 150);
        assert_eq!(slots_of(&fewer.places(&places)), [144, 150]);

        let mut one = Slots::default();
        one.add(7, 7);
        assert_eq!(slots_of(&one.places(&places)), [7]);
        assert!(Slots::default().places(&places).is_empty());
    }
}
