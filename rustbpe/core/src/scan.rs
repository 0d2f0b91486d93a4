//! Cutting text without a regex engine: two patterns, written out by hand.
//!
//! A regex engine does not know which of its alternatives will fit; it tries one, goes back, and
//! tries the next. But in these patterns one look at the first character, or two, decides. So each
//! scanner below is a decision and then a loop. That they cut like the engine, everywhere, is
//! what the tests are for.

use crate::class::{Class, class_at};

/// Something that cuts a text into pieces, each as long as the pattern it stands for would match.
pub trait Scan {
    /// Where the piece that starts at `start` ends. `text` is UTF-8, `start` inside it.
    fn end(&self, text: &[u8], start: usize) -> usize;
}

/// GPT-4's pattern in nanochat's form, with groups of at most `digits` digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpt4 {
    pub digits: usize,
}

/// GPT-2's pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpt2;

impl Scan for Gpt4 {
    #[inline(always)]
    fn end(&self, text: &[u8], start: usize) -> usize {
        let (class, width) = class_at(text, start);
        let next = start + width;
        if class == Class::Letter {
            return letters(text, next);
        }
        if class == Class::Number {
            return numbers(text, next, self.digits - 1);
        }
        if let Some(end) = contraction(text, start, any_case) {
            return end;
        }
        // [^\r\n\p{L}\p{N}]?+\p{L}+ : one foreign character goes with the word behind it.
        if class != Class::Newline {
            let end = letters(text, next);
            if end > next {
                return end;
            }
        }
        //  ?[^\s\p{L}\p{N}]++[\r\n]*
        let signs = match class {
            Class::Other => others(text, next),
            _ if text[start] == b' ' => others(text, next),
            _ => next,
        };
        if class == Class::Other || signs > next {
            return newlines(text, signs);
        }
        let run = spaces(text, start);
        // \s*[\r\n]|\s+(?!\S)|\s+
        run.last_newline.unwrap_or(run.without_last(text))
    }
}

impl Scan for Gpt2 {
    #[inline(always)]
    fn end(&self, text: &[u8], start: usize) -> usize {
        if let Some(end) = contraction(text, start, lower_case) {
            return end;
        }
        // A space goes with whatever stands behind it, but not with another space.
        let first = start + (text[start] == b' ' && start + 1 < text.len()) as usize;
        let (class, width) = class_at(text, first);
        let next = first + width;
        match class {
            Class::Letter => letters(text, next),
            Class::Number => numbers(text, next, usize::MAX),
            Class::Other => others(text, next),
            Class::Space | Class::Newline => spaces(text, start).without_last(text),
        }
    }
}

/// `'s`, `'t`, `'re` and so on at `start`: where it ends.
#[inline(always)]
fn contraction(text: &[u8], start: usize, fold: fn(u8) -> u8) -> Option<usize> {
    if text[start] != b'\'' {
        return None;
    }
    let rest = &text[start + 1..];
    match [
        rest.first().map(|&b| fold(b)),
        rest.get(1).map(|&b| fold(b)),
    ] {
        [Some(b's' | b'd' | b'm' | b't'), _] => Some(start + 2),
        [Some(b'l'), Some(b'l')] | [Some(b'v' | b'r'), Some(b'e')] => Some(start + 3),
        // The long s (U+017F) is an s in another case: Unicode says so, and the regex engine asks.
        _ if fold(b'S') == b's' && rest.starts_with("ſ".as_bytes()) => Some(start + 3),
        _ => None,
    }
}

fn any_case(byte: u8) -> u8 {
    byte.to_ascii_lowercase()
}

fn lower_case(byte: u8) -> u8 {
    byte
}

/// The eight bytes at `i` as one number, the first byte lowest; zeros behind the end.
#[inline(always)]
pub fn eight_bytes(text: &[u8], i: usize) -> u64 {
    match text.get(i..i + 8) {
        Some(bytes) => u64::from_le_bytes(bytes.try_into().expect("eight bytes")),
        None => text[i.min(text.len())..]
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | byte as u64),
    }
}

