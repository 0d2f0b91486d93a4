//! Cutting text into pieces, and counting the pieces.

use std::fmt;

use fancy_regex::{Regex, RegexBuilder};
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::Piece;

/// nanochat's split: GPT-4's pattern with runs of at most two digits.
pub const SPLIT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// Why text could not be cut into pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitError {
    /// The pattern is not a regular expression.
    Pattern(String),
    /// The matcher gave up on a text, as on a run of more than half a million spaces.
    Text(String),
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SplitError::Pattern(why) => write!(f, "bad split pattern: {why}"),
            SplitError::Text(why) => write!(f, "the split pattern failed on a text: {why}"),
        }
    }
}

impl std::error::Error for SplitError {}

/// A compiled split pattern.
#[derive(Clone, Debug)]
pub struct Splitter {
    regex: Regex,
}

impl Splitter {
    /// Compiles a pattern; possessive quantifiers and look-ahead are understood.
    pub fn new(pattern: &str) -> Result<Self, SplitError> {
        let built = RegexBuilder::new(pattern)
            .backtrack_limit(usize::MAX)
            .build();
        let regex = built.map_err(|e| SplitError::Pattern(e.to_string()))?;
        Ok(Splitter { regex })
    }

    /// The pattern as it was given.
    pub fn pattern(&self) -> &str {
        self.regex.as_str()
    }

    /// Calls `f` with each piece of `text`, from left to right.
    pub fn split<'t>(&self, text: &'t str, mut f: impl FnMut(&'t str)) -> Result<(), SplitError> {
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|e| SplitError::Text(e.to_string()))?;
            if !found.as_str().is_empty() {
                f(found.as_str());
            }
        }
        Ok(())
    }
}

type Local<'t> = FxHashMap<&'t str, u64>;

fn joined<'t>(a: Local<'t>, b: Local<'t>) -> Local<'t> {
    let (mut big, small) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    for (piece, n) in small {
        *big.entry(piece).or_default() += n;
    }
    big
}

/// Counts the pieces of texts that come in batches.
#[derive(Debug)]
pub struct Counter {
    splitter: Splitter,
    pieces: FxHashMap<Box<[u8]>, u64>,
}

impl Counter {
    pub fn new(splitter: Splitter) -> Self {
        Counter {
            splitter,
            pieces: FxHashMap::default(),
        }
    }

    /// Splits a batch of texts on all threads of the pool and adds their pieces.
    pub fn add<S: AsRef<str> + Sync>(&mut self, texts: &[S]) -> Result<(), SplitError> {
        // Each worker clones the regex: a shared one would hand its scratch space round.
        let start = || (self.splitter.clone(), Local::default());
        let counted = texts
            .par_iter()
            .try_fold(start, |(splitter, mut counts), text| {
                splitter.split(text.as_ref(), |piece| {
                    *counts.entry(piece).or_default() += 1
                })?;
                Ok((splitter, counts))
            })
            .map(|part| part.map(|(_, counts)| counts))
            .try_reduce(Local::default, |a, b| Ok(joined(a, b)))?;
        for (piece, n) in counted {
            match self.pieces.get_mut(piece.as_bytes()) {
                Some(total) => *total += n,
                None => drop(self.pieces.insert(piece.as_bytes().into(), n)),
            }
        }
        Ok(())
    }

    /// The distinct pieces and their counts, in no particular order.
    pub fn into_pieces(self) -> Vec<Piece> {
        self.pieces.into_iter().collect()
    }
}
