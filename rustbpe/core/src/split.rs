//! Cutting text into pieces: by hand where the pattern is known, with a regex engine where not.

use std::fmt;

use fancy_regex::{Regex, RegexBuilder};

use crate::scan::{Gpt2, Gpt4, Scan};

/// nanochat's split: GPT-4's pattern with runs of at most two digits.
pub const SPLIT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// The same with runs of at most three digits, as GPT-4 has them.
pub const THREE_DIGITS: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// GPT-2's split, in the two spellings that are about.
pub const GPT2_PATTERNS: [&str; 2] = [
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];

/// Why text could not be cut into pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitError {
    /// The pattern is not a regular expression.
    Pattern(String),
    /// The regex engine gave up on a text, as on a run of more than half a million spaces.
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

#[derive(Clone, Debug)]
enum Cutter {
    Gpt4(Gpt4),
    Gpt2(Gpt2),
    Regex(Regex),
}

/// A split pattern, ready to cut.
#[derive(Clone, Debug)]
pub struct Splitter {
    pattern: String,
    cutter: Cutter,
}

impl Splitter {
    /// The fastest cutter for a pattern: a scanner if it is known, else the regex engine.
    pub fn new(pattern: &str) -> Result<Self, SplitError> {
        let cutter = match pattern {
            SPLIT_PATTERN => Cutter::Gpt4(Gpt4 { digits: 2 }),
            THREE_DIGITS => Cutter::Gpt4(Gpt4 { digits: 3 }),
            _ if GPT2_PATTERNS.contains(&pattern) => Cutter::Gpt2(Gpt2),
            _ => return Splitter::with_regex(pattern),
        };
        let pattern = pattern.to_owned();
        Ok(Splitter { pattern, cutter })
    }

    /// The regex engine for any pattern; possessive quantifiers and look-ahead are understood.
    pub fn with_regex(pattern: &str) -> Result<Self, SplitError> {
        let built = RegexBuilder::new(pattern)
            .backtrack_limit(usize::MAX)
            .build();
        let regex = built.map_err(|e| SplitError::Pattern(e.to_string()))?;
        Ok(Splitter {
            pattern: pattern.to_owned(),
            cutter: Cutter::Regex(regex),
        })
    }

    /// The pattern as it was given.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Calls `f` with start and end of each piece of `text`, from left to right.
    #[inline(always)]
    pub fn cuts(&self, text: &str, mut f: impl FnMut(usize, usize)) -> Result<(), SplitError> {
        match &self.cutter {
            Cutter::Gpt4(scanner) => scan_all(scanner, text, f),
            Cutter::Gpt2(scanner) => scan_all(scanner, text, f),
            Cutter::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let found = found.map_err(|e| SplitError::Text(e.to_string()))?;
                    if !found.range().is_empty() {
                        f(found.start(), found.end());
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `f` with each piece of `text`, from left to right.
    pub fn split<'t>(&self, text: &'t str, mut f: impl FnMut(&'t str)) -> Result<(), SplitError> {
        self.cuts(text, |start, end| f(&text[start..end]))
    }
}

#[inline(always)]
fn scan_all(scanner: &impl Scan, text: &str, mut f: impl FnMut(usize, usize)) {
    let mut start = 0;
    while start < text.len() {
        let end = scanner.end(text.as_bytes(), start);
        f(start, end);
        start = end;
    }
}
