//! The scanners against the regex engine, on random text.
//!
//! `cargo test` tries some thousands of texts. The long test, half a minute, tries a million and a half:
//!
//!     cargo test --release --test scan -- --ignored --nocapture

use rustbpe_core::{GPT2_PATTERNS, SPLIT_PATTERN, Splitter, THREE_DIGITS};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }

    fn of<'a>(&mut self, parts: &[&'a str]) -> &'a str {
        parts[self.below(parts.len())]
    }

    /// Any character of Unicode.
    fn anything(&mut self) -> char {
        loop {
            if let Some(character) = char::from_u32(self.below(0x11_0000) as u32) {
                return character;
            }
        }
    }

    /// A character from the part of Unicode that is in use.
    fn common(&mut self) -> char {
        let start = [
            0x80, 0x300, 0x600, 0x900, 0x2000, 0x2100, 0x3000, 0x4E00, 0xAC00, 0x1F300,
        ];
        char::from_u32(start[self.below(10)] + self.below(0x100) as u32).expect("a character")
    }

    /// One part of a text: what the patterns look for, its near misses, or anything at all.
    fn part(&mut self, text: &mut String) {
        const CUTS: [&str; 24] = [
            "'s", "'S", "'ſ", "'ll", "'lL", "'ve", "'re", "'d", "'M", "'t", "'l", "'v", "'", "''",
            "' s", "\u{212A}", "ß", "ŉ", "'x", "'é", "'1", "’s", "`s", "\"",
        ];
        const SPACES: [&str; 16] = [
            " ",
            "  ",
            "        ",
            "         ",
            "\n",
            "\r\n",
            "\n\n",
            "\t",
            "\u{B}",
            "\u{C}",
            "\u{85}",
            "\u{A0}",
            "\u{2003}",
            "\u{2028}",
            "\u{3000}",
            "\u{200B}",
        ];
        const SIGNS: [&str; 12] = [
            ".", ",", "!?", "--", "_", "\0", "\u{7F}", "\u{301}", "\u{FE0F}", "\u{200D}", "🙂", "€",
        ];
        const NUMBERS: [&str; 10] = ["1", "23", "456", "7890", "١", "Ⅷ", "½", "²", "〇", "𝟘"];
        const WORDS: [&str; 14] = [
            "a",
            "Z",
            "word",
            "eightlet",
            "ninechars",
            "aé",
            "Ünïcödé",
            "日本語",
            "Привет",
            "שלום",
            "हिन्दी",
            "ﬁ",
            "𝒳",
            "ʼn",
        ];
        match self.below(8) {
            0 => text.push_str(self.of(&CUTS)),
            1 | 2 => text.push_str(self.of(&SPACES)),
            3 => text.push_str(self.of(&SIGNS)),
            4 => text.push_str(self.of(&NUMBERS)),
            5 => text.push_str(self.of(&WORDS)),
            6 => text.push(self.common()),
            _ if self.below(2) == 0 => text.push(self.below(128) as u8 as char),
            _ => text.push(self.anything()),
        }
    }

    fn text(&mut self) -> String {
        let mut text = String::new();
        (0..self.below(24)).for_each(|_| self.part(&mut text));
        text
    }
}

fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
    let mut pieces = Vec::new();
    splitter.split(text, |piece| pieces.push(piece)).unwrap();
    pieces
}

fn compare(texts: usize, seed: u64) {
    let [short, long] = GPT2_PATTERNS;
    let both = |pattern| {
        let scanner = Splitter::new(pattern).unwrap();
        (scanner, Splitter::with_regex(pattern).unwrap())
    };
    let cutters = [SPLIT_PATTERN, THREE_DIGITS, short, long].map(both);
    let mut random = Random(seed);
    for _ in 0..texts {
        let text = random.text();
        for (scanner, regex) in &cutters {
            let (ours, theirs) = (pieces(scanner, &text), pieces(regex, &text));
            assert_eq!(ours, theirs, "{text:?} with {}", scanner.pattern());
            assert_eq!(ours.concat(), text);
        }
    }
}

#[test]
fn scanners_cut_like_the_regex_engine() {
    compare(5_000, 1);
}

#[test]
#[ignore = "takes half a minute"]
fn scanners_cut_like_the_regex_engine_a_million_times() {
    compare(1_500_000, 2);
}

/// Every character of Unicode between letters, digits, spaces and signs.
#[test]
fn every_character_in_a_context() {
    for pattern in [SPLIT_PATTERN, GPT2_PATTERNS[0]] {
        let (scanner, regex) = (Splitter::new(pattern), Splitter::with_regex(pattern));
        let (scanner, regex) = (scanner.unwrap(), regex.unwrap());
        let all: Vec<char> = ('\0'..=char::MAX).collect();
        for block in all.chunks(512) {
            let context = |c: &char| format!("a{c}b {c}1{c}  {c}!'{c}");
            let text: String = block.iter().map(context).collect();
            assert_eq!(pieces(&scanner, &text), pieces(&regex, &text));
        }
    }
}

#[test]
fn runs_may_be_longer_than_a_regex_engine_bears() {
    let scanner = Splitter::new(SPLIT_PATTERN).unwrap();
    let text = format!("x{}y", " ".repeat(3_000_000));
    let lengths: Vec<usize> = pieces(&scanner, &text).iter().map(|p| p.len()).collect();
    assert_eq!(lengths, [1, 2_999_999, 2]);
}