/// A number with `byte` at each of its eight places.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// How many of the eight bytes are ASCII letters, counted from the first up to one that is none.
///
/// All eight are looked at in a few instructions, with no branch to guess: adding 128 - 'a' to a
/// byte sets its top bit from 'a' on, adding 127 - 'z' sets it behind 'z'.
#[inline(always)]
fn leading_letters(eight: u64) -> usize {
    let small = (eight & each(0x7F)) | each(0x20);
    let from_a = small + each(128 - b'a');
    let behind_z = small + each(127 - b'z');
    let letter = from_a & !behind_z & !eight & each(0x80);
    ((!letter & each(0x80)).trailing_zeros() / 8) as usize
}

/// How many of the eight bytes are spaces, counted from the first up to one that is none.
#[inline(always)]
fn leading_spaces(eight: u64) -> usize {
    ((eight ^ each(b' ')).trailing_zeros() / 8) as usize
}

/// Where the run of letters at `i` ends.
#[inline(always)]
fn letters(text: &[u8], mut i: usize) -> usize {
    loop {
        let n = leading_letters(eight_bytes(text, i));
        i += n;
        if n == 8 {
            continue;
        }
        if i == text.len() || text[i] < 0x80 {
            return i;
        }
        i = foreign_letters(text, i);
        if i == text.len() || !text[i].is_ascii_alphabetic() {
            return i;
        }
    }
}

/// Where the run of letters that are not ASCII ends.
fn foreign_letters(text: &[u8], mut i: usize) -> usize {
    while i < text.len() && text[i] >= 0x80 {
        let (class, width) = class_at(text, i);
        if class != Class::Letter {
            break;
        }
        i += width;
    }
    i
}

/// Where the run of numbers at `i` ends, or the first `most` of it.
#[inline(always)]
fn numbers(text: &[u8], mut i: usize, most: usize) -> usize {
    for _ in 0..most {
        if i == text.len() {
            break;
        }
        let (class, width) = class_at(text, i);
        if class != Class::Number {
            break;
        }
        i += width;
    }
    i
}

/// Where the run of signs at `i` ends: no letters, no numbers, no spaces.
#[inline(always)]
fn others(text: &[u8], mut i: usize) -> usize {
    while i < text.len() {
        let (class, width) = class_at(text, i);
        if class != Class::Other {
            break;
        }
        i += width;
    }
    i
}

#[inline(always)]
fn newlines(text: &[u8], mut i: usize) -> usize {
    while i < text.len() && matches!(text[i], b'\r' | b'\n') {
        i += 1;
    }
    i
}

/// A run of white space.
struct Spaces {
    start: usize,
    end: usize,
    /// Where its last character starts.
    last: usize,
    /// Behind its last line end.
    last_newline: Option<usize>,
}

impl Spaces {
    /// The end of `\s+(?!\S)|\s+`: the last space is left to a word behind it, if others remain.
    #[inline(always)]
    fn without_last(&self, text: &[u8]) -> usize {
        if self.end < text.len() && self.last > self.start {
            self.last
        } else {
            self.end
        }
    }
}

#[inline(always)]
fn spaces(text: &[u8], start: usize) -> Spaces {
    let mut run = Spaces {
        start,
        end: start,
        last: start,
        last_newline: None,
    };
    loop {
        let n = leading_spaces(eight_bytes(text, run.end));
        if n > 0 {
            run.end += n;
            run.last = run.end - 1;
        }
        if run.end == text.len() {
            return run;
        }
        let (class, width) = class_at(text, run.end);
        match class {
            Class::Space => (),
            Class::Newline => run.last_newline = Some(run.end + width),
            _ => return run,
        }
        run.last = run.end;
        run.end += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_counted_like_one_by_one() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut bytes = [b'z'; 8];
                bytes[place] = byte;
                let slow = bytes.iter().take_while(|b| b.is_ascii_alphabetic()).count();
                assert_eq!(leading_letters(u64::from_le_bytes(bytes)), slow);
            }
        }
        assert_eq!(leading_letters(u64::from_le_bytes(*b"AZazMm@[")), 6);
        assert_eq!(leading_letters(u64::from_le_bytes(*b"AZaz`MmM")), 4);
        assert_eq!(leading_spaces(u64::from_le_bytes(*b"   x    ")), 3);
    }

    #[test]
    fn behind_the_end_there_are_zeros() {
        assert_eq!(eight_bytes(b"ab", 0), 0x6261);
        assert_eq!(eight_bytes(b"ab", 2), 0);
    }
}
