//! A trained tokenizer: what its tokens are, encoding and decoding.

use std::sync::OnceLock;

use crate::encode::Encoder;
use crate::{Pair, SplitError, Splitter};

/// A tokenizer without special tokens: token `i` below 256 is the byte `i`.
#[derive(Debug)]
pub struct Model {
    splitter: Splitter,
    tokens: Vec<Box<[u8]>>,
    /// Made by the first call that encodes; a model that is only trained needs none.
    encoder: OnceLock<Encoder>,
}

impl Model {
    /// A model from merges in order; a merge may only name tokens that are older than itself.
    pub fn new(splitter: Splitter, merges: &[Pair]) -> Self {
        let mut tokens: Vec<Box<[u8]>> = (0..=255u8).map(|byte| Box::from([byte])).collect();
        for &(left, right) in merges {
            let both = [&*tokens[left as usize], &*tokens[right as usize]];
            tokens.push(both.concat().into());
        }
        Model::from_tokens(splitter, tokens)
    }

    /// A model from the bytes of its tokens in order of rank; the first 256 are the single bytes.
    pub fn from_tokens(splitter: Splitter, tokens: Vec<Box<[u8]>>) -> Self {
        Model {
            splitter,
            tokens,
            encoder: OnceLock::new(),
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

    fn encoder(&self) -> &Encoder {
        self.encoder.get_or_init(|| Encoder::new(&self.tokens))
    }

    /// Ids of `text`: in each piece the oldest merge that fits is made first.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, SplitError> {
        self.encoder().encode(&self.splitter, text)
    }

    /// Ids of each text, by several threads.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        threads: usize,
    ) -> Result<Vec<Vec<u32>>, SplitError> {
        self.encoder().encode_batch(&self.splitter, texts, threads)
    }

    /// Bytes of `ids`; the error is the first id that is no token.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, u32> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.tokens.get(id as usize).ok_or(id)?);
        }
        Ok(bytes)
    }
}
