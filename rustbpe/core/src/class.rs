//! What kind of character is this? One table look-up, for every character of Unicode.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as Set, HirKind};

/// The kinds that the split patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Anything else: punctuation, symbols, marks, control characters.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`, but for the two below.
    Space,
    /// Carriage return and line feed.
    Newline,
}

const PAGE: usize = 256;

/// A class for each of 1,114,112 characters takes 1 MB; but most pages of 256 are alike, and equal
/// pages are stored once. What is left fits into the processor's nearest cache.
struct Table {
    pages: Vec<u8>,
    classes: Vec<[Class; PAGE]>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

/// The first page, known when the crate is compiled: nearly all text is ASCII.
const ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\n' | b'\r' => Class::Newline,
            b' ' | b'\t' | 0x0B | 0x0C => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

/// The characters that `pattern`, one class of the regex engine, stands for.
fn ranges(pattern: &str) -> Vec<(usize, usize)> {
    let class = regex_syntax::parse(pattern).expect("a class of the engine");
    match class.into_kind() {
        HirKind::Class(Set::Unicode(set)) => set
            .iter()
            .map(|range| (range.start() as usize, range.end() as usize))
            .collect(),
        other => unreachable!("{pattern} is a Unicode class, not {other:?}"),
    }
}

impl Table {
    /// Asks the regex engine what its classes hold, so that both mean the same version of Unicode.
    fn new() -> Self {
        let mut flat = vec![Class::Other; char::MAX as usize + 1];
        for (pattern, class) in [
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"\s", Class::Space),
            (r"[\r\n]", Class::Newline),
        ] {
            for (first, last) in ranges(pattern) {
                flat[first..=last].fill(class);
            }
        }
        let (mut pages, mut classes) = (Vec::new(), Vec::<[Class; PAGE]>::new());
        for page in flat.chunks_exact(PAGE) {
            let known = classes.iter().position(|known| known == page);
            pages.push(known.unwrap_or(classes.len()) as u8);
            if known.is_none() {
                classes.push(page.try_into().expect("a page"));
            }
        }
        assert!(classes.len() <= 256, "a page number is one byte");
        Table { pages, classes }
    }

    fn class(&self, character: u32) -> Class {
        let page = self.pages[character as usize / PAGE];
        self.classes[page as usize][character as usize % PAGE]
    }
}

/// The class of the character that starts at `i`, and its length in bytes.
///
/// `text` must be UTF-8 and `i` inside it, at the start of a character.
#[inline(always)]
pub fn class_at(text: &[u8], i: usize) -> (Class, usize) {
    let byte = text[i];
    if byte < 0x80 {
        (ASCII[byte as usize], 1)
    } else {
        let (character, width) = decode(&text[i..]);
        (TABLE.class(character), width)
    }
}

/// The first character of `text`, which is not ASCII: 5, 4 or 3 bits, and 6 from each byte behind.
#[inline]
fn decode(text: &[u8]) -> (u32, usize) {
    let (head, width) = match text[0] {
        byte @ ..0xE0 => (byte & 0x1F, 2),
        byte @ 0xE0..0xF0 => (byte & 0x0F, 3),
        byte => (byte & 0x07, 4),
    };
    let character = text[1..width]
        .iter()
        .fold(head as u32, |bits, byte| bits << 6 | (byte & 0x3F) as u32);
    (character, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    /// Every character there is, asked of the regex engine.
    #[test]
    fn classes_are_those_of_the_regex_engine() {
        let regex = |pattern| Regex::new(pattern).unwrap();
        let (letter, number, space) = (regex(r"^\p{L}"), regex(r"^\p{N}"), regex(r"^\s"));
        for character in '\0'..=char::MAX {
            let text = character.to_string();
            let (class, width) = class_at(text.as_bytes(), 0);
            assert_eq!(width, text.len());
            assert_eq!(class == Class::Letter, letter.is_match(&text).unwrap());
            assert_eq!(class == Class::Number, number.is_match(&text).unwrap());
            let newline = character == '\r' || character == '\n';
            assert_eq!(class == Class::Newline, newline);
            let spaced = class == Class::Space || newline;
            assert_eq!(spaced, space.is_match(&text).unwrap());
        }
    }
}
