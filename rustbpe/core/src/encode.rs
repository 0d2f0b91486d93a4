//! Encoding: text to ids, with tiktoken's rule and without doing the same work twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use rustc_hash::FxHashMap;

use crate::table::{Key, SHORT};
use crate::{Pair, SplitError, Splitter};

/// Pieces from here on are merged with a heap; shorter ones by looking at all pairs each time.
const HEAP_BYTES: usize = 64;

/// Texts that a thread takes at a time.
const TEXTS_AT_A_TIME: usize = 16;

#[derive(Debug)]
pub struct Encoder {
    /// Token of the same bytes.
    whole: FxHashMap<Box<[u8]>, u32>,
    /// Token whose bytes are those of two neighbours together.
    joins: FxHashMap<Pair, u32>,
    /// Caches that no thread uses at the moment; they stay warm from call to call.
    caches: Mutex<Vec<Cache>>,
}

impl Encoder {
    pub fn new(tokens: &[Box<[u8]>]) -> Self {
        let mut whole = FxHashMap::default();
        for (id, token) in (0..).zip(tokens) {
            whole.entry(token.clone()).or_insert(id);
        }
        let mut joins = FxHashMap::default();
        for (token, &id) in &whole {
            // Not only the pair it was learned from: any two tokens that give these bytes.
            for middle in 1..token.len() {
                let (left, right) = token.split_at(middle);
                if let (Some(&left), Some(&right)) = (whole.get(left), whole.get(right)) {
                    joins.insert((left, right), id);
                }
            }
        }
        Encoder {
            whole,
            joins,
            caches: Mutex::default(),
        }
    }

    pub fn encode(&self, splitter: &Splitter, text: &str) -> Result<Vec<u32>, SplitError> {
        let mut cache = self.borrow_cache();
        let ids = self.encode_with(&mut cache, splitter, text);
        self.return_cache(cache);
        ids
    }

    /// Ids of each text. Threads take the next few texts whenever they are done with the last.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        splitter: &Splitter,
        texts: &[S],
        threads: usize,
    ) -> Result<Vec<Vec<u32>>, SplitError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let (splitter, mut cache) = (splitter.clone(), self.borrow_cache());
            let mut done = Vec::new();
            loop {
                let start = next.fetch_add(TEXTS_AT_A_TIME, Relaxed);
                let Some(rest) = texts.get(start..).filter(|rest| !rest.is_empty()) else {
                    break;
                };
                for (i, text) in (start..).zip(&rest[..rest.len().min(TEXTS_AT_A_TIME)]) {
                    done.push((i, self.encode_with(&mut cache, &splitter, text.as_ref())?));
                }
            }
            self.return_cache(cache);
            Ok(done)
        };
        let mut batch = vec![Vec::new(); texts.len()];
        let helpers = threads
            .min(texts.len().div_ceil(TEXTS_AT_A_TIME))
            .saturating_sub(1);
        thread::scope(|scope| {
            let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
            let mut all = vec![work()];
            let join = |helper: thread::ScopedJoinHandle<'_, _>| {
                helper.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            all.extend(helpers.into_iter().map(join));
            for done in all {
                done?.into_iter().for_each(|(i, ids)| batch[i] = ids);
            }
            Ok(batch)
        })
    }

    fn borrow_cache(&self) -> Cache {
        let cache = self.caches.lock().ok().and_then(|mut free| free.pop());
        cache.unwrap_or_default()
    }

    fn return_cache(&self, cache: Cache) {
        if let Ok(mut free) = self.caches.lock() {
            free.push(cache);
        }
    }

    fn encode_with(
        &self,
        cache: &mut Cache,
        splitter: &Splitter,
        text: &str,
    ) -> Result<Vec<u32>, SplitError> {
        let bytes = text.as_bytes();
        let mut ids = Vec::with_capacity(bytes.len() / 3 + 8);
        splitter.cuts(text, |start, end| {
            if end - start > SHORT {
                return self.encode_piece(&bytes[start..end], &mut ids);
            }
            let key = Key::short(bytes, start, end);
            let line = cache.line(key);
            if line.key != key {
                return self.remember(line, key, &bytes[start..end], &mut ids);
            }
            // All eleven are copied, whatever the number, and the surplus is cut off: no loop.
            let n = ids.len() + line.n as usize;
            ids.extend_from_slice(&line.ids);
            ids.truncate(n);
        })?;
        Ok(ids)
    }

    /// Encodes a piece that was not in the cache, and puts it there.
    #[cold]
    fn remember(&self, line: &mut Line, key: Key, piece: &[u8], ids: &mut Vec<u32>) {
        let before = ids.len();
        self.encode_piece(piece, ids);
        let new = &ids[before..];
        if new.len() <= line.ids.len() {
            (line.key, line.n) = (key, new.len() as u32);
            line.ids[..new.len()].copy_from_slice(new);
        }
    }

    /// Ids of one piece: itself, if it is a token; else pairs are joined, lowest rank first.
    fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(piece) {
            ids.push(id);
        } else if piece.len() < HEAP_BYTES {
            self.merge_short(piece, ids);
        } else {
            self.merge_long(piece, ids);
        }
    }

    /// The rank of two neighbours; MAX where they do not join.
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.joins.get(&(left, right)).copied().unwrap_or(u32::MAX)
    }

    fn merge_short(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut parts = [0; HEAP_BYTES];
        let mut ranks = [u32::MAX; HEAP_BYTES];
        let mut n = piece.len();
        for (part, &byte) in parts.iter_mut().zip(piece) {
            *part = byte as u32;
        }
        for i in 0..n - 1 {
            ranks[i] = self.rank(parts[i], parts[i + 1]);
        }
        loop {
            let lowest = (0..n - 1).min_by_key(|&i| ranks[i]);
            let Some(i) = lowest.filter(|&i| ranks[i] != u32::MAX) else {
                break;
            };
            parts[i] = ranks[i];
            parts.copy_within(i + 2..n, i + 1);
            ranks.copy_within(i + 1..n, i);
            n -= 1;
            ranks[n - 1] = u32::MAX;
            if i + 1 < n {
                ranks[i] = self.rank(parts[i], parts[i + 1]);
            }
            if i > 0 {
                ranks[i - 1] = self.rank(parts[i - 1], parts[i]);
            }
        }
        ids.extend_from_slice(&parts[..n]);
    }

    fn merge_long(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut chain = Chain::new(piece);
        let mut heap = BinaryHeap::new();
        let offer = |chain: &Chain, left, heap: &mut BinaryHeap<_>| {
            if let Some(&rank) = chain.pair(left).and_then(|pair| self.joins.get(&pair)) {
                heap.push(Reverse((rank, left)));
            }
        };
        for left in 0..piece.len().saturating_sub(1) {
            offer(&chain, left, &mut heap);
        }
        while let Some(Reverse((rank, left))) = heap.pop() {
            // An entry is out of date when a neighbour changed: its pair has another rank now.
            if chain.pair(left).and_then(|pair| self.joins.get(&pair)) != Some(&rank) {
                continue;
            }
            chain.join(left, rank);
            offer(&chain, left, &mut heap);
            if let Some(before) = chain.before(left) {
                offer(&chain, before, &mut heap);
            }
        }
        ids.extend(chain.symbols.iter().filter(|&&symbol| symbol != GONE));
    }
}

