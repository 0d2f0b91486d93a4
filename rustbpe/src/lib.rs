//! The Python face of `rustbpe-core`: types and errors are translated here, nothing is computed.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyIterator, PyList, PyString, PyType};
use rustbpe_core::{Batch, Model, SPLIT_PATTERN, SplitError, Splitter, count, train};

/// A batch is handed over when it holds so many bytes, even if it holds few texts.
const BATCH_BYTES: usize = 1 << 20;

/// How often a progress function is called at most, and how soon Ctrl-C is noticed.
const PAUSE: Duration = Duration::from_millis(100);

/// What can end the training before its time: the split, or anything Python raises.
enum Failure {
    Split(SplitError),
    Python(PyErr),
}

impl From<SplitError> for Failure {
    fn from(error: SplitError) -> Self {
        Failure::Split(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Failure::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Split(error) => value_error(error),
            Failure::Python(error) => error,
        }
    }
}

fn value_error(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A Python string as UTF-8; half a surrogate pair becomes U+FFFD, as in tiktoken.
fn utf8<'a>(text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, str>> {
    if let Ok(text) = text.to_str() {
        return Ok(Cow::Borrowed(text));
    }
    let wide = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
    let text = wide.call_method1("decode", ("utf-16", "replace"))?;
    Ok(Cow::Owned(text.extract()?))
}

