use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::device::context::{Context, Event, Pinned, Stream};
use crate::device::stand_in::{Schedule, StandIn};

#[test]
fn a_machine_without_the_library_says_so() {
    let error = Driver::open(Some(Path::new("/nowhere/libcuda.so.1"))).unwrap_err();
    assert_eq!(error.kind.code(), "driver_missing");
    assert_eq!(error.file, Path::new("/nowhere/libcuda.so.1"));
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(error.to_string().contains("load to the CPU"), "{error}");
}

#[test]
fn another_library_is_no_driver() {
    // The C library is loaded already, and has none of the functions.
    let error = Driver::open(Some(Path::new("libc.so.6"))).unwrap_err();
    assert_eq!(error.kind, Kind::DriverOutdated { symbol: "cuInit" });
}

#[test]
fn a_failure_has_the_drivers_name_for_it() {
    let stand_in = StandIn::new(1, Schedule::Eager, 0);
    stand_in.fail_call("cuInit", 1, 100);
    let error = stand_in.driver().unwrap_err();
    let expected = "cuInit failed with CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is";
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(error.file, stand_in.path());
}

#[test]
fn a_status_without_a_name_is_a_number() {
    let stand_in = StandIn::new(1, Schedule::Eager, 0);
    stand_in.fail_call("cuInit", 1, 12345);
    let error = stand_in.driver().unwrap_err();
    assert!(error.to_string().contains("a CUresult (12345)"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let stand_in = StandIn::new(2, Schedule::Eager, 0);
    let driver = stand_in.driver().unwrap();
    assert_eq!(driver.device_count(), Ok(2));
    let error = Context::retain(&driver, 2).unwrap_err();
    assert_eq!(error.kind, Kind::DeviceUnknown { ordinal: 2, devices: 2 });
}

#[test]
fn the_callers_context_comes_back() {
    let stand_in = StandIn::new(2, Schedule::Eager, 0);
    stand_in.enter(1);
    let before = stand_in.current();
    let driver = stand_in.driver().unwrap();
    let kept = driver.keep_current().unwrap();
    let context = Context::retain(&driver, 0).unwrap();
    context.make_current().unwrap();
    assert_ne!(stand_in.current(), before);
    drop(kept);
    assert_eq!(stand_in.current(), before);
}

#[test]
fn an_event_is_waited_for_on_a_thread_that_has_no_context() {
    let stand_in = StandIn::new(1, Schedule::Eager, 0);
    let driver = stand_in.driver().unwrap();
    let context = Context::retain(&driver, 0).unwrap();
    let (stream, event) = (Stream::new(&context).unwrap(), Event::new(&context).unwrap());
    event.record(&stream).unwrap();
    assert_eq!(std::thread::spawn(move || event.synchronize()).join().unwrap(), Ok(()));
    assert_eq!(stand_in.misuse(), (0, String::new()));
}

#[test]
fn what_cannot_be_given_back_is_heard_of_later() {
    let stand_in = StandIn::new(1, Schedule::Eager, 0);
    let driver = stand_in.driver().unwrap();
    let context = Context::retain(&driver, 0).unwrap();
    stand_in.fail_call("cuMemFreeHost", 1, 719);
    drop(Pinned::new(&context, 4096).unwrap());
    let error = driver.heard().unwrap_err();
    assert!(error.to_string().contains("cuMemFreeHost failed with CUDA_ERROR_LAUNCH_FAILED"));
    assert_eq!(driver.heard(), Ok(()));
}

/// The stand-in is worth nothing unless it notices what it is there to notice.
#[test]
fn the_stand_in_notices_misuse() {
    let misuse = |expected: &str, provoke: &dyn Fn(&StandIn, &Arc<Context>)| {
        let stand_in = StandIn::new(2, Schedule::Lazy, 0);
        let driver = stand_in.driver().unwrap();
        let context = Context::retain(&driver, 0).unwrap();
        context.make_current().unwrap();
        assert_eq!(stand_in.misuse(), (0, String::new()));
        provoke(&stand_in, &context);
        let (count, first) = stand_in.misuse();
        assert!(count > 0 && first.contains(expected), "{expected}: {count} {first}");
    };
    let send = |context: &Arc<Context>, target: u64, pinned: &Pinned, size_bytes: usize| {
        let stream = Stream::new(context).unwrap();
        // SAFETY: the stand-in keeps all memory for ever.
        let outcome = unsafe { stream.copy(target, pinned, size_bytes) };
        (stream, outcome)
    };
    misuse("leaves its allocation", &|stand_in, context| {
        let target = stand_in.allocate(100);
        let pinned = Pinned::new(context, 200).unwrap();
        assert!(send(context, target, &pinned, 101).1.is_err());
    });
    misuse("while a copy is pending", &|stand_in, context| {
        let target = stand_in.allocate(100);
        let pinned = Pinned::new(context, 100).unwrap();
        let _stream = send(context, target, &pinned, 100);
        drop(pinned);
    });
    misuse("in another context", &|stand_in, context| {
        let stream = Stream::new(context).unwrap();
        let other = Context::retain(&context_driver(stand_in), 1).unwrap();
        other.make_current().unwrap();
        assert!(stream.synchronize().is_err());
        context.make_current().unwrap();
    });
    misuse("of what is not allocated", &|stand_in, _| {
        // SAFETY: the type is that of the driver API.
        let free: extern "C" fn(u64) -> c_int = unsafe { stand_in.function(c"cuMemFree_v2") };
        let target = stand_in.allocate(100);
        assert_eq!(free(target), 0);
        assert_ne!(free(target), 0);
    });
    misuse("died before its streams", &|stand_in, context| {
        let _stream = mem::ManuallyDrop::new(Stream::new(context).unwrap());
        // SAFETY: the type is that of the driver API.
        let release: extern "C" fn(c_int) -> c_int =
            unsafe { stand_in.function(c"cuDevicePrimaryCtxRelease_v2") };
        release(0);
    });
}

fn context_driver(stand_in: &StandIn) -> Arc<Driver> {
    stand_in.driver().unwrap()
}

#[test]
fn memory_is_poisoned_before_and_after_its_life() {
    let stand_in = StandIn::new(1, Schedule::Lazy, 0);
    let driver = stand_in.driver().unwrap();
    let context = Context::retain(&driver, 0).unwrap();
    context.make_current().unwrap();
    let target = stand_in.allocate(4);
    assert_eq!(stand_in.read(target, 4), [0xDB; 4]);
    let mut pinned = Pinned::new(&context, 4).unwrap();
    // SAFETY: nothing copies from it yet.
    unsafe { pinned.bytes() }.copy_from_slice(b"four");
    let stream = Stream::new(&context).unwrap();
    // SAFETY: the stand-in keeps all memory for ever; the source is freed early on purpose.
    unsafe { stream.copy(target, &pinned, 4) }.unwrap();
    drop(pinned);
    stream.synchronize().unwrap();
    assert_eq!(stand_in.read(target, 4), [0xDB; 4]);
}
