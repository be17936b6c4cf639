//! The ledger of a fetch: a number of chunks, which of them are there, and what happens then.

use std::time::{Duration, Instant};

use stoker_loader_core::fetch::ledger::{Ledger, Next};

use crate::bytes::Bytes;

const HEDGE_AFTER: Duration = Duration::from_secs(4);
const MAX_HOLDERS: usize = 2;

/// What the checker knows of a chunk: whether it is there, and who has had it since when.
#[derive(Default)]
struct Chunk {
    done: bool,
    holders: Vec<usize>,
    since: Option<Instant>,
}

/// Lets streams take, bring and fail chunks in any order.
pub fn check(input: &[u8]) {
    let mut input = Bytes(input);
    let count = usize::from(input.byte() % 24);
    let there = input.number();
    let is_there = |chunk: usize| there >> chunk & 1 == 1;
    let mut ledger = Ledger::new((0..count).map(is_there), HEDGE_AFTER);
    let chunk = |chunk| Chunk { done: is_there(chunk), ..Chunk::default() };
    let mut chunks: Vec<Chunk> = (0..count).map(chunk).collect();
    let mut now = Instant::now();
    while !input.is_empty() {
        let (step, who) = (input.byte(), input.byte());
        match step % 4 {
            0 => now += Duration::from_secs(u64::from(who % 8)),
            1 => take(&mut ledger, &mut chunks, usize::from(who % 4), now),
            event => end(&mut ledger, &mut chunks, who, event == 2),
        }
        assert_eq!(ledger.is_finished(), chunks.iter().all(|chunk| chunk.done));
        for (number, chunk) in chunks.iter().enumerate() {
            assert_eq!(ledger.is_done(number), chunk.done);
        }
    }
    // However it went so far, it can be finished.
    for number in 0..count {
        while let Some(&holder) = chunks[number].holders.first() {
            ledger.failed(number, holder);
            chunks[number].holders.remove(0);
        }
    }
    while let Next::Take(number) = ledger.next(0, now) {
        assert!(ledger.arrived(number) && !chunks[number].done);
        chunks[number].done = true;
    }
    assert!(ledger.is_finished() && chunks.iter().all(|chunk| chunk.done));
}

fn take(ledger: &mut Ledger, chunks: &mut [Chunk], source: usize, now: Instant) {
    let missing = chunks.iter().position(|chunk| !chunk.done && chunk.holders.is_empty());
    let alone = |chunk: &&Chunk| !chunk.done && (1..MAX_HOLDERS).contains(&chunk.holders.len());
    let oldest = chunks.iter().filter(alone).filter_map(|chunk| chunk.since).min();
    match ledger.next(source, now) {
        Next::Take(number) => {
            assert_eq!(Some(number), missing, "chunks go out in order");
            chunks[number] = Chunk { done: false, holders: vec![source], since: Some(now) };
        }
        Next::Hedge(number) => {
            let chunk = &mut chunks[number];
            assert!(missing.is_none() && !chunk.done && chunk.holders.len() < MAX_HOLDERS);
            assert_eq!(chunk.since, oldest, "the slowest is hedged");
            assert!(chunk.since.is_some_and(|since| since + HEDGE_AFTER <= now));
            chunk.holders.push(source);
        }
        Next::Wait(until) => {
            assert!(missing.is_none() && chunks.iter().any(|chunk| !chunk.done));
            assert_eq!(until, oldest.map(|since| since + HEDGE_AFTER));
            assert!(until.is_none_or(|until| until > now));
        }
        Next::Finished => assert!(chunks.iter().all(|chunk| chunk.done)),
    }
}

/// A stream that has a chunk ends: it brings it, or fails.
fn end(ledger: &mut Ledger, chunks: &mut [Chunk], which: u8, brings: bool) {
    let mut held = chunks
        .iter()
        .enumerate()
        .flat_map(|(number, chunk)| chunk.holders.iter().map(move |&holder| (number, holder)));
    let count = held.clone().count();
    let Some((number, holder)) = held.nth(usize::from(which) % count.max(1)) else { return };
    let chunk = &mut chunks[number];
    let place = chunk.holders.iter().position(|other| *other == holder);
    chunk.holders.remove(place.expect("it has the chunk"));
    if brings {
        assert_eq!(ledger.arrived(number), !chunk.done);
        chunk.done = true;
    } else {
        ledger.failed(number, holder);
    }
}
