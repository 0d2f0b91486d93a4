//! The trainer and the encoder against slow references that are easy to read.

use std::collections::HashMap;

use rustbpe_core::{
    Batch, CountTable, Model, Pair, SPLIT_PATTERN, SplitError, Splitter, count, train,
};

type Piece = (Box<[u8]>, u64);

fn replaced(word: &[u32], pair: Pair, new: u32) -> Vec<u32> {
    let (mut out, mut i) = (Vec::new(), 0);
    while i < word.len() {
        if i + 1 < word.len() && (word[i], word[i + 1]) == pair {
            out.push(new);
            i += 2;
        } else {
            out.push(word[i]);
            i += 1;
        }
    }
    out
}

/// Counts every pair afresh for every merge.
fn slow_train(pieces: &[Piece], vocab_size: usize) -> Vec<Pair> {
    let mut words: Vec<(Vec<u32>, u64)> = pieces
        .iter()
        .map(|(p, n)| (p.iter().map(|&b| b as u32).collect(), *n))
        .collect();
    let mut merges = Vec::new();
    while 256 + merges.len() < vocab_size {
        let mut counts: HashMap<Pair, u64> = HashMap::new();
        for (word, n) in &words {
            for w in word.windows(2) {
                *counts.entry((w[0], w[1])).or_default() += n;
            }
        }
        let best = counts
            .into_iter()
            .max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)));
        let Some((pair, _)) = best else { break };
        for (word, _) in &mut words {
            *word = replaced(word, pair, 256 + merges.len() as u32);
        }
        merges.push(pair);
    }
    merges
}

/// Applies each merge in order to the whole piece.
fn slow_encode(splitter: &Splitter, merges: &[Pair], text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let each = |piece: &str| {
        let mut word: Vec<u32> = piece.bytes().map(u32::from).collect();
        for (i, &pair) in merges.iter().enumerate() {
            word = replaced(&word, pair, 256 + i as u32);
        }
        ids.extend(word);
    };
    splitter.split(text, each).unwrap();
    ids
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }

    fn text(&mut self, length: usize) -> String {
        const PARTS: [&str; 12] = [
            "a", "b", "aa", "ab", " ", "  ", "1", "23", "!", "\n", "é", "日本",
        ];
        (0..length)
            .map(|_| PARTS[self.below(PARTS.len())])
            .collect()
    }
}

fn never(_: usize) -> Result<(), ()> {
    Ok(())
}

fn pieces_of(splitter: &Splitter, texts: &[String], threads: usize) -> CountTable {
    let mut batches = texts
        .chunks(3)
        .map(|texts| Batch::from_iter(texts.iter().map(|text| &**text)));
    count(splitter, threads, || Ok::<_, SplitError>(batches.next())).unwrap()
}

fn listed(table: &CountTable) -> Vec<Piece> {
    let mut pieces = Vec::new();
    table.by_count(|piece, n| pieces.push((piece.into(), n)));
    pieces
}

fn table(pieces: &[(&str, u64)]) -> CountTable {
    let mut table = CountTable::default();
    pieces
        .iter()
        .for_each(|(piece, n)| table.add(piece.as_bytes(), *n));
    table
}

#[test]
fn merges_and_ids_equal_the_slow_references() {
    let splitter = Splitter::new(SPLIT_PATTERN).unwrap();
    for seed in 0..40 {
        let mut random = Random(seed);
        let texts: Vec<String> = (0..8).map(|_| random.text(40)).collect();
        let pieces = pieces_of(&splitter, &texts, 1 + seed as usize % 3);
        let listed = listed(&pieces);
        let merges = train(pieces, 300, never).unwrap();
        assert_eq!(merges, slow_train(&listed, 300));
        let model = Model::new(splitter.clone(), &merges);
        let fresh = random.text(60);
        let ids = model.encode(&fresh).unwrap();
        assert_eq!(ids, slow_encode(&splitter, &merges, &fresh));
        assert_eq!(model.decode(&ids).unwrap(), fresh.as_bytes());
    }
}

#[test]
fn training_ends_when_no_pair_is_left() {
    let merges = train(table(&[("abc", 2)]), 1000, never).unwrap();
    assert_eq!(merges, [(97, 98), (256, 99)]);
    assert!(train(table(&[]), 1000, never).unwrap().is_empty());
    assert!(train(table(&[("abc", 2)]), 256, never).unwrap().is_empty());
}

#[test]
fn ties_go_to_the_smaller_pair() {
    let pieces = table(&[("yz", 3), ("ba", 3), ("bc", 3)]);
    assert_eq!(
        train(pieces, 259, never).unwrap(),
        [(98, 97), (98, 99), (121, 122)]
    );
}

#[test]
fn the_callers_error_ends_the_training() {
    let stopped = train(table(&[("abc", 2)]), 1000, |_| Err("stop"));
    assert_eq!(stopped, Err("stop"));
}

#[test]
fn a_bad_pattern_is_an_error() {
    assert!(matches!(
        Splitter::new("(unclosed"),
        Err(SplitError::Pattern(_))
    ));
}

#[test]
fn an_unknown_id_is_an_error() {
    let model = Model::new(Splitter::new(SPLIT_PATTERN).unwrap(), &[]);
    assert_eq!(model.decode(&[65, 256]), Err(256));
}

#[test]
fn a_long_piece_is_encoded_in_reasonable_steps() {
    let splitter = Splitter::new(SPLIT_PATTERN).unwrap();
    let merges = [(97, 97), (256, 256), (257, 257)];
    let model = Model::new(splitter, &merges);
    let ids = model.encode(&"a".repeat(300_003)).unwrap();
    assert_eq!(ids.len(), 37_500 + 2);
    assert_eq!(ids[37_499..], [258, 256, 97]);
}
