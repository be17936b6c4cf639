//! How long to wait after a failure.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// The bound of the first pause; it doubles with each further failure.
const BACKOFF: Duration = Duration::from_millis(100);
pub const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// A random pause up to a bound that doubles (*full jitter*: M. Brooker, "Exponential Backoff And
/// Jitter", AWS Architecture Blog, 2015), so that streams that failed together do not return
/// together.
pub fn backoff(failures: u32) -> Duration {
    let bound = BACKOFF.saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
    let random = RandomState::new().build_hasher().finish();
    bound.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_random_up_to_a_bound_that_doubles() {
        for failures in 0..70 {
            let bound = Duration::from_millis(100 << failures.min(16)).min(MAX_BACKOFF);
            let pauses: Vec<_> = (0..64).map(|_| backoff(failures)).collect();
            assert!(pauses.iter().all(|pause| *pause <= bound));
            assert!(pauses.iter().any(|pause| *pause > bound / 4));
            assert!(pauses.iter().any(|pause| *pause < bound / 4 * 3));
        }
    }
}
