//! Byte-pair encoding: count the pieces of a split, learn merges, encode and decode.
//!
//! ```
//! use rustbpe_core::{Batch, Model, SPLIT_PATTERN, SplitError, Splitter, count, train};
//!
//! let splitter = Splitter::new(SPLIT_PATTERN)?;
//! let mut batches = vec![Batch::from_iter(["hello hello", "world"])].into_iter();
//! let pieces = count(&splitter, 1, || Ok::<_, SplitError>(batches.next()))?;
//! let merges = train(pieces, 260, |_| Ok::<_, SplitError>(()))?;
//! let model = Model::new(splitter, &merges);
//! assert_eq!(model.decode(&model.encode("hello")?).unwrap(), b"hello");
//! # Ok::<_, SplitError>(())
//! ```
//!
//! In the order of reading: `class` (what kind of character), `scan` and `split` (where to cut),
//! `table` and `count` (how often each piece), `text` and `train` (merges), `encode` and `model`.

mod class;
mod count;
mod encode;
mod model;
mod scan;
mod split;
mod table;
mod text;
mod train;

pub use count::{Batch, count};
pub use model::Model;
pub use split::{GPT2_PATTERNS, SPLIT_PATTERN, SplitError, Splitter, THREE_DIGITS};
pub use table::CountTable;
pub use train::{train, train_above};

/// Two neighbouring tokens, by id.
pub type Pair = (u32, u32);