/// What a piece was encoded to, the last time it was met: one line of the processor's cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    key: Key,
    n: u32,
    ids: [u32; 11],
}

/// A line for each of 2^15 hashes. A piece overwrites the one that was there: the frequent ones
/// are soon back, and nothing has to be kept in order.
#[derive(Debug)]
struct Cache {
    lines: Vec<Line>,
}

impl Default for Cache {
    fn default() -> Self {
        let empty = Line {
            key: Key::NONE,
            n: 0,
            ids: [0; 11],
        };
        Cache {
            lines: vec![empty; 1 << 15],
        }
    }
}

impl Cache {
    #[inline(always)]
    fn line(&mut self, key: Key) -> &mut Line {
        let line = key.hash() as usize % self.lines.len();
        &mut self.lines[line]
    }
}

const GONE: u32 = u32::MAX;

/// The symbols of a piece as a linked list over places.
struct Chain {
    symbols: Vec<u32>,
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Chain {
    fn new(piece: &[u8]) -> Self {
        let n = piece.len();
        Chain {
            symbols: piece.iter().map(|&byte| byte as u32).collect(),
            next: (1..=n).collect(),
            previous: (0..n).map(|i| i.wrapping_sub(1)).collect(),
        }
    }

    /// The pair that starts at a place, if there is still one.
    fn pair(&self, left: usize) -> Option<Pair> {
        if self.symbols[left] == GONE {
            return None;
        }
        Some((self.symbols[left], *self.symbols.get(self.next[left])?))
    }

    fn before(&self, place: usize) -> Option<usize> {
        (self.previous[place] < self.symbols.len()).then(|| self.previous[place])
    }

    /// Joins the pair at `left` into `symbol`.
    fn join(&mut self, left: usize, symbol: u32) {
        let right = self.next[left];
        self.symbols[left] = symbol;
        self.symbols[right] = GONE;
        self.next[left] = self.next[right];
        if let Some(previous) = self.previous.get_mut(self.next[left]) {
            *previous = left;
        }
    }
}
