//! Memory of devices and pinned memory of the host: poisoned before and after its life.

use std::collections::BTreeMap;
use std::ops::{Bound, Deref, DerefMut};
use std::ptr;

/// What memory holds that nobody has written yet, or that was freed.
const POISON: u8 = 0xDB;
/// Device addresses begin where no host memory is, so that following one on the host is a crash.
const DEVICE_SPACE: u64 = 0x7100_0000_0000_0000;
/// Between two allocations lies at least this much that belongs to nobody.
const GUARD_BYTES: u64 = 4096;

/// One allocation. Its bytes outlive it: whoever comes too late finds poison.
struct Allocation {
    /// `None` for pinned memory, which every device reaches.
    device: Option<usize>,
    bytes: Bytes,
    freed: bool,
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Bytes that begin on a page, as all memory of a driver does.
struct Bytes {
    pages: Box<[Page]>,
    size_bytes: usize,
}

impl Bytes {
    fn poisoned(size_bytes: usize) -> Self {
        let page = Page([POISON; 4096]);
        let pages = vec![page; size_bytes.div_ceil(4096).max(1)].into_boxed_slice();
        Self { pages, size_bytes }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: pages are arrays of bytes without a gap, at least so many, and ours.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.size_bytes) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.size_bytes) }
    }
}

/// All allocations by the address that callers know them by.
#[derive(Default)]
pub struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    next: u64,
    /// Whether addresses of unknown host memory pass for device memory.
    pub unified: bool,
}

impl Memory {
    /// Allocates memory of a device and returns its address.
    pub fn allocate(&mut self, device: usize, size_bytes: usize) -> u64 {
        let address = DEVICE_SPACE + self.next;
        self.next += (size_bytes as u64).next_multiple_of(GUARD_BYTES) + GUARD_BYTES;
        let bytes = Bytes::poisoned(size_bytes);
        self.allocations.insert(address, Allocation { device: Some(device), bytes, freed: false });
        address
    }

    /// Allocates pinned memory; the address is one of the host's.
    pub fn pin(&mut self, size_bytes: usize) -> *mut u8 {
        let mut bytes = Bytes::poisoned(size_bytes);
        let start = bytes.as_mut_ptr();
        self.allocations.insert(start as u64, Allocation { device: None, bytes, freed: false });
        start
    }

    /// Poisons an allocation of the kind; false if there is none at the address, or no more.
    pub fn free(&mut self, address: u64, pinned: bool) -> bool {
        match self.allocations.get_mut(&address) {
            Some(found) if !found.freed && found.device.is_none() == pinned => {
                found.bytes.fill(POISON);
                found.freed = true;
                true
            }
            _ => false,
        }
    }

    /// Gives all memory back to the system, which only the end of a test may do.
    pub fn forget(&mut self) {
        self.allocations.clear();
    }

    /// Whether a range lies in one living allocation of a device (`None`: in pinned memory).
    pub fn holds(&self, address: u64, size_bytes: usize, device: Option<usize>) -> bool {
        match self.find(address) {
            Some((start, found)) => {
                let end = start + found.bytes.len() as u64;
                !found.freed && found.device == device && address + size_bytes as u64 <= end
            }
            None => self.unified && device.is_some() && address < DEVICE_SPACE,
        }
    }

    /// The device whose living memory an address is in.
    pub fn device_at(&self, address: u64) -> Option<usize> {
        self.find(address).filter(|(_, found)| !found.freed).and_then(|(_, found)| found.device)
    }

    /// The length of the living allocation that begins at an address.
    pub fn size_bytes(&self, address: u64) -> usize {
        self.allocations.get(&address).filter(|found| !found.freed).map_or(0, |a| a.bytes.len())
    }

    /// Living allocations of devices, and of pinned memory.
    pub fn living(&self) -> (usize, usize) {
        let living = |pinned: bool| {
            let all = self.allocations.values();
            all.filter(|found| !found.freed && found.device.is_none() == pinned).count()
        };
        (living(false), living(true))
    }

    /// Freed allocations that somebody wrote to afterwards.
    pub fn written_after_free(&self) -> usize {
        let all = self.allocations.values();
        all.filter(|found| found.freed && found.bytes.iter().any(|&byte| byte != POISON)).count()
    }

    /// Copies from the host to a device: the moment at which the source is read.
    ///
    /// # Safety
    /// `source` is readable for `size_bytes`, and in unified mode an address that no allocation
    /// holds is writable for as many.
    pub unsafe fn write(&mut self, address: u64, source: *const u8, size_bytes: usize) {
        let target = match self.find_mut(address) {
            Some((start, found)) => found.bytes[(address - start) as usize..].as_mut_ptr(),
            None => address as *mut u8,
        };
        // SAFETY: `holds` was asked when the copy was queued, allocations do not go back to the
        // system before the test's end, and the caller answers for the rest. `copy` since pinned memory may be both.
        unsafe { ptr::copy(source, target, size_bytes) };
    }

    /// Copies from a device to the host; false if the range is not one living allocation.
    ///
    /// # Safety
    /// `target` is writable for `size_bytes`.
    pub unsafe fn read(&self, target: *mut u8, address: u64, size_bytes: usize) -> bool {
        let Some((start, found)) = self.find(address) else { return false };
        let begin = (address - start) as usize;
        let Some(bytes) = found.bytes.get(begin..begin + size_bytes) else { return false };
        if found.freed || found.device.is_none() {
            return false;
        }
        // SAFETY: the caller answers for `target`; it is no allocation of a device.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, size_bytes) };
        true
    }

    fn find(&self, address: u64) -> Option<(u64, &Allocation)> {
        let below = (Bound::Unbounded, Bound::Included(address));
        let (&start, found) = self.allocations.range(below).next_back()?;
        (address < start + found.bytes.len() as u64).then_some((start, found))
    }

    fn find_mut(&mut self, address: u64) -> Option<(u64, &mut Allocation)> {
        let below = (Bound::Unbounded, Bound::Included(address));
        let (&start, found) = self.allocations.range_mut(below).next_back()?;
        (address < start + found.bytes.len() as u64).then_some((start, found))
    }
}
