//! The distinct pieces as one row of cells, in which tokens grow.
//!
//! Each byte of each piece has a cell, for ever; a token of five bytes spans five cells. Its number
//! stands in the first *and* in the last of them. So from any place the neighbours are one look
//! away: the cell behind a token is the first of the next, the cell before it is the last of the
//! previous, and the number tells the length. No lists to link, nothing to move, and a merge
//! writes four cells.

use rustc_hash::FxHashMap;

use crate::{CountTable, Pair};

/// Stands between two pieces. It is no token, so no pair reaches over it.
const WALL: u32 = u32::MAX;

/// A cell inside a token, neither the first nor the last.
const INSIDE: u32 = u32::MAX - 1;

/// A token and the place of its first cell.
pub type Placed = (u32, u32);

pub struct Text {
    cells: Vec<u32>,
    /// Bytes of each token.
    lengths: Vec<u32>,
    /// Pieces that occur equally often stand together: where such a group ends, and how often.
    ///
    /// Places are always visited in ascending order, so one finger on this list says how much a
    /// place counts. A table from place to count would be as large as the text.
    groups: Vec<(u32, u64)>,
}

impl Text {
    pub fn new(pieces: &CountTable) -> Self {
        let mut text = Text {
            cells: Vec::with_capacity(pieces.bytes() + pieces.len() + 1),
            lengths: vec![1; 256],
            groups: Vec::new(),
        };
        text.cells.push(WALL);
        pieces.by_count(|piece, times| text.push(piece, times));
        text
    }

    fn push(&mut self, piece: &[u8], times: u64) {
        self.cells.extend(piece.iter().map(|&byte| byte as u32));
        self.cells.push(WALL);
        let end = u32::try_from(self.cells.len()).expect("fewer than 4 GB of distinct pieces");
        match self.groups.last_mut() {
            Some(group) if group.1 == times => group.0 = end,
            _ => self.groups.push((end, times)),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.lengths.len()
    }

    /// Calls `f` with each two neighbours, the place of the first, and how often they count.
    pub fn for_each_pair(&self, mut f: impl FnMut(Pair, u32, u64)) {
        let mut start = 1;
        for &(end, times) in &self.groups {
            while start < end as usize {
                start = self.pairs_of_piece(start, |pair, place| f(pair, place, times));
            }
        }
    }

    /// The pairs of the piece at `start`; returns where the next piece starts.
    fn pairs_of_piece(&self, start: usize, mut f: impl FnMut(Pair, u32)) -> usize {
        let (mut place, mut left) = (start, self.cells[start]);
        loop {
            let next = place + self.lengths[left as usize] as usize;
            let right = self.cells[next];
            if right == WALL {
                return next + 1;
            }
            f((left, right), place as u32);
            (place, left) = (next, right);
        }
    }

    /// How often each pair occurs, every piece counted as often as it does.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::new();
        self.for_each_pair(|pair, _, times| tally.add(pair, times));
        tally
    }

    /// Joins `pair` at `places` into a new token, from left to right and without overlaps.
    ///
    /// `changed` is told, before each change, what stands before the pair and what behind it, and
    /// how often this place counts.
    #[inline(always)]
    pub fn merge(
        &mut self,
        (a, b): Pair,
        places: &[u32],
        mut changed: impl FnMut(Option<Placed>, Option<Placed>, u64),
    ) {
        let (new, a_bytes) = (self.tokens() as u32, self.lengths[a as usize]);
        let bytes = a_bytes + self.lengths[b as usize];
        self.lengths.push(bytes);
        let mut group = 0;
        for &place in places {
            let (first, middle) = (place as usize, (place + a_bytes) as usize);
            // An earlier merge may have taken one of the two away.
            if self.cells[first] != a || self.cells[middle] != b {
                continue;
            }
            if place >= self.groups[group].0 {
                group += self.groups[group..].partition_point(|&(end, _)| end <= place);
            }
            let end = first + bytes as usize;
            let (before, behind) = (self.cells[first - 1], self.cells[end]);
            let left = (before != WALL).then(|| (before, place - self.lengths[before as usize]));
            let right = (behind != WALL).then_some((behind, place));
            changed(left, right, self.groups[group].1);
            self.cells[middle - 1] = INSIDE;
            self.cells[middle] = INSIDE;
            self.cells[first] = new;
            self.cells[end - 1] = new;
        }
    }
}

/// Pair counts. Pairs of bytes are counted in an array, all others in a map.
pub struct Tally {
    bytes: Vec<(u64, u32)>,
    others: FxHashMap<Pair, (u64, u32)>,
}

impl Tally {
    fn new() -> Self {
        Tally {
            bytes: vec![(0, 0); 1 << 16],
            others: FxHashMap::default(),
        }
    }

    fn add(&mut self, (a, b): Pair, times: u64) {
        let entry = if a < 256 && b < 256 {
            &mut self.bytes[(a << 8 | b) as usize]
        } else {
            self.others.entry((a, b)).or_default()
        };
        entry.0 += times;
        entry.1 += 1;
    }

    /// Count and number of places of each pair that occurs.
    pub fn iter(&self) -> impl Iterator<Item = (Pair, u64, u32)> {
        let bytes = (0..)
            .zip(&self.bytes)
            .map(|(i, entry)| ((i >> 8, i & 255), entry));
        let all = bytes.chain(self.others.iter().map(|(&pair, entry)| (pair, entry)));
        all.filter(|(_, entry)| entry.1 > 0)
            .map(|(pair, &(count, n))| (pair, count, n))
    }
}
