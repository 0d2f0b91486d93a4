//! Counting the pieces of texts that come one after the other, with several threads.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, TrySendError};
use std::thread;

use crate::table::{CountTable, Key, SHORT};
use crate::{SplitError, Splitter};

/// Counts the pieces of one text.
#[inline(always)]
fn count_text(splitter: &Splitter, text: &str, table: &mut CountTable) -> Result<(), SplitError> {
    let bytes = text.as_bytes();
    splitter.cuts(text, |start, end| {
        if end - start <= SHORT {
            table.add_short(Key::short(bytes, start, end), 1);
        } else {
            table.add_long(&bytes[start..end], 1);
        }
    })
}

/// Some texts, end to end in one string: one allocation for all of them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    text: String,
    ends: Vec<usize>,
}

impl Batch {
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all texts together.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.text[start..end])
    }
}

impl<'t> FromIterator<&'t str> for Batch {
    fn from_iter<I: IntoIterator<Item = &'t str>>(texts: I) -> Self {
        let mut batch = Batch::default();
        texts.into_iter().for_each(|text| batch.push(text));
        batch
    }
}

fn count_batch(
    splitter: &Splitter,
    batch: &Batch,
    table: &mut CountTable,
) -> Result<(), SplitError> {
    batch
        .iter()
        .try_for_each(|text| count_text(splitter, text, table))
}

/// Counts the pieces of all batches that `read` gives until it gives None.
///
/// `read` runs on the calling thread. While the queue is full, that thread counts too: so nobody
/// waits, and no more than a few batches are in memory. Each thread has a table of its own; the sum
/// of the tables does not depend on who counted what.
pub fn count<E: From<SplitError>>(
    splitter: &Splitter,
    threads: usize,
    mut read: impl FnMut() -> Result<Option<Batch>, E>,
) -> Result<CountTable, E> {
    let helpers = threads.saturating_sub(1);
    let (give, take) = mpsc::sync_channel::<Batch>(2 * helpers);
    let (take, failed) = (Mutex::new(take), AtomicBool::new(false));
    let count_queue = |table: &mut CountTable| {
        // A copy: threads that share one regex would hand its scratch space round.
        let splitter = splitter.clone();
        while let Some(batch) = next_batch(&take) {
            let counted = count_batch(&splitter, &batch, table);
            counted.inspect_err(|_| failed.store(true, Relaxed))?;
        }
        Ok(())
    };
    let help = || {
        let mut table = CountTable::default();
        count_queue(&mut table).map(|()| table)
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(help)).collect();
        let (give, mut table) = (give, CountTable::default());
        while let Some(batch) = read()? {
            if failed.load(Relaxed) {
                break;
            }
            if let Err(TrySendError::Full(batch)) = give.try_send(batch) {
                count_batch(splitter, &batch, &mut table)?;
            }
        }
        drop(give);
        count_queue(&mut table)?;
        for helper in helpers {
            let counted = helper.join().unwrap_or_else(|panic| resume_unwind(panic));
            table.add_table(&counted?);
        }
        Ok(table)
    })
}

/// Waits for a batch; None when there will be no more.
fn next_batch(take: &Mutex<Receiver<Batch>>) -> Option<Batch> {
    take.lock().ok()?.recv().ok()
}
