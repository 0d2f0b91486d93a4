//! What each step of lesson 01a gains: the plain way beside ours, on the same text.
//!
//!     cargo run --release --example ladder -- FILE VOCABULARY [THREADS]
//!
//! FILE holds documents with NUL between them. Prints a line of JSON for each step. Every step must
//! give the merges of the first one, or the program stops.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::{cmp::Reverse, env, fs, time::Instant};

use rustbpe_core::{
    Batch, CountTable, Pair, SPLIT_PATTERN, SplitError, Splitter, count, train, train_above,
};

/// Step 0: every piece becomes a string of its own, and a general map counts it.
fn count_plainly(splitter: &Splitter, text: &str) -> HashMap<String, u64> {
    let mut counts = HashMap::new();
    for document in text.split('\0') {
        let count = |piece: &str| *counts.entry(piece.to_owned()).or_default() += 1;
        splitter
            .split(document, count)
            .expect("a text that can be cut");
    }
    counts
}

fn count_table(splitter: &Splitter, text: &str, threads: usize) -> CountTable {
    let mut documents = text.split('\0').peekable();
    let read = || {
        let mut batch = Batch::default();
        while batch.bytes() < 1 << 20 && documents.peek().is_some() {
            documents
                .by_ref()
                .take(1)
                .for_each(|document| batch.push(document));
        }
        Ok::<_, SplitError>((!batch.is_empty()).then_some(batch))
    };
    count(splitter, threads, read).expect("a text that can be cut")
}

/// Step 0 of merging: general maps from pair to count and to words; words are rewritten.
#[derive(Default)]
struct Words {
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    places: HashMap<Pair, HashSet<usize>>,
}

impl Words {
    fn new(pieces: &CountTable) -> Self {
        let mut words = Words::default();
        pieces.by_count(|piece, times| {
            let symbols = piece.iter().map(|&byte| byte as u32).collect();
            words.words.push((symbols, times));
        });
        (0..words.words.len()).for_each(|i| drop(words.add(i)));
        words
    }

    fn add(&mut self, i: usize) -> Vec<Pair> {
        let (word, times) = &self.words[i];
        let pairs: Vec<Pair> = word.windows(2).map(|w| (w[0], w[1])).collect();
        for &pair in &pairs {
            *self.counts.entry(pair).or_default() += times;
            self.places.entry(pair).or_default().insert(i);
        }
        pairs
    }

    fn apply(&mut self, pair: Pair, new: u32) -> HashSet<Pair> {
        let mut fresh = HashSet::new();
        for i in self.places.remove(&pair).unwrap_or_default() {
            let (word, times) = &mut self.words[i];
            for w in word.windows(2) {
                *self.counts.get_mut(&(w[0], w[1])).expect("counted") -= *times;
            }
            *word = merged(word, pair, new);
            fresh.extend(self.add(i).into_iter().filter(|p| p.0 == new || p.1 == new));
        }
        fresh
    }

    fn train(mut self, vocab_size: usize) -> Vec<Pair> {
        let entry = |(&pair, &n): (&Pair, &u64)| (n, Reverse(pair));
        let mut heap: BinaryHeap<_> = self.counts.iter().map(entry).collect();
        let mut merges = Vec::new();
        while 256 + merges.len() < vocab_size {
            let Some((n, Reverse(pair))) = heap.pop() else {
                break;
            };
            let now = self.counts[&pair];
            if now != n {
                heap.push((now, Reverse(pair)));
            } else if n == 0 {
                break;
            } else {
                let fresh = self.apply(pair, 256 + merges.len() as u32);
                heap.extend(
                    fresh
                        .into_iter()
                        .map(|pair| (self.counts[&pair], Reverse(pair))),
                );
                merges.push(pair);
            }
        }
        merges
    }
}

fn merged(word: &[u32], pair: Pair, new: u32) -> Vec<u32> {
    let (mut out, mut i) = (Vec::with_capacity(word.len()), 0);
    while i < word.len() {
        let hit = word[i..].starts_with(&[pair.0, pair.1]);
        out.push(if hit { new } else { word[i] });
        i += 1 + hit as usize;
    }
    out
}

/// Seconds that the main thread has run so far, without those that other programs took from it.
fn own_seconds() -> Option<f64> {
    let all = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(all.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

fn timed<T>(part: &str, step: &str, work: impl FnOnce() -> T) -> T {
    let (start, own) = (Instant::now(), own_seconds());
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    let cpu = own_seconds()
        .zip(own)
        .map_or(seconds, |(now, before)| now - before);
    println!(r#"{{"part": "{part}", "step": "{step}", "seconds": {seconds:.4}, "cpu": {cpu:.4}}}"#);
    result
}

fn main() {
    let args: Vec<String> = env::args().collect();
    let vocab_size = args[2].parse().expect("a vocabulary size");
    let threads = args
        .get(3)
        .map_or(2, |n| n.parse().expect("a number of threads"));
    let text = fs::read_to_string(&args[1]).expect("a file of UTF-8");
    let regex = Splitter::with_regex(SPLIT_PATTERN).expect("a pattern");
    let scanner = Splitter::new(SPLIT_PATTERN).expect("a pattern");

    let cut = |splitter: &Splitter| {
        let mut n = 0;
        let all = text.split('\0');
        all.for_each(|document| splitter.cuts(document, |_, _| n += 1).expect("a text"));
        n
    };
    let pieces = timed("cut", "regex", || cut(&regex));
    assert_eq!(timed("cut", "scanner", || cut(&scanner)), pieces);

    let plain = timed("count", "regex, map of strings", || {
        count_plainly(&regex, &text)
    });
    let scanned = timed("count", "scanner", || count_plainly(&scanner, &text));
    assert_eq!(plain, scanned);
    let table = || count_table(&scanner, &text, 1);
    let pieces = timed("count", "keys of two numbers", table);
    pieces.by_count(|piece, n| assert_eq!(plain[std::str::from_utf8(piece).expect("UTF-8")], n));
    drop((plain, scanned));
    timed("count", &format!("{threads} threads"), || {
        count_table(&scanner, &text, threads)
    });

    let (one, two) = (table(), table());
    let slow = timed("merge", "maps and words", || {
        Words::new(&pieces).train(vocab_size)
    });
    let never = |_| Ok::<_, ()>(());
    let cells = || train_above(1, one, vocab_size, never).expect("never fails");
    assert_eq!(timed("merge", "cells", cells), slow);
    let floor = || train(two, vocab_size, never).expect("never fails");
    assert_eq!(timed("merge", "rare pairs left out", floor), slow);
}
