//! Which back end a load takes: names, preferences and the choice, all pure.

use std::path::Path;

use crate::error::{Error, Kind, Result};

/// A way to bring in the bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Pages of the page cache, brought in by `MADV_POPULATE_READ` and shared with all processes.
    Populate,
    /// `O_DIRECT` reads queued by io_uring: no copy, and nothing stays in the page cache.
    IoUring,
    /// `O_DIRECT` reads by a thread each.
    DirectPread,
    /// Reads through the page cache by a thread each, which copy.
    Pread,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Populate, Self::IoUring, Self::DirectPread, Self::Pread];

    /// What users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Populate => "populate",
            Self::IoUring => "io_uring",
            Self::DirectPread => "direct_pread",
            Self::Pread => "pread",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }
}

/// What the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever is best here.
    Auto,
    /// Reads past the page cache, by io_uring if that is allowed.
    Direct,
    /// This one and no other.
    Only(Backend),
}

impl Wanted {
    /// By name: `auto`, `direct` or a back end's; `path` is whose bytes are asked for.
    ///
    /// Errors: `BackendUnknown`.
    pub fn from_name(path: &Path, name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "direct" => Ok(Self::Direct),
            _ => Backend::from_name(name)
                .map(Self::Only)
                .ok_or_else(|| Error::new(path, Kind::BackendUnknown { name: name.to_owned() })),
        }
    }
}

/// Where the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Memory of this process: its own, or the page cache's.
    Host,
    /// Pinned slots, on their way to a device.
    Device,
}

/// What the page cache has of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// At least half: reading past it would bring in again what is in memory.
    Mostly,
    /// Less than half.
    Hardly,
    /// Nobody tells; or they are just being written, and so arrive in it.
    Unknown,
}

impl Cached {
    /// The answer of the kernel, put so.
    pub fn of(resident_bytes: u64, checkpoint_bytes: u64) -> Self {
        if resident_bytes >= checkpoint_bytes.div_ceil(2) { Self::Mostly } else { Self::Hardly }
    }
}

/// The back ends that a load may take, the best first.
///
/// To the host populating is best even when nothing is cached: its pages serve every process, and
/// they are attached without a copy. A device gets a copy in any case, and bytes that are not
/// cached reach its slots with one copy less past the page cache.
pub fn candidates(wanted: Wanted, sink: Sink, cached: Cached) -> &'static [Backend] {
    use Backend::{DirectPread, IoUring, Populate, Pread};
    match (wanted, sink, cached) {
        (Wanted::Auto, Sink::Device, Cached::Hardly) => &[IoUring, DirectPread, Populate, Pread],
        (Wanted::Auto, _, _) => &[Populate, Pread],
        (Wanted::Direct, _, _) => &[IoUring, DirectPread],
        (Wanted::Only(Populate), _, _) => &[Populate],
        (Wanted::Only(IoUring), _, _) => &[IoUring],
        (Wanted::Only(DirectPread), _, _) => &[DirectPread],
        (Wanted::Only(Pread), _, _) => &[Pread],
    }
}

/// A back end, and why those that would have been better are refused here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The one to take.
    pub backend: Backend,
    /// The others that were tried, with the reason.
    pub refused: Vec<(Backend, String)>,
}

/// Tries candidates in turn; `attempt` says why one is refused here, or `None` if it works.
///
/// Errors: `BackendRefused` if none does, and what `attempt` returns.
pub fn choose(
    path: &Path,
    candidates: &[Backend],
    mut attempt: impl FnMut(Backend) -> Result<Option<String>>,
) -> Result<Choice> {
    let mut refused = Vec::new();
    for &backend in candidates {
        match attempt(backend)? {
            None => return Ok(Choice { backend, refused }),
            Some(reason) => refused.push((backend, reason)),
        }
    }
    let reasons = refused.iter().map(|(backend, reason)| format!("{}: {reason}", backend.name()));
    let reasons = reasons.collect::<Vec<_>>().join("; ");
    Err(Error::new(path, Kind::BackendRefused { reasons }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Backend::{DirectPread, IoUring, Populate, Pread};

    const PAGE_CACHE: &[Backend] = &[Populate, Pread];
    const DIRECT: &[Backend] = &[IoUring, DirectPread];

    #[test]
    fn what_is_cached_is_read_from_there_and_the_rest_past_it_to_devices_alone() {
        use Cached::{Hardly, Mostly, Unknown};
        for cached in [Mostly, Hardly, Unknown] {
            assert_eq!(candidates(Wanted::Auto, Sink::Host, cached), PAGE_CACHE);
            for sink in [Sink::Host, Sink::Device] {
                assert_eq!(candidates(Wanted::Direct, sink, cached), DIRECT);
                for backend in Backend::ALL {
                    assert_eq!(candidates(Wanted::Only(backend), sink, cached), [backend]);
                }
            }
        }
        assert_eq!(candidates(Wanted::Auto, Sink::Device, Mostly), PAGE_CACHE);
        assert_eq!(candidates(Wanted::Auto, Sink::Device, Unknown), PAGE_CACHE);
        let all = [DIRECT, PAGE_CACHE].concat();
        assert_eq!(candidates(Wanted::Auto, Sink::Device, Hardly), all);
    }

    #[test]
    fn half_is_mostly() {
        assert_eq!(Cached::of(0, 0), Cached::Mostly);
        assert_eq!(Cached::of(4, 9), Cached::Hardly);
        assert_eq!(Cached::of(5, 9), Cached::Mostly);
    }

    #[test]
    fn the_first_that_works_is_taken_and_the_others_say_why_not() {
        let path = Path::new("f");
        let only =
            |works: Backend| move |b: Backend| Ok((b != works).then(|| format!("no {}", b.name())));
        let choice = choose(path, DIRECT, only(DirectPread)).unwrap();
        let refused = vec![(IoUring, "no io_uring".to_owned())];
        assert_eq!(choice, Choice { backend: DirectPread, refused });
        assert_eq!(choose(path, DIRECT, only(IoUring)).unwrap().refused, []);
        assert_eq!(
            choose(path, DIRECT, only(Pread)).unwrap_err().to_string(),
            "f: cannot be read so here (io_uring: no io_uring; direct_pread: no direct_pread); \
             ask for source=\"auto\""
        );
        let broken = Error::new(path, Kind::Cancelled);
        assert_eq!(choose(path, DIRECT, |_| Err(broken.clone())), Err(broken));
    }

    #[test]
    fn names_are_those_of_the_enumeration() {
        let path = Path::new("f");
        for backend in Backend::ALL {
            let named = Wanted::from_name(path, backend.name());
            assert_eq!(named, Ok(Wanted::Only(backend)));
        }
        assert_eq!(Wanted::from_name(path, "auto"), Ok(Wanted::Auto));
        assert_eq!(Wanted::from_name(path, "direct"), Ok(Wanted::Direct));
        let kind = Wanted::from_name(path, "Direct").unwrap_err().kind;
        assert_eq!(kind, Kind::BackendUnknown { name: "Direct".into() });
    }
}
