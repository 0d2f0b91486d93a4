//! Trains on a file whose documents are separated by NUL, and says where the time goes.
use rustbpe_core::{Batch, SplitError, Splitter, count, train};
use std::time::Instant;

fn rss() -> String {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    s.lines()
        .filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS"))
        .map(|l| l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1000)
        .map(|n| format!("{n} MB "))
        .collect()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (vocab, threads) = (args[2].parse().unwrap(), args[3].parse().unwrap());
    let text = std::fs::read_to_string(&args[1]).unwrap();
    let pattern = rustbpe_core::SPLIT_PATTERN;
    let splitter = if args.get(4).is_some() {
        Splitter::with_regex(pattern)
    } else {
        Splitter::new(pattern)
    }
    .unwrap();
    println!("loaded {}", rss());
    let t = Instant::now();
    let mut n = 0;
    for doc in text.split('\0') {
        splitter.cuts(doc, |_, _| n += 1).unwrap();
    }
    println!("split only {:?} pieces {n} (1 thread)", t.elapsed());
    let t = Instant::now();
    let mut docs = text.split('\0');
    let table = count(&splitter, threads, || {
        let mut batch = Batch::default();
        while batch.bytes() < 1 << 20 {
            let Some(doc) = docs.next() else { break };
            batch.push(doc)
        }
        Ok::<_, SplitError>((!batch.is_empty()).then_some(batch))
    })
    .unwrap();
    println!(
        "count {:?} distinct {} bytes {} {}",
        t.elapsed(),
        table.len(),
        table.bytes(),
        rss()
    );
    drop(docs);
    drop(text);
    let t = Instant::now();
    let merges = train(table, vocab, |_| Ok::<_, ()>(())).unwrap();
    println!("merge {:?} {} {}", t.elapsed(), merges.len(), rss());
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
    for (a, b) in merges {
        let t = [&tokens[a as usize][..], &tokens[b as usize]].concat();
        tokens.push(t)
    }
    let mut out = Vec::new();
    for t in tokens {
        out.extend((t.len() as u32).to_le_bytes());
        out.extend(t)
    }
    std::fs::write("/tmp/tokens.bin", out).unwrap();
}
