//! Counting short strings: a hash table made for pieces of text.
//!
//! A general map would keep each piece as a string of its own, somewhere in memory, and go there
//! to compare. Here a piece of up to 15 bytes *is* its key: two numbers, read, hashed and compared
//! without a loop and without a second place in memory. Longer pieces, which are few, lie end to
//! end in one buffer.

use crate::scan::eight_bytes;

/// The longest piece that fits into a key.
pub const SHORT: usize = 15;

/// Marks the key of a piece that does not fit.
const LONG: u64 = 0xFF << 56;

/// A piece of up to 15 bytes: the bytes, zeros behind them, and the length in the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    low: u64,
    high: u64,
}

impl Key {
    /// The key of no piece.
    pub const NONE: Key = Key { low: 0, high: 0 };

    /// The key of `text[start..end]`, which is at most 15 bytes long and not empty.
    #[inline(always)]
    pub fn short(text: &[u8], start: usize, end: usize) -> Key {
        let length = end - start;
        let (low, high) = match text.get(start..start + 16) {
            Some(sixteen) => (eight_bytes(sixteen, 0), eight_bytes(sixteen, 8)),
            None => (eight_bytes(text, start), eight_bytes(text, start + 8)),
        };
        // Shift out what belongs to the next piece. The first mask stays whole from 8 bytes on.
        let (first, second) = (length.min(8), length.saturating_sub(8));
        Key {
            low: low & (u64::MAX >> (64 - 8 * first)),
            high: (high & !(u64::MAX << (8 * second))) | (length as u64) << 56,
        }
    }

    /// A number that looks random and is the same for the same key.
    ///
    /// The product of two 64-bit numbers has 128 bits; folding its halves together lets each bit of
    /// the key reach each bit of the hash, in about five processor cycles.
    #[inline(always)]
    pub fn hash(self) -> u64 {
        fold(
            self.low ^ 0x9E37_79B9_7F4A_7C15,
            self.high ^ 0xD6E8_FEB8_6659_FD93,
        )
    }
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Hash of a piece of any length.
fn hash_long(piece: &[u8]) -> u64 {
    let words = piece.chunks(8).map(|chunk| eight_bytes(chunk, 0));
    words.fold(piece.len() as u64, |hash, word| {
        fold(hash ^ 0x9E37_79B9_7F4A_7C15, word ^ 0xD6E8_FEB8_6659_FD93)
    })
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Key,
    count: u64,
}

const EMPTY: Entry = Entry {
    key: Key::NONE,
    count: 0,
};

/// How often each piece occurs.
///
/// Open addressing: an entry lies at the place its hash names, or a few places behind. The
/// neighbours come into the cache together, so a look-up costs one trip to memory.
#[derive(Debug)]
pub struct CountTable {
    entries: Vec<Entry>,
    used: usize,
    /// Long pieces, end to end; each behind its length (four bytes).
    long: Vec<u8>,
}

impl Default for CountTable {
    fn default() -> Self {
        CountTable {
            entries: vec![EMPTY; 1 << 12],
            used: 0,
            long: Vec::new(),
        }
    }
}

impl CountTable {
    /// Number of distinct pieces.
    pub fn len(&self) -> usize {
        self.used
    }

    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Bytes of all distinct pieces together.
    pub fn bytes(&self) -> usize {
        let lengths = self.entries.iter().map(|entry| match entry.key.high >> 56 {
            0xFF => self.long_piece(entry.key).len(),
            short => short as usize,
        });
        lengths.sum()
    }

    /// The count of the `n`-th most frequent piece; 1 if there are not so many.
    pub fn nth_count(&self, n: usize) -> u64 {
        let counts = self.entries.iter().map(|entry| entry.count);
        let mut counts: Vec<u64> = counts.filter(|&count| count != 0).collect();
        if counts.len() < n || n == 0 {
            return 1;
        }
        *counts.select_nth_unstable_by(n - 1, |a, b| b.cmp(a)).1
    }

    /// The place of the entry that `same` recognises, or the empty place where it belongs.
    #[inline(always)]
    fn place(&self, hash: u64, same: impl Fn(&Entry) -> bool) -> usize {
        let mask = self.entries.len() - 1;
        let mut place = hash as usize & mask;
        while self.entries[place].count != 0 && !same(&self.entries[place]) {
            place = (place + 1) & mask;
        }
        place
    }

    /// Counts a piece `n` times.
    pub fn add(&mut self, piece: &[u8], n: u64) {
        if piece.len() > SHORT {
            self.add_long(piece, n);
        } else if !piece.is_empty() {
            self.add_short(Key::short(piece, 0, piece.len()), n);
        }
    }

    /// Counts a short piece `n` times.
    #[inline(always)]
    pub fn add_short(&mut self, key: Key, n: u64) {
        let place = self.place(key.hash(), |entry| entry.key == key);
        if self.entries[place].count == 0 {
            return self.insert(place, key, n);
        }
        self.entries[place].count += n;
    }

    /// Counts a long piece `n` times.
    pub fn add_long(&mut self, piece: &[u8], n: u64) {
        let hash = hash_long(piece);
        let place = self.place(hash, |entry| {
            entry.key.low == hash && entry.key.high >= LONG && self.long_piece(entry.key) == piece
        });
        if self.entries[place].count != 0 {
            self.entries[place].count += n;
            return;
        }
        let high = LONG | self.long.len() as u64;
        self.long.extend((piece.len() as u32).to_le_bytes());
        self.long.extend(piece);
        self.insert(place, Key { low: hash, high }, n);
    }

    #[cold]
    fn insert(&mut self, place: usize, key: Key, count: u64) {
        self.entries[place] = Entry { key, count };
        self.used += 1;
        if self.used * 4 > self.entries.len() * 3 {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; self.entries.len() * 2];
        for entry in std::mem::replace(&mut self.entries, larger) {
            if entry.count != 0 {
                let long = entry.key.high >= LONG;
                let hash = if long {
                    entry.key.low
                } else {
                    entry.key.hash()
                };
                let place = self.place(hash, |_| false);
                self.entries[place] = entry;
            }
        }
    }

    fn long_piece(&self, key: Key) -> &[u8] {
        let start = (key.high & !LONG) as usize;
        let (length, bytes) = self.long[start..].split_at(4);
        &bytes[..u32::from_le_bytes(length.try_into().expect("four bytes")) as usize]
    }

    /// Adds the counts of another table.
    pub fn add_table(&mut self, other: &CountTable) {
        // Room first: the other's entries come in the order of their hashes, and in a table that is
        // too small all of them would crowd at its beginning and search past each other.
        while (self.used + other.used) * 4 > self.entries.len() * 3 {
            self.grow();
        }
        for entry in other.entries.iter().filter(|entry| entry.count != 0) {
            if entry.key.high >= LONG {
                self.add_long(other.long_piece(entry.key), entry.count);
            } else {
                self.add_short(entry.key, entry.count);
            }
        }
    }

    /// Calls `f` with each piece and its count, the most frequent first.
    pub fn by_count(&self, mut f: impl FnMut(&[u8], u64)) {
        let mut order: Vec<(u64, u32)> = (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.count != 0)
            .map(|(place, entry)| (entry.count, place))
            .collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        for (count, place) in order {
            let key = self.entries[place as usize].key;
            if key.high >= LONG {
                f(self.long_piece(key), count);
            } else {
                let bytes: [[u8; 8]; 2] = [key.low.to_le_bytes(), key.high.to_le_bytes()];
                f(&bytes.as_flattened()[..(key.high >> 56) as usize], count);
            }
        }
    }
}
