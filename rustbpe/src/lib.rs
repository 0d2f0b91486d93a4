//! The Python face of `rustbpe-core`: types and errors are translated here, nothing is computed.

use std::sync::{Arc, Mutex};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyString};
use rayon::prelude::*;
use rustbpe_core::{Counter, Model, SPLIT_PATTERN, SplitError, Splitter, train};

/// A buffer is counted when it holds so many bytes, even if it holds few texts.
const BUFFER_BYTES: usize = 64 << 20;

fn value_error(error: SplitError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A Python string as UTF-8; half a surrogate pair becomes U+FFFD, as in tiktoken.
fn utf8(text: &Bound<'_, PyString>) -> PyResult<String> {
    if let Ok(text) = text.to_str() {
        return Ok(text.to_owned());
    }
    let wide = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
    wide.call_method1("decode", ("utf-16", "replace"))?
        .extract()
}

/// Moves up to `n` texts from the iterator into a buffer; fewer only at its end or when large.
fn fill(texts: &mut Bound<'_, PyIterator>, n: usize) -> PyResult<Vec<String>> {
    let (mut buffer, mut bytes) = (Vec::new(), 0);
    while buffer.len() < n && bytes < BUFFER_BYTES {
        let Some(item) = texts.next() else { break };
        let item = item?;
        let Ok(text) = item.cast::<PyString>() else {
            let kind = item.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "texts must be str, not {kind}"
            )));
        };
        buffer.push(utf8(text)?);
        bytes += buffer.last().map_or(0, String::len);
    }
    Ok(buffer)
}

/// A byte-level BPE tokenizer without special tokens; it knows only the 256 bytes at first.
#[pyclass(frozen, module = "rustbpe")]
struct Tokenizer {
    model: Mutex<Arc<Model>>,
}

impl Tokenizer {
    /// The present model. Training puts another in its place; it never changes one.
    fn model(&self) -> Arc<Model> {
        self.model
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        let splitter = Splitter::new(SPLIT_PATTERN).map_err(value_error)?;
        Ok(Tokenizer {
            model: Mutex::new(Arc::new(Model::new(splitter, &[]))),
        })
    }

    /// Learn merges from an iterable of texts until there are `vocab_size` tokens.
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None))]
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: i64,
        buffer_size: i64,
        pattern: Option<&str>,
    ) -> PyResult<()> {
        if vocab_size < 256 {
            let message = format!("vocab_size must be at least 256, got {vocab_size}");
            return Err(PyValueError::new_err(message));
        }
        if buffer_size < 1 {
            let message = format!("buffer_size must be at least 1, got {buffer_size}");
            return Err(PyValueError::new_err(message));
        }
        if iterator.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err(
                "texts must be many strings, not one string",
            ));
        }
        let splitter = Splitter::new(pattern.unwrap_or(SPLIT_PATTERN)).map_err(value_error)?;
        let mut counter = Counter::new(splitter.clone());
        let mut texts = iterator.try_iter()?;
        loop {
            let buffer = fill(&mut texts, buffer_size as usize)?;
            if buffer.is_empty() {
                break;
            }
            py.detach(|| counter.add(&buffer)).map_err(value_error)?;
            py.check_signals()?;
        }
        let check = || Python::attach(|py| py.check_signals());
        let merges = py.detach(|| train(counter.into_pieces(), vocab_size as usize, check))?;
        let model = Arc::new(Model::new(splitter, &merges));
        *self
            .model
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = model;
        Ok(())
    }

    /// Token bytes and rank (the id), in order of rank.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, usize)> {
        let model = self.model();
        let tokens = model.tokens().iter().enumerate();
        tokens
            .map(|(rank, token)| (PyBytes::new(py, token), rank))
            .collect()
    }

    /// The split pattern.
    fn get_pattern(&self) -> String {
        self.model().pattern().to_owned()
    }

    /// Number of tokens: bytes and merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.model().tokens().len()
    }

    /// Ids of a text.
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<Vec<u32>> {
        let (text, model) = (utf8(text)?, self.model());
        py.detach(|| model.encode(&text)).map_err(value_error)
    }

    /// Ids of each text, encoded by several threads.
    fn batch_encode(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyString>>,
    ) -> PyResult<Vec<Vec<u32>>> {
        let texts: Vec<String> = texts.iter().map(utf8).collect::<PyResult<_>>()?;
        let model = self.model();
        let encode = || {
            texts
                .par_iter()
                .map(|text| model.encode(text))
                .collect::<Result<_, _>>()
        };
        py.detach(encode).map_err(value_error)
    }

    /// Text of ids; bytes that are no UTF-8 as U+FFFD.
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        let bytes = self.model().decode(&ids);
        let bytes = bytes.map_err(|id| PyValueError::new_err(format!("no token has id {id}")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Byte-pair encoding in Rust: a trainer, and an encoder to check it with.
#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()
}
