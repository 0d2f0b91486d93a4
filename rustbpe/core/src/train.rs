//! Learning merges from counted pieces (Sennrich, Haddow and Birch 2016).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem::take;

use rustc_hash::FxHashMap;

use crate::text::{Placed, Text};
use crate::{CountTable, Pair};

/// How many merges are made between two calls of the caller's `tick`.
const MERGES_PER_TICK: usize = 64;

/// Learns merges until there are `vocab_size` tokens, bytes included, or no pair is left.
///
/// Merge `i` makes token `256 + i`. The most frequent pair is merged first; on equal counts the
/// smaller one (left id, then right id), so the result does not depend on the order of the pieces.
/// `tick` is told the number of merges now and then; its error ends the training.
pub fn train<E>(
    pieces: CountTable,
    vocab_size: usize,
    tick: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    // A guess: the last merges are about as frequent as the last pieces that would find room.
    let floor = pieces.nth_count(vocab_size);
    train_above(floor, pieces, vocab_size, tick)
}

/// `train`, but pairs rarer than `floor` are looked for only when no others are left.
///
/// The floor changes time and memory, never the merges. A floor of 1 follows every pair.
pub fn train_above<E>(
    floor: u64,
    pieces: CountTable,
    vocab_size: usize,
    mut tick: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    let text = Text::new(&pieces);
    drop(pieces);
    let mut merger = Merger::new(text, floor);
    let mut merges = Vec::new();
    while 256 + merges.len() < vocab_size {
        if merges.len() % MERGES_PER_TICK == 0 {
            tick(merges.len())?;
        }
        let Some(pair) = merger.best() else { break };
        merger.apply(pair);
        merges.push(pair);
    }
    Ok(merges)
}

/// A pair that may yet be merged.
struct Candidate {
    /// How often it occurs now.
    count: u64,
    /// Where it occurs, in ascending order; and places where it no longer does.
    places: Vec<u32>,
}

/// The text and its frequent pairs, kept right while pairs are merged.
///
/// A pair gains occurrences only in the step that makes the younger of its two tokens; from then
/// on it can only lose. Two things follow. A count in the heap is never too small: a pair that
/// comes out with an old count goes back with the present one, and one entry is enough. And a
/// pair that is rarer than `floor` need not be followed until `floor` is lowered: most pairs are
/// rare, so most of the work is never done.
struct Merger {
    text: Text,
    candidates: FxHashMap<Pair, Candidate>,
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    floor: u64,
    /// What stood before the merged pair, and what behind it.
    before: Neighbours,
    behind: Neighbours,
}

impl Merger {
    fn new(text: Text, floor: u64) -> Self {
        let mut merger = Merger {
            text,
            candidates: FxHashMap::default(),
            heap: BinaryHeap::new(),
            floor,
            before: Neighbours::default(),
            behind: Neighbours::default(),
        };
        merger.survey();
        merger
    }

    /// Finds all pairs that occur `floor` times or more, by reading the text from end to end.
    fn survey(&mut self) {
        for (pair, count, n) in self.text.tally().iter() {
            if count >= self.floor {
                let places = Vec::with_capacity(n as usize);
                self.gain(pair, Candidate { count, places });
            }
        }
        self.text.for_each_pair(|pair, place, _| {
            if let Some(candidate) = self.candidates.get_mut(&pair) {
                candidate.places.push(place);
            }
        });
    }

    /// The most frequent pair, the smaller one on equal counts; None when nothing is left.
    fn best(&mut self) -> Option<Pair> {
        loop {
            while let Some((count, Reverse(pair))) = self.heap.pop() {
                match self.candidates.get(&pair) {
                    Some(candidate) if candidate.count == count => return Some(pair),
                    Some(candidate) => self.heap.push((candidate.count, Reverse(pair))),
                    None => (),
                }
            }
            if self.floor == 1 {
                return None;
            }
            self.floor = (self.floor / 16).max(1);
            self.survey();
        }
    }

    /// Makes a token of `pair` wherever it occurs.
    fn apply(&mut self, pair: Pair) {
        let merged = self.candidates.remove(&pair).expect("a candidate");
        let new = self.text.tokens() as u32;
        let (before, behind) = (&mut self.before, &mut self.behind);
        before.clear(new);
        behind.clear(new);
        self.text.merge(pair, &merged.places, |left, right, times| {
            before.note(left, times);
            behind.note(right, times);
        });
        self.lose_and_gain(pair, new);
    }

