//! A stand-in for `libcuda.so.1`: as lazy as the real driver may be, and stricter.
//!
//! Copies run on a thread of their stream and read their source only when that thread gets to them
//! ([`stream`]): at once, after a while, or not before somebody waits. Memory is poisoned when it
//! is allocated and when it is freed, and stays until the test ends ([`memory`]), so a copy that
//! comes too late is a wrong byte or a counted misuse and never a crash. Every call may be
//! made to fail ([`machine`]). [`driver`] exports the part of the driver API that the loader calls,
//! [`control`] what tests say and ask.
//!
//! A process has one machine for each file of the library that it loads, as it has one real driver:
//! tests copy the file and load the copy to have a machine of their own.

mod control;
mod driver;
mod machine;
mod memory;
mod status;
mod stream;