/// The string that an item must be.
fn string<'a, 'py>(item: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyString>> {
    item.cast::<PyString>()
        .map_err(|_| match item.get_type().name() {
            Ok(kind) => PyTypeError::new_err(format!("texts must be str, not {kind}")),
            Err(error) => error,
        })
}

/// The number of threads that was asked for, or one for each core this process may use.
fn threads_or_all(threads: Option<i64>) -> PyResult<usize> {
    match threads {
        None => Ok(available_parallelism().map_or(1, usize::from)),
        Some(n @ 1..) => Ok(n as usize),
        Some(n) => Err(value_error(format!("threads must be at least 1, got {n}"))),
    }
}

/// Tells Python how far the training is, and asks it whether Ctrl-C was pressed.
struct Progress {
    call: Option<Py<PyAny>>,
    last: Instant,
}

impl Progress {
    fn tell(&self, py: Python<'_>, stage: &str, done: usize, of: Option<usize>) -> PyResult<()> {
        if let Some(call) = &self.call {
            call.call1(py, (stage, done, of))?;
        }
        py.check_signals()
    }

    /// Whether it is time again.
    fn due(&mut self) -> bool {
        let due = self.last.elapsed() >= PAUSE;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

/// Moves up to `n` texts from the iterator into a batch; None at its end.
fn next_batch(texts: &mut Bound<'_, PyIterator>, n: usize) -> PyResult<Option<Batch>> {
    let mut batch = Batch::default();
    while batch.len() < n && batch.bytes() < BATCH_BYTES {
        let Some(item) = texts.next() else { break };
        batch.push(&utf8(string(&item?)?)?);
    }
    Ok((!batch.is_empty()).then_some(batch))
}

/// A model, and its ids as Python objects: a number made once is shared by all lists.
struct Trained {
    model: Model,
    numbers: OnceLock<Vec<Py<PyInt>>>,
}

impl Trained {
    fn new(model: Model) -> Arc<Self> {
        let numbers = OnceLock::new();
        Arc::new(Trained { model, numbers })
    }

    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let numbers = self.numbers.get_or_init(|| {
            let ids = 0..self.model.tokens().len();
            ids.map(|id| PyInt::new(py, id).unbind()).collect()
        });
        PyList::new(py, ids.iter().map(|&id| numbers[id as usize].bind(py)))
    }
}

/// A byte-level BPE tokenizer without special tokens; it knows only the 256 bytes at first.
#[pyclass(frozen, module = "rustbpe")]
struct Tokenizer {
    trained: Mutex<Arc<Trained>>,
}

impl Tokenizer {
    /// The present model. Training puts another in its place; it never changes one.
    fn trained(&self) -> Arc<Trained> {
        let trained = self.trained.lock();
        trained.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, model: Model) {
        let mut trained = self.trained.lock().unwrap_or_else(PoisonError::into_inner);
        *trained = Trained::new(model);
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        let splitter = Splitter::new(SPLIT_PATTERN).map_err(value_error)?;
        let trained = Mutex::new(Trained::new(Model::new(splitter, &[])));
        Ok(Tokenizer { trained })
    }

    /// A tokenizer from the bytes and ranks of its tokens, as `get_mergeable_ranks` gives them.
    #[classmethod]
    #[pyo3(signature = (ranks, pattern=None))]
    fn from_mergeable_ranks(
        _class: &Bound<'_, PyType>,
        ranks: Vec<(Vec<u8>, i64)>,
        pattern: Option<&str>,
    ) -> PyResult<Self> {
        let splitter = Splitter::new(pattern.unwrap_or(SPLIT_PATTERN)).map_err(value_error)?;
        let mut tokens = vec![Box::default(); ranks.len()];
        for (token, rank) in ranks {
            match usize::try_from(rank)
                .ok()
                .and_then(|rank| tokens.get_mut(rank))
            {
                Some(place) => *place = token.into_boxed_slice(),
                None => return Err(value_error(format!("rank {rank} is out of range"))),
            }
        }
        let bytes = (0..=255).map(|byte| Box::from([byte]));
        if tokens.iter().any(|token| token.is_empty())
            || !tokens.iter().take(256).cloned().eq(bytes)
        {
            return Err(value_error(
                "ranks must be 0, 1, 2, ... and begin with the 256 bytes",
            ));
        }
        let trained = Mutex::new(Trained::new(Model::from_tokens(splitter, tokens)));
        Ok(Tokenizer { trained })
    }

    /// Learn merges from an iterable of texts until there are `vocab_size` tokens.
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None, *, threads=None, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: i64,
        buffer_size: i64,
        pattern: Option<&str>,
        threads: Option<i64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        at_least(256, "vocab_size", vocab_size)?;
        at_least(1, "buffer_size", buffer_size)?;
        if iterator.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err(
                "texts must be many strings, not one string",
            ));
        }
        let threads = threads_or_all(threads)?;
        let splitter = Splitter::new(pattern.unwrap_or(SPLIT_PATTERN)).map_err(value_error)?;
        let texts = iterator.try_iter()?.unbind();
        let mut progress = Progress {
            call: progress,
            last: Instant::now(),
        };
        let mut bytes = 0;
        // Everything runs without the interpreter lock; it is taken for a moment to read texts.
        let merges = py.detach(|| {
            let read = || {
                Python::attach(|py| {
                    let batch = next_batch(
                        &mut texts.clone_ref(py).into_bound(py),
                        buffer_size as usize,
                    )?;
                    bytes += batch.as_ref().map_or(0, Batch::bytes);
                    if batch.is_none() || progress.due() {
                        progress.tell(py, "read", bytes, None)?;
                    }
                    Ok(batch)
                })
            };
            let pieces = count::<Failure>(&splitter, threads, read)?;
            let all = vocab_size as usize - 256;
            let tick = |done| match progress.due() {
                true => Python::attach(|py| progress.tell(py, "merge", done, Some(all))),
                false => Ok(()),
            };
            let merges = train(pieces, vocab_size as usize, tick)?;
            Python::attach(|py| progress.tell(py, "merge", merges.len(), Some(all)))?;
            Ok::<_, Failure>(merges)
        })?;
        self.replace(Model::new(splitter, &merges));
        Ok(())
    }

    /// Token bytes and rank (the id), in order of rank.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, usize)> {
        let trained = self.trained();
        let tokens = trained.model.tokens().iter().zip(0..);
        tokens
            .map(|(token, rank)| (PyBytes::new(py, token), rank))
            .collect()
    }

    /// The split pattern.
    fn get_pattern(&self) -> String {
        self.trained().model.pattern().to_owned()
    }

    /// Number of tokens: bytes and merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.trained().model.tokens().len()
    }

    /// Ids of a text.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (text, trained) = (utf8(text)?, self.trained());
        let ids = py
            .detach(|| trained.model.encode(&text))
            .map_err(value_error)?;
        trained.list(py, &ids)
    }

    /// Ids of each text, encoded by several threads.
    #[pyo3(signature = (texts, *, threads=None))]
    fn batch_encode<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyAny>>,
        threads: Option<i64>,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let texts = texts.iter().map(string).collect::<PyResult<Vec<_>>>()?;
        let texts = texts.into_iter().map(utf8).collect::<PyResult<Vec<_>>>()?;
        let (trained, threads) = (self.trained(), threads_or_all(threads)?);
        let ids = py.detach(|| trained.model.encode_batch(&texts, threads));
        let ids = ids.map_err(value_error)?;
        ids.iter().map(|ids| trained.list(py, ids)).collect()
    }

    /// Text of ids; bytes that are no UTF-8 as U+FFFD.
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        let bytes = self.trained().model.decode(&ids);
        let bytes = bytes.map_err(|id| value_error(format!("no token has id {id}")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn at_least(least: i64, name: &str, n: i64) -> PyResult<()> {
    if n < least {
        return Err(value_error(format!(
            "{name} must be at least {least}, got {n}"
        )));
    }
    Ok(())
}

/// The pieces into which a pattern cuts a text.
#[pyfunction]
#[pyo3(signature = (text, pattern=None))]
fn split(
    py: Python<'_>,
    text: &Bound<'_, PyString>,
    pattern: Option<&str>,
) -> PyResult<Vec<String>> {
    let splitter = Splitter::new(pattern.unwrap_or(SPLIT_PATTERN)).map_err(value_error)?;
    let (text, mut pieces) = (utf8(text)?, Vec::new());
    let cut = || splitter.split(&text, |piece| pieces.push(piece.to_owned()));
    py.detach(cut).map_err(value_error)?;
    Ok(pieces)
}

/// Byte-pair encoding in Rust: a trainer and an encoder.
#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add_class::<Tokenizer>()
}
