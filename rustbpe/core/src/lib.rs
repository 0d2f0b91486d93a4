//! Byte-pair encoding: count the pieces of a split, learn merges, encode and decode.
//!
//! ```
//! use rustbpe_core::{Counter, Model, Splitter, train};
//!
//! let splitter = Splitter::new(rustbpe_core::SPLIT_PATTERN).unwrap();
//! let mut counter = Counter::new(splitter.clone());
//! counter.add(&["hello hello world"]).unwrap();
//! let merges = train(counter.into_pieces(), 260, || Ok::<(), ()>(())).unwrap();
//! let model = Model::new(splitter, &merges);
//! assert_eq!(model.decode(&model.encode("hello").unwrap()).unwrap(), b"hello");
//! ```

mod model;
mod split;
mod train;

pub use model::Model;
pub use split::{Counter, SPLIT_PATTERN, SplitError, Splitter};
pub use train::train;

/// Two neighbouring tokens, by id.
pub type Pair = (u32, u32);

/// A distinct piece of text and how often it occurs.
pub type Piece = (Box<[u8]>, u64);
