//! The processors next to a device: slots and their readers belong on its NUMA node.

use std::fs;
use std::io;
use std::mem;
use std::path::Path;

/// Where Linux tells of devices and nodes.
pub const SYSFS: &str = "/sys";

/// Processors that a thread may run on.
#[derive(Debug, Clone, Copy)]
pub struct Processors(libc::cpu_set_t);

impl Processors {
    /// Those of the one node that all devices (by PCI address) hang on; `None` if they hang on
    /// several, or if the machine does not say.
    pub fn next_to(sysfs: &Path, addresses: &[String]) -> Option<Self> {
        let node_of = |address: &String| {
            let name = address.to_ascii_lowercase();
            let path = sysfs.join("bus/pci/devices").join(name).join("numa_node");
            // -1, which is no node, is what a machine with only one says.
            fs::read_to_string(path).ok()?.trim().parse::<u32>().ok()
        };
        let nodes = addresses.iter().map(node_of).collect::<Option<Vec<_>>>()?;
        let node = *nodes.first()?;
        if nodes.iter().any(|&other| other != node) {
            return None;
        }
        let path = sysfs.join(format!("devices/system/node/node{node}/cpulist"));
        Self::of(&parse_list(&fs::read_to_string(path).ok()?)?)
    }

    /// These processors; `None` if there are none, or more than the kernel's set holds.
    fn of(numbers: &[usize]) -> Option<Self> {
        // SAFETY: all zeros is the empty set.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        for &number in numbers {
            if number >= libc::CPU_SETSIZE as usize {
                return None;
            }
            // SAFETY: the number is within the set (above).
            unsafe { libc::CPU_SET(number, &mut set) };
        }
        (!numbers.is_empty()).then_some(Self(set))
    }

    /// Those of the calling thread now.
    fn current() -> io::Result<Self> {
        // SAFETY: all zeros is the empty set.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        // SAFETY: the set is ours and as long as said; 0 is the calling thread.
        let status = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
        if status == 0 { Ok(Self(set)) } else { Err(io::Error::last_os_error()) }
    }

    fn apply(&self) -> io::Result<()> {
        // SAFETY: the set is ours and as long as said; 0 is the calling thread.
        let status = unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &self.0) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn both(&self, other: &Self) -> Option<Self> {
        let all = 0..libc::CPU_SETSIZE as usize;
        // SAFETY: the numbers are within both sets.
        let has = |set, number| unsafe { libc::CPU_ISSET(number, set) };
        let numbers: Vec<usize> =
            all.filter(|&number| has(&self.0, number) && has(&other.0, number)).collect();
        Self::of(&numbers)
    }
}

/// The calling thread on some processors, until the value goes.
///
/// A thread may lack the right, or all of them may be denied to it: it then runs where it ran,
/// which is slower on a large machine and just as right.
pub struct Bound {
    before: Option<Processors>,
}

impl Bound {
    /// Moves the thread to those of the processors that it may run on.
    pub fn to(processors: Option<&Processors>) -> Self {
        let narrow = |processors: &Processors| {
            let before = Processors::current().ok()?;
            before.both(processors)?.apply().ok()?;
            Some(before)
        };
        Self { before: processors.and_then(narrow) }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It was the thread's own a moment ago; if an administrator has taken processors away
            // since, the kernel has chosen others already.
            let _ = before.apply();
        }
    }
}

/// Reads the kernel's lists: "0-3,8" is 0, 1, 2, 3 and 8.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= libc::CPU_SETSIZE as usize {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of two nodes: this thread's processors are on node 1, others on node 0.
    fn machine(sysfs: &Path, nodes: &[(&str, &str)]) {
        for (address, node) in nodes {
            let device = sysfs.join("bus/pci/devices").join(address);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("numa_node"), format!("{node}\n")).unwrap();
        }
        for (node, list) in [("node0", "1000-1023"), ("node1", "0-999")] {
            let node = sysfs.join("devices/system/node").join(node);
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("cpulist"), format!("{list}\n")).unwrap();
        }
    }

    fn count(processors: &Processors) -> i32 {
        // SAFETY: the set is a valid one.
        unsafe { libc::CPU_COUNT(&processors.0) }
    }

    #[test]
    fn lists_are_the_kernels() {
        assert_eq!(parse_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list("7"), Some(vec![7]));
        assert_eq!(parse_list("3-1"), Some(vec![]));
        for wrong in ["", "a", "1-", "1-2-3", "0-18446744073709551615"] {
            assert_eq!(parse_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn devices_of_one_node_have_its_processors() {
        let root = tempfile::tempdir().unwrap();
        let nodes = [("0000:3b:00.0", "1"), ("0000:3c:00.0", "1"), ("0000:af:00.0", "0")];
        machine(root.path(), &[&nodes[..], &[("0000:01:00.0", "-1")]].concat());
        let next_to = |addresses: &[&str]| {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            Processors::next_to(root.path(), &addresses).map(|found| count(&found))
        };
        assert_eq!(next_to(&["0000:3B:00.0", "0000:3C:00.0"]), Some(1000));
        assert_eq!(next_to(&["0000:AF:00.0"]), Some(24));
        assert_eq!(next_to(&["0000:3B:00.0", "0000:AF:00.0"]), None);
        assert_eq!(next_to(&["0000:01:00.0"]), None);
        assert_eq!(next_to(&["0000:77:00.0"]), None);
        assert_eq!(next_to(&[]), None);
    }

    #[test]
    fn a_thread_is_bound_for_a_while_and_to_what_it_may_use() {
        let before = Processors::current().unwrap();
        let all: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
            // SAFETY: the numbers are within the set.
            .filter(|&number| unsafe { libc::CPU_ISSET(number, &before.0) })
            .collect();
        let wanted = Processors::of(&[all[0], 1023]).unwrap();
        let bound = Bound::to(Some(&wanted));
        assert_eq!(count(&Processors::current().unwrap()), 1);
        drop(bound);
        assert_eq!(count(&Processors::current().unwrap()), count(&before));
        // Processors that nobody has are no reason to fail.
        let _bound = Bound::to(Processors::of(&[1023]).as_ref());
        assert_eq!(count(&Processors::current().unwrap()), count(&before));
    }
}