    /// Brings the counts up to date where `x a b y` has become `x new y`.
    fn lose_and_gain(&mut self, (a, b): Pair, new: u32) {
        let (before, mut behind) = (take(&mut self.before), take(&mut self.behind));
        before
            .met
            .iter()
            .for_each(|x| self.lose((x.token, a), x.count));
        behind
            .met
            .iter()
            .for_each(|y| self.lose((b, y.token), y.count));
        // In `a b a b` the first pair saw `a` behind it. Then the second was joined too, and that
        // place is now `new new`: (new, a) has come and gone within this step.
        behind.take_off(a, before.count(new));
        before.frequent(self.floor, |x, candidate| self.gain((x, new), candidate));
        behind.frequent(self.floor, |y, candidate| self.gain((new, y), candidate));
        (self.before, self.behind) = (before, behind);
    }

    /// A pair occurs `count` times less.
    fn lose(&mut self, pair: Pair, count: u64) {
        let Some(candidate) = self.candidates.get_mut(&pair) else {
            return;
        };
        candidate.count -= count;
        if candidate.count < self.floor {
            self.candidates.remove(&pair);
        }
    }

    fn gain(&mut self, pair: Pair, candidate: Candidate) {
        self.heap.push((candidate.count, Reverse(pair)));
        self.candidates.insert(pair, candidate);
    }
}

/// The tokens on one side of the places where a pair is merged: which, how often, and where.
///
/// All of a merge's changes are gathered here first. So the map of candidates is asked once for
/// each neighbour, not once for each place: a frequent pair has a hundred neighbours and a million
/// places.
#[derive(Default)]
struct Neighbours {
    met: Vec<Neighbour>,
    /// Index in `met`, by token.
    index: Vec<u32>,
    /// Index in `met` and place of the new pair, in the order of places.
    seen: Vec<(u32, u32)>,
}

struct Neighbour {
    token: u32,
    count: u64,
    places: usize,
}

/// The index of a token that was not met.
const NOT_MET: u32 = u32::MAX;

impl Neighbours {
    /// Forgets all; tokens up to `newest` may be met next.
    fn clear(&mut self, newest: u32) {
        for met in self.met.drain(..) {
            self.index[met.token as usize] = NOT_MET;
        }
        self.seen.clear();
        self.index.resize(newest as usize + 1, NOT_MET);
    }

    #[inline(always)]
    fn note(&mut self, neighbour: Option<Placed>, times: u64) {
        let Some((token, place)) = neighbour else {
            return;
        };
        let mut i = self.index[token as usize];
        if i == NOT_MET {
            i = self.met.len() as u32;
            self.index[token as usize] = i;
            let (count, places) = (0, 0);
            self.met.push(Neighbour {
                token,
                count,
                places,
            });
        }
        let met = &mut self.met[i as usize];
        met.count += times;
        met.places += 1;
        self.seen.push((i, place));
    }

    fn count(&self, token: u32) -> u64 {
        let met = self.met.get(self.index[token as usize] as usize);
        met.map_or(0, |met| met.count)
    }

    fn take_off(&mut self, token: u32, count: u64) {
        if let Some(met) = self.met.get_mut(self.index[token as usize] as usize) {
            met.count -= count;
        }
    }

    /// Calls `f` with each token that was met `floor` times or more.
    fn frequent(&self, floor: u64, mut f: impl FnMut(u32, Candidate)) {
        let followed = |met: &Neighbour| met.count >= floor;
        let room = |met: &Neighbour| if followed(met) { met.places } else { 0 };
        let mut places: Vec<Vec<u32>> = self
            .met
            .iter()
            .map(|met| Vec::with_capacity(room(met)))
            .collect();
        for &(i, place) in &self.seen {
            if followed(&self.met[i as usize]) {
                places[i as usize].push(place);
            }
        }
        for (met, places) in self.met.iter().zip(places) {
            if followed(met) {
                let count = met.count;
                f(met.token, Candidate { count, places });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> CountTable {
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let mut table = CountTable::default();
        for _ in 0..3000 {
            let length = 1 + random(22);
            let piece: Vec<u8> = (0..length).map(|_| b'a' + random(4) as u8).collect();
            table.add(&piece, 1 + random(9));
        }
        table
    }

    #[test]
    fn a_floor_changes_no_merge() {
        let merges = |floor| train_above(floor, pieces(), 3000, |_| Ok::<_, ()>(())).unwrap();
        let slow = merges(1);
        assert!(slow.len() > 1000);
        for floor in [2, 17, 300, u64::MAX] {
            assert_eq!(merges(floor), slow);
        }
    }
}
