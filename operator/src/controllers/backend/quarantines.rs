//! How long ago epochs were raised, by a clock that nobody sets.

use std::{collections::HashMap, sync::Mutex};

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::context::lock;

/// When this operator last raised the epoch of each Backend, by both clocks. A quarantine is written
/// down in the time of the wall, so that another operator can end it. If that clock steps forward, or
/// the machine is resumed, the one who began it still sees all of it through.
#[derive(Default)]
pub struct Raises(Mutex<HashMap<String, (Timestamp, Instant)>>);

impl Raises {
    /// The epoch of a Backend was raised just now.
    pub fn note(&self, backend: &str) {
        lock(&self.0).insert(backend.to_owned(), (Timestamp::now(), Instant::now()));
    }

    /// The Backend is gone.
    pub fn forget(&self, backend: &str) {
        lock(&self.0).remove(backend);
    }

    /// What the clock on the wall says, or would say without its steps forward since the epoch was
    /// raised.
    pub fn lived(&self, backend: &str, now: Timestamp) -> Timestamp {
        let noted = lock(&self.0).get(backend).copied();
        noted.map_or(now, |(at, began)| now.min(at + began.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_steps_forward_is_not_believed_by_who_raised_the_epoch() {
        let (raises, hour) = (Raises::default(), Duration::from_secs(3_600));
        let soon = Timestamp::now() + hour;
        assert_eq!(raises.lived("main", soon), soon);
        raises.note("main");
        assert!(raises.lived("main", soon) < soon - hour / 2);
        assert_eq!(raises.lived("other", soon), soon);
        // One that steps back makes it longer.
        let past = Timestamp::now() - hour;
        assert_eq!(raises.lived("main", past), past);
        raises.forget("main");
        assert_eq!(raises.lived("main", soon), soon);
    }
}
