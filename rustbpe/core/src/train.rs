//! Learning merges from counted pieces (Sennrich, Haddow and Birch 2016).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{Pair, Piece};

/// How many merges are made between two calls of the caller's `tick`.
const MERGES_PER_TICK: usize = 64;

/// Learns merges until there are `vocab_size` tokens, bytes included, or no pair is left.
///
/// Merge `i` makes token `256 + i`. The most frequent pair is merged first; on equal counts the
/// smaller one (left id, then right id), so the result does not depend on the order of `pieces`.
/// `tick` is called now and then; its error ends the training.
pub fn train<E>(
    pieces: Vec<Piece>,
    vocab_size: usize,
    mut tick: impl FnMut() -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    let mut table = PairTable::new(pieces);
    let mut merges = Vec::new();
    while 256 + merges.len() < vocab_size {
        if merges.len() % MERGES_PER_TICK == 0 {
            tick()?;
        }
        let Some(pair) = table.best() else { break };
        table.apply(pair, 256 + merges.len() as u32);
        merges.push(pair);
    }
    Ok(merges)
}

/// Pair counts over counted pieces, kept right while pairs are merged.
///
/// A pair gains occurrences only in the step that makes the younger of its two tokens. So a
/// count in the heap is never too small, and a pair needs one entry: when it comes out with an
/// old count, it goes back with the present one.
struct PairTable {
    words: Vec<(Vec<u32>, i64)>,
    counts: FxHashMap<Pair, i64>,
    places: FxHashMap<Pair, Vec<u32>>,
    heap: BinaryHeap<(i64, Reverse<Pair>)>,
}

impl PairTable {
    fn new(pieces: Vec<Piece>) -> Self {
        let symbols = |piece: Box<[u8]>| piece.iter().map(|&byte| byte as u32).collect();
        let words = pieces
            .into_iter()
            .map(|(piece, n)| (symbols(piece), n as i64))
            .collect();
        let mut table = PairTable {
            words,
            counts: FxHashMap::default(),
            places: FxHashMap::default(),
            heap: BinaryHeap::new(),
        };
        for (i, (word, times)) in table.words.iter().enumerate() {
            for pair in word.windows(2).map(|w| (w[0], w[1])) {
                *table.counts.entry(pair).or_default() += times;
                note(table.places.entry(pair).or_default(), i as u32);
            }
        }
        table.heap = table
            .counts
            .iter()
            .map(|(&pair, &n)| (n, Reverse(pair)))
            .collect();
        table
    }

    /// The most frequent pair, the smaller one on equal counts; None when nothing is left.
    fn best(&mut self) -> Option<Pair> {
        while let Some((n, Reverse(pair))) = self.heap.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now == n {
                return Some(pair);
            }
            if now > 0 {
                self.heap.push((now, Reverse(pair)));
            }
        }
        None
    }

    /// Merges `pair` into `new` in every word that holds it.
    fn apply(&mut self, pair: Pair, new: u32) {
        let mut fresh = FxHashSet::default();
        for i in self.places.remove(&pair).unwrap_or_default() {
            let (word, times) = &mut self.words[i as usize];
            merge(word, pair, new, |changed, delta| {
                let count = self.counts.entry(changed).or_default();
                *count += delta * *times;
                if *count == 0 {
                    self.counts.remove(&changed);
                }
                if delta > 0 {
                    note(self.places.entry(changed).or_default(), i);
                    fresh.insert(changed);
                }
            });
        }
        let counted = fresh
            .into_iter()
            .filter_map(|p| Some((*self.counts.get(&p)?, Reverse(p))));
        self.heap.extend(counted);
    }
}

/// Adds a word's number to the places of a pair, once for neighbouring calls.
fn note(places: &mut Vec<u32>, word: u32) {
    if places.last() != Some(&word) {
        places.push(word);
    }
}

/// Replaces `pair` by `new` in `word`, left to right and without overlaps.
///
/// `change` hears of each pair that goes (-1) or comes (+1) while the word is rewritten.
fn merge(word: &mut Vec<u32>, pair: Pair, new: u32, mut change: impl FnMut(Pair, i64)) {
    let (mut read, mut write) = (0, 0);
    while read < word.len() {
        let hit = read + 1 < word.len() && (word[read], word[read + 1]) == pair;
        if !hit {
            word[write] = word[read];
            read += 1;
        } else {
            change(pair, -1);
            if write > 0 {
                change((word[write - 1], pair.0), -1);
                change((word[write - 1], new), 1);
            }
            if let Some(&right) = word.get(read + 2) {
                change((pair.1, right), -1);
                change((new, right), 1);
            }
            word[write] = new;
            read += 2;
        }
        write += 1;
    }
    word.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(word: &[u32]) -> FxHashMap<Pair, i64> {
        let mut counts = FxHashMap::default();
        for w in word.windows(2) {
            *counts.entry((w[0], w[1])).or_default() += 1;
        }
        counts
    }

    #[test]
    fn merge_reports_exactly_the_change_of_the_windows() {
        let mut state = 1u64;
        for _ in 0..2000 {
            let mut random = |n: u64| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 33) % n
            };
            let mut word: Vec<u32> = (0..random(12)).map(|_| random(3) as u32).collect();
            let pair = (random(3) as u32, random(3) as u32);
            let mut counts = windows(&word);
            merge(&mut word, pair, 9, |p, d| {
                *counts.entry(p).or_default() += d
            });
            counts.retain(|_, n| *n != 0);
            assert_eq!(counts, windows(&word));
            assert!(!word.windows(2).any(|w| (w[0], w[1]) == pair));
        }
    }

    #[test]
    fn a_run_merges_from_the_left() {
        let mut word = vec![1; 5];
        merge(&mut word, (1, 1), 7, |_, _| ());
        assert_eq!(word, [7, 7, 1]);
    }
}
