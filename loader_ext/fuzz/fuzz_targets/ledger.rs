#![no_main]
#![allow(missing_docs, reason = "libFuzzer's macro makes a function")]

libfuzzer_sys::fuzz_target!(|input: &[u8]| stoker_loader_fuzz::ledger::check(input));
