//! Encoding and decoding with learned merges.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::{Pair, SplitError, Splitter};

/// A trained tokenizer without special tokens: token `i` below 256 is the byte `i`.
#[derive(Clone, Debug)]
pub struct Model {
    splitter: Splitter,
    ranks: FxHashMap<Pair, u32>,
    tokens: Vec<Box<[u8]>>,
}

impl Model {
    /// A model from merges in order; a merge may only name tokens that are older than itself.
    pub fn new(splitter: Splitter, merges: &[Pair]) -> Self {
        let mut tokens: Vec<Box<[u8]>> = (0..=255u8).map(|byte| Box::from([byte])).collect();
        let mut ranks = FxHashMap::default();
        for &(left, right) in merges {
            ranks.insert((left, right), tokens.len() as u32);
            tokens.push(
                [&*tokens[left as usize], &*tokens[right as usize]]
                    .concat()
                    .into(),
            );
        }
        Model {
            splitter,
            ranks,
            tokens,
        }
    }

    /// The bytes of each token, by id.
    pub fn tokens(&self) -> &[Box<[u8]>] {
        &self.tokens
    }

    /// The split pattern.
    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// Ids of `text`: in each piece the oldest merge that fits is made first.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, SplitError> {
        let mut ids = Vec::new();
        self.splitter
            .split(text, |piece| self.encode_piece(piece.as_bytes(), &mut ids))?;
        Ok(ids)
    }

    /// Bytes of `ids`; the error is the first id that is no token.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, u32> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.tokens.get(id as usize).ok_or(id)?);
        }
        Ok(bytes)
    }

    fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut chain = Chain::new(piece);
        let mut heap = BinaryHeap::new();
        for left in 0..piece.len().saturating_sub(1) {
            chain.offer(left, &self.ranks, &mut heap);
        }
        while let Some(Reverse((rank, left))) = heap.pop() {
            // An entry is out of date when a neighbour changed: its pair has another rank now.
            if chain.pair(left).and_then(|pair| self.ranks.get(&pair)) != Some(&rank) {
                continue;
            }
            chain.join(left, rank);
            chain.offer(left, &self.ranks, &mut heap);
            if let Some(before) = chain.before(left) {
                chain.offer(before, &self.ranks, &mut heap);
            }
        }
        ids.extend(
            chain
                .symbols
                .iter()
                .copied()
                .filter(|&symbol| symbol != GONE),
        );
    }
}

const GONE: u32 = u32::MAX;

/// The symbols of a piece as a linked list over positions.
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

    /// The pair that starts at a position, if there is still one.
    fn pair(&self, left: usize) -> Option<Pair> {
        if self.symbols[left] == GONE {
            return None;
        }
        Some((self.symbols[left], *self.symbols.get(self.next[left])?))
    }

    fn before(&self, position: usize) -> Option<usize> {
        (self.previous[position] < self.symbols.len()).then(|| self.previous[position])
    }

    /// Puts the pair at `left` on the heap if it can be merged.
    fn offer(
        &self,
        left: usize,
        ranks: &FxHashMap<Pair, u32>,
        heap: &mut BinaryHeap<Reverse<(u32, usize)>>,
    ) {
        if let Some(&rank) = self.pair(left).and_then(|pair| ranks.get(&pair)) {
            heap.push(Reverse((rank, left)));
        }
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
