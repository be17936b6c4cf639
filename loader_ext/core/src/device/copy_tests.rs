use std::path::Path;
use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;
use crate::device::library::Functions;
use crate::device::ring::Reuse;
use crate::device::stand_in::{Living, Schedule, StandIn};
use crate::error::{Error, Kind};

/// Small, so that a load goes round the ring several times.
const SHAPE: Shape = Shape { slots: 4, slot_bytes: 4096 };
const SOURCE_BYTES: usize = 9 * 4096 + 123;
const READERS: usize = 2;

/// Bytes in memory, and how often each was asked for.
struct Bytes {
    bytes: Vec<u8>,
    read_bytes: AtomicU64,
    fails_at: Option<u64>,
}

impl Bytes {
    fn new(seed: u8) -> Self {
        let byte = |index: usize| (index % 251) as u8 ^ (index / 4096) as u8 ^ seed;
        let bytes = (0..SOURCE_BYTES).map(byte).collect();
        Self { bytes, read_bytes: AtomicU64::new(0), fails_at: None }
    }
}

impl Source for Bytes {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.read_bytes.fetch_add(into.len() as u64, Ordering::Relaxed);
        if self.fails_at.is_some_and(|at| (offset..offset + into.len() as u64).contains(&at)) {
            return Err(source_error());
        }
        into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
        Ok(())
    }
}

fn source_error() -> Error {
    let kind = Kind::Io { action: "read", reason: "torn".into(), errno: Some(libc::EIO) };
    Error::new(Path::new("source"), kind)
}

/// A stand-in and memory on each of its devices.
struct Bench {
    stand_in: StandIn,
    targets: Vec<u64>,
}

impl Bench {
    fn new(devices: usize, schedule: Schedule, seed: u64) -> Self {
        let stand_in = StandIn::new(devices, schedule, seed);
        let allocate = |device| {
            stand_in.enter(device as i32);
            stand_in.allocate(SOURCE_BYTES)
        };
        let targets = (0..devices).map(allocate).collect();
        Self { stand_in, targets }
    }

