//! The last stage of a load: bytes of files to the memory of one or several GPUs.
//!
//! `library` finds the driver's functions at run time, so nothing here needs CUDA to build;
//! `driver` calls them and gives every failure its name; `context` owns what a device lends
//! (its primary context, streams, events, pinned memory); `ring` is the bounded buffer between
//! those who read files and the devices' copy engines, `numa` keeps both near the device, and
//! `copy` is the pipeline over it all.

mod context;
mod copy;
mod driver;
mod library;
mod numa;
mod ring;

#[cfg(test)]
mod stand_in;

pub use copy::{Pipeline, Transfer};
pub use driver::Driver;
pub use library::{Address, SONAME};
pub use ring::{DEFAULT_SHAPE, Shape};
