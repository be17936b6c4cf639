//! Asks what the object is, before any of it is fetched.

use std::path::Path;

use reqwest::Client;
use tokio::time;

use super::backoff::backoff;
use super::origin::{self, Description, Failure};
use super::{Limits, WATCH_EVERY, Wanted};
use crate::error::{Error, Kind, Result};

/// What the first origin that answers says of the object. Errors: why the last one did not.
pub fn describe(
    wanted: &Wanted,
    destination: &Path,
    limits: &Limits,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Description> {
    let client = origin::client(destination, limits.stall, &wanted.origins)?;
    origin::drive(destination, async {
        let asking = ask_all(&client, wanted, limits);
        tokio::pin!(asking);
        loop {
            tokio::select! {
                found = &mut asking => return found.map_err(|kind| Error::new(destination, kind)),
                () = time::sleep(WATCH_EVERY) => watch(0, 0)?,
            }
        }
    })
}

async fn ask_all(
    client: &Client,
    wanted: &Wanted,
    limits: &Limits,
) -> std::result::Result<Description, Kind> {
    let mut last = Kind::NoSource;
    for attempt in 1..=limits.attempts {
        let mut hopeless = true;
        for origin in &wanted.origins {
            match origin::describe(client, origin).await {
                Ok(found) => return Ok(found),
                Err(Failure::Permanent(kind)) => last = kind,
                Err(Failure::Transient(kind, _)) => (hopeless, last) = (false, kind),
            }
        }
        if hopeless || attempt == limits.attempts {
            break;
        }
        time::sleep(backoff(attempt)).await;
    }
    Err(last)
}