    fn whole<'a>(&self, source: &'a dyn Source) -> Vec<Transfer<'a>> {
        let destinations = self.targets.iter().copied().enumerate().collect();
        vec![Transfer { source, offset: 0, size_bytes: SOURCE_BYTES as u64, destinations }]
    }

    /// A load as the binding does it: everything made, used and given back.
    fn load(&self, source: &dyn Source, watch: impl FnMut(u64) -> Result<()>) -> Result<u64> {
        let ordinals: Vec<u32> = (0..self.targets.len() as u32).collect();
        let driver = self.stand_in.driver()?;
        let mut pipeline = Pipeline::new(&driver, &ordinals, SHAPE)?;
        // SAFETY: the stand-in's memory is used by this test alone.
        let outcome = unsafe { pipeline.copy(&self.whole(source), READERS, watch) };
        let closed = pipeline.close();
        outcome.and_then(|bytes| closed.map(|()| bytes))
    }

    fn holds(&self, source: &Bytes) -> bool {
        let mut targets = self.targets.iter();
        targets.all(|&target| self.stand_in.read(target, SOURCE_BYTES) == source.bytes)
    }

    /// What is alive beyond what this value made itself.
    fn leaked(&self) -> Living {
        let living = self.stand_in.living();
        let own = self.targets.len() as u64;
        let (contexts, allocations) = (living.contexts - own, living.allocations - own);
        Living { contexts, allocations, ..living }
    }

    fn assert_clean(&self) {
        assert_eq!(self.leaked(), Living::default());
        assert_eq!(self.stand_in.misuse(), (0, String::new()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]
    #[test]
    fn every_device_has_the_bytes_whatever_is_late(
        devices in prop::sample::select(vec![1usize, 2, 4]),
        schedule in prop::sample::select(vec![Schedule::Eager, Schedule::Lazy, Schedule::Random]),
        seed: u64,
    ) {
        let bench = Bench::new(devices, schedule, seed);
        let source = Bytes::new(seed as u8);
        let mut seen = Vec::new();
        let watch = |done| { seen.push(done); Ok(()) };
        prop_assert_eq!(bench.load(&source, watch), Ok(SOURCE_BYTES as u64));
        prop_assert!(bench.holds(&source));
        prop_assert!(seen.is_sorted());
        prop_assert_eq!(seen.last(), Some(&(SOURCE_BYTES as u64)));
        // Each byte is read once, however many devices get it, and the ring is pinned once.
        prop_assert_eq!(source.read_bytes.into_inner(), SOURCE_BYTES as u64);
        prop_assert_eq!(bench.stand_in.calls("cuMemHostAlloc"), SHAPE.slots as u64);
        bench.assert_clean();
    }
}

/// The mutation: one wait is left out, and the stand-in shows it as wrong bytes.
#[test]
fn a_slot_that_does_not_wait_for_its_event_is_seen() {
    for (reuse, right) in [(Reuse::AfterEvents, true), (Reuse::Unsynchronised, false)] {
        let bench = Bench::new(2, Schedule::Lazy, 0);
        let source = Bytes::new(1);
        let driver = bench.stand_in.driver().unwrap();
        let mut pipeline = Pipeline::new(&driver, &[0, 1], SHAPE).unwrap();
        pipeline.ring.reuse = reuse;
        // SAFETY: the stand-in's memory is used by this test alone.
        let outcome = unsafe { pipeline.copy(&bench.whole(&source), READERS, |_| Ok(())) };
        assert_eq!(outcome, Ok(SOURCE_BYTES as u64));
        assert_eq!(bench.holds(&source), right, "{reuse:?}");
    }
}

/// Each call of each function fails once: its own error, nothing lost, nothing misused.
#[test]
fn every_call_may_fail() {
    const LAUNCH_FAILED: i32 = 719;
    let mut failed = Vec::new();
    for &symbol in Functions::NAMES {
        for nth in 1.. {
            let bench = Bench::new(2, Schedule::Lazy, nth);
            let source = Bytes::new(2);
            bench.stand_in.fail_call(symbol, nth, LAUNCH_FAILED);
            let Err(error) = bench.load(&source, |_| Ok(())) else {
                assert!(bench.holds(&source));
                break;
            };
            match error.kind {
                Kind::DriverCall { call, status, reason } => {
                    assert_eq!((call, status), (symbol, LAUNCH_FAILED));
                    assert!(reason.starts_with("CUDA_ERROR_LAUNCH_FAILED (719)"), "{reason}");
                }
                other => panic!("{symbol}, call {nth}: {other:?}"),
            }
            failed.push(symbol);
            let leaked = bench.leaked();
            let expected = match symbol {
                // What the driver refuses to take back stays, and only that.
                "cuDevicePrimaryCtxRelease_v2" => Living { contexts: 1, ..Living::default() },
                "cuStreamDestroy_v2" => Living { streams: 1, ..Living::default() },
                "cuEventDestroy_v2" => Living { events: 1, ..Living::default() },
                "cuMemFreeHost" => Living { pinned: 1, ..Living::default() },
                _ => Living::default(),
            };
            assert_eq!(leaked, expected, "{symbol}, call {nth}");
            if leaked == Living::default() {
                assert_eq!(bench.stand_in.misuse(), (0, String::new()), "{symbol}, call {nth}");
            }
        }
    }
    failed.dedup();
    // These are called only when something else has failed.
    let rest = ["cuGetErrorName", "cuGetErrorString", "cuCtxSynchronize"];
    let expected: Vec<_> = Functions::NAMES.iter().filter(|name| !rest.contains(name)).collect();
    assert_eq!(failed.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_copy_that_fails_on_the_way_is_an_error() {
    for sticky in [false, true] {
        for nth in 1..=20 {
            let bench = Bench::new(2, Schedule::Random, nth);
            let source = Bytes::new(3);
            bench.stand_in.fail_copy(nth, 700, sticky);
            let error = bench.load(&source, |_| Ok(())).unwrap_err();
            assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{error}");
            assert_eq!(bench.stand_in.misuse(), (0, String::new()));
            let leaked = bench.leaked();
            // A device that no longer says whether it copies keeps what it may be reading.
            let pinned = if sticky { SHAPE.slots as u64 } else { 0 };
            let contexts = leaked.contexts;
            assert_eq!(leaked, Living { pinned, contexts, ..Living::default() });
        }
    }
}

#[test]
fn the_watcher_stops_it_and_nothing_is_under_way() {
    let cancelled = Error::new(Path::new(""), Kind::Cancelled);
    // The last word is the watcher's, when everything has arrived.
    for enough in [0, 1, SOURCE_BYTES as u64 / 2, SOURCE_BYTES as u64] {
        let bench = Bench::new(2, Schedule::Lazy, enough);
        let watch = |done| if done >= enough { Err(cancelled.clone()) } else { Ok(()) };
        assert_eq!(bench.load(&Bytes::new(4), watch), Err(cancelled.clone()));
        bench.assert_clean();
    }
}

#[test]
fn who_watches_finds_the_context_that_was_current() {
    let bench = Bench::new(2, Schedule::Random, 0);
    bench.stand_in.enter(0);
    let before = bench.stand_in.current();
    let watch = |_| {
        assert_eq!(bench.stand_in.current(), before);
        Ok(())
    };
    assert_eq!(bench.load(&Bytes::new(4), watch), Ok(SOURCE_BYTES as u64));
    assert_eq!(bench.stand_in.current(), before);
}

#[test]
fn a_source_that_fails_stops_all() {
    for fails_at in [0, 5 * 4096, SOURCE_BYTES as u64 - 1] {
        let bench = Bench::new(2, Schedule::Lazy, 0);
        let source = Bytes { fails_at: Some(fails_at), ..Bytes::new(5) };
        assert_eq!(bench.load(&source, |_| Ok(())), Err(source_error()));
        bench.assert_clean();
    }
}

#[test]
fn what_is_on_its_way_is_not_read_before_it_is_there() {
    struct Late(Bytes, AtomicU64);
    impl Source for Late {
        fn is_ready(&self, offset: u64, size_bytes: u64, _: &mut Silence) -> Result<bool> {
            let there = self.1.fetch_add(1000, Ordering::Relaxed);
            Ok(offset + size_bytes <= there)
        }

        fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
            assert!(offset + into.len() as u64 <= self.1.load(Ordering::Relaxed));
            self.0.read(offset, into)
        }
    }
    let bench = Bench::new(2, Schedule::Random, 12);
    let source = Late(Bytes::new(12), AtomicU64::new(0));
    assert_eq!(bench.load(&source, |_| Ok(())), Ok(SOURCE_BYTES as u64));
    assert!(bench.holds(&source.0));
    bench.assert_clean();
}

#[test]
fn a_reader_that_panics_leaves_nothing_under_way() {
    struct Panics(Bytes);
    impl Source for Panics {
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
            assert_ne!(offset, 5 * 4096, "on purpose");
            self.0.read(offset, into)
        }
    }
    let bench = Bench::new(2, Schedule::Lazy, 0);
    let source = Panics(Bytes::new(6));
    let load = std::panic::AssertUnwindSafe(|| bench.load(&source, |_| Ok(())));
    assert!(std::panic::catch_unwind(load).is_err());
    bench.assert_clean();
}

#[test]
fn ranges_go_where_they_belong_and_a_pipeline_can_be_used_again() {
    let bench = Bench::new(2, Schedule::Random, 7);
    let (first, second) = (Bytes::new(7), Bytes::new(8));
    let driver = bench.stand_in.driver().unwrap();
    let mut pipeline = Pipeline::new(&driver, &[0, 1], SHAPE).unwrap();
    let torn = Bytes { fails_at: Some(5 * 4096), ..Bytes::new(9) };
    // SAFETY: the stand-in's memory is used by this test alone.
    let outcome = unsafe { pipeline.copy(&bench.whole(&torn), READERS, |_| Ok(())) };
    assert_eq!(outcome, Err(source_error()));
    let before = bench.stand_in.read(bench.targets[0], SOURCE_BYTES);
    for _ in 0..3 {
        let transfer = |source, offset, lane: usize, place| Transfer {
            source,
            offset,
            size_bytes: 10_000,
            destinations: vec![(lane, bench.targets[lane] + place)],
        };
        let transfers = [transfer(&first, 4000, 0, 1), transfer(&second, 77, 1, 20_000)];
        // SAFETY: the stand-in's memory is used by this test alone.
        let outcome = unsafe { pipeline.copy(&transfers, READERS, |_| Ok(())) };
        assert_eq!(outcome, Ok(20_000));
        let found = bench.stand_in.read(bench.targets[0] + 1, 10_000);
        assert_eq!(found, first.bytes[4000..14_000]);
        let found = bench.stand_in.read(bench.targets[1] + 20_000, 10_000);
        assert_eq!(found, second.bytes[77..10_077]);
        let after = bench.stand_in.read(bench.targets[0], SOURCE_BYTES);
        assert_eq!((after[0], &after[10_001..]), (before[0], &before[10_001..]));
    }
    assert_eq!(bench.stand_in.calls("cuMemHostAlloc"), SHAPE.slots as u64);
    assert_eq!(pipeline.close(), Ok(()));
    bench.assert_clean();
}

#[test]
fn an_address_of_another_device_is_refused_before_any_copy() {
    let bench = Bench::new(2, Schedule::Eager, 0);
    let source = Bytes::new(9);
    let driver = bench.stand_in.driver().unwrap();
    let mut pipeline = Pipeline::new(&driver, &[0, 1], SHAPE).unwrap();
    let size_bytes = SOURCE_BYTES as u64;
    for address in [bench.targets[1], bench.targets[0] + 1, 4096] {
        let destinations = vec![(0, address)];
        let transfers = [Transfer { source: &source, offset: 0, size_bytes, destinations }];
        // SAFETY: nothing is written.
        let error = unsafe { pipeline.copy(&transfers, READERS, |_| Ok(())) }.unwrap_err();
        assert_eq!(error.kind, Kind::DeviceAddress { ordinal: 0, address, size_bytes });
    }
    assert_eq!(bench.stand_in.calls("cuMemcpyHtoDAsync_v2"), 0);
}

#[test]
fn the_callers_context_is_left_as_it_was() {
    let bench = Bench::new(2, Schedule::Eager, 0);
    let before = bench.stand_in.current();
    assert_ne!(before, 0);
    assert!(bench.load(&Bytes::new(10), |_| Ok(())).is_ok());
    assert_eq!(bench.stand_in.current(), before);
}

#[test]
fn nothing_to_copy_is_no_work() {
    let bench = Bench::new(1, Schedule::Lazy, 0);
    let driver = bench.stand_in.driver().unwrap();
    let mut pipeline = Pipeline::new(&driver, &[0], SHAPE).unwrap();
    let source = Bytes::new(11);
    let nowhere = vec![(0, 0)];
    let empty = Transfer { source: &source, offset: 5, size_bytes: 0, destinations: nowhere };
    for transfers in [vec![], vec![empty]] {
        // SAFETY: no byte has a destination.
        assert_eq!(unsafe { pipeline.copy(&transfers, READERS, |_| Ok(())) }, Ok(0));
    }
}

#[test]
fn chunks_end_where_slots_do() {
    let source = Bytes::new(0);
    let transfer = |offset, size_bytes| Transfer {
        source: &source,
        offset,
        size_bytes,
        destinations: vec![(0, 0)],
    };
    let found = chunks(&[transfer(100, 8200), transfer(4096, 4096), transfer(5, 0)], 4096);
    let chunk = |transfer, offset, size_bytes| Chunk { transfer, offset, size_bytes };
    let expected =
        [chunk(0, 100, 3996), chunk(0, 4096, 4096), chunk(0, 8192, 108), chunk(1, 4096, 4096)];
    assert_eq!(found, expected);
}
