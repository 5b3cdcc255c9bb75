//! The transitions as Lua: one source, run as a Function library where the store has Functions and
//! by EVALSHA where it does not.
//!
//! Names carry a hash of the source, so that two versions of it run side by side during a roll-out.

use std::{fmt::Write, sync::LazyLock};

use sha2::{Digest, Sha256};

const CLOCK: &str = include_str!("lua/clock.lua");
const NUMBERS: &str = include_str!("lua/numbers.lua");
const PRELUDE: &str = include_str!("lua/prelude.lua");
const RATELIMIT_PRELUDE: &str = include_str!("lua/ratelimit_prelude.lua");
/// Comes after [`PRELUDE`], whose parts it uses.
const SEMAPHORE_PRELUDE: &str = include_str!("lua/semaphore_prelude.lua");

/// A transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// `lock_acquire.lua`.
    LockAcquire,
    /// `lock_renew.lua`.
    LockRenew,
    /// `lock_release.lua`.
    LockRelease,
    /// `lock_pass_on.lua`.
    LockPassOn,
    /// `lock_cancel.lua`.
    LockCancel,
    /// `lock_beat.lua`.
    LockBeat,
    /// `lock_force_release.lua`.
    LockForceRelease,
    /// `lock_query.lua`.
    LockQuery,
    /// `lock_newest.lua`.
    LockNewest,
    /// `lock_raise.lua`.
    LockRaise,
    /// `ratelimit_check.lua`.
    RatelimitCheck,
    /// `ratelimit_refund.lua`.
    RatelimitRefund,
    /// `ratelimit_release.lua`.
    RatelimitRelease,
    /// `ratelimit_put_back.lua`.
    RatelimitPutBack,
    /// `semaphore_acquire.lua`.
    SemaphoreAcquire,
    /// `semaphore_renew.lua`.
    SemaphoreRenew,
    /// `semaphore_release.lua`.
    SemaphoreRelease,
    /// `semaphore_cancel.lua`.
    SemaphoreCancel,
    /// `semaphore_beat.lua`.
    SemaphoreBeat,
    /// `semaphore_force_release.lua`.
    SemaphoreForceRelease,
    /// `semaphore_query.lua`.
    SemaphoreQuery,
}

impl Transition {
    /// Every one there is, in the order of their numbers.
    pub const ALL: [Transition; 21] = [
        Transition::LockAcquire,
        Transition::LockRenew,
        Transition::LockRelease,
        Transition::LockPassOn,
        Transition::LockCancel,
        Transition::LockBeat,
        Transition::LockForceRelease,
        Transition::LockQuery,
        Transition::LockNewest,
        Transition::LockRaise,
        Transition::RatelimitCheck,
        Transition::RatelimitRefund,
        Transition::RatelimitRelease,
        Transition::RatelimitPutBack,
        Transition::SemaphoreAcquire,
        Transition::SemaphoreRenew,
        Transition::SemaphoreRelease,
        Transition::SemaphoreCancel,
        Transition::SemaphoreBeat,
        Transition::SemaphoreForceRelease,
        Transition::SemaphoreQuery,
    ];

    const fn name(self) -> &'static str {
        match self {
            Transition::LockAcquire => "lock_acquire",
            Transition::LockRenew => "lock_renew",
            Transition::LockRelease => "lock_release",
            Transition::LockPassOn => "lock_pass_on",
            Transition::LockCancel => "lock_cancel",
            Transition::LockBeat => "lock_beat",
            Transition::LockForceRelease => "lock_force_release",
            Transition::LockQuery => "lock_query",
            Transition::LockNewest => "lock_newest",
            Transition::LockRaise => "lock_raise",
            Transition::RatelimitCheck => "ratelimit_check",
            Transition::RatelimitRefund => "ratelimit_refund",
            Transition::RatelimitRelease => "ratelimit_release",
            Transition::RatelimitPutBack => "ratelimit_put_back",
            Transition::SemaphoreAcquire => "semaphore_acquire",
            Transition::SemaphoreRenew => "semaphore_renew",
            Transition::SemaphoreRelease => "semaphore_release",
            Transition::SemaphoreCancel => "semaphore_cancel",
            Transition::SemaphoreBeat => "semaphore_beat",
            Transition::SemaphoreForceRelease => "semaphore_force_release",
            Transition::SemaphoreQuery => "semaphore_query",
        }
    }

    const fn body(self) -> &'static str {
        match self {
            Transition::LockAcquire => include_str!("lua/lock_acquire.lua"),
            Transition::LockRenew => include_str!("lua/lock_renew.lua"),
            Transition::LockRelease => include_str!("lua/lock_release.lua"),
            Transition::LockPassOn => include_str!("lua/lock_pass_on.lua"),
            Transition::LockCancel => include_str!("lua/lock_cancel.lua"),
            Transition::LockBeat => include_str!("lua/lock_beat.lua"),
            Transition::LockForceRelease => include_str!("lua/lock_force_release.lua"),
            Transition::LockQuery => include_str!("lua/lock_query.lua"),
            Transition::LockNewest => include_str!("lua/lock_newest.lua"),
            Transition::LockRaise => include_str!("lua/lock_raise.lua"),
            Transition::RatelimitCheck => include_str!("lua/ratelimit_check.lua"),
            Transition::RatelimitRefund => include_str!("lua/ratelimit_refund.lua"),
            Transition::RatelimitRelease => include_str!("lua/ratelimit_release.lua"),
            Transition::RatelimitPutBack => include_str!("lua/ratelimit_put_back.lua"),
            Transition::SemaphoreAcquire => include_str!("lua/semaphore_acquire.lua"),
            Transition::SemaphoreRenew => include_str!("lua/semaphore_renew.lua"),
            Transition::SemaphoreRelease => include_str!("lua/semaphore_release.lua"),
            Transition::SemaphoreCancel => include_str!("lua/semaphore_cancel.lua"),
            Transition::SemaphoreBeat => include_str!("lua/semaphore_beat.lua"),
            Transition::SemaphoreForceRelease => include_str!("lua/semaphore_force_release.lua"),
            Transition::SemaphoreQuery => include_str!("lua/semaphore_query.lua"),
        }
    }

    /// What a plain script of it starts with, after the clock and numbers: a script parses all of its text each time it is loaded.
    const fn prelude(self) -> &'static [&'static str] {
        match self {
            Transition::LockAcquire
            | Transition::LockRenew
            | Transition::LockRelease
            | Transition::LockPassOn
            | Transition::LockCancel
            | Transition::LockBeat
            | Transition::LockForceRelease
            | Transition::LockQuery
            | Transition::LockNewest
            | Transition::LockRaise => &[PRELUDE],
            Transition::RatelimitCheck
            | Transition::RatelimitRefund
            | Transition::RatelimitRelease
            | Transition::RatelimitPutBack => &[RATELIMIT_PRELUDE],
            Transition::SemaphoreAcquire
            | Transition::SemaphoreRenew
            | Transition::SemaphoreRelease
            | Transition::SemaphoreCancel
            | Transition::SemaphoreBeat
            | Transition::SemaphoreForceRelease
            | Transition::SemaphoreQuery => &[PRELUDE, SEMAPHORE_PRELUDE],
        }
    }

    /// What a Function may do. A full store must still let go of what it has: that frees memory. Those
    /// that look at the epoch read its marker, which in a cluster is in another slot of their server.
    const fn flags(self) -> &'static str {
        match self {
            Transition::RatelimitCheck => "",
            Transition::LockAcquire | Transition::SemaphoreAcquire => "'allow-cross-slot-keys'",
            Transition::LockRenew
            | Transition::LockRelease
            | Transition::LockPassOn
            | Transition::LockCancel
            | Transition::LockBeat
            | Transition::LockForceRelease
            | Transition::LockRaise
            | Transition::SemaphoreRenew
            | Transition::SemaphoreRelease
            | Transition::SemaphoreCancel
            | Transition::SemaphoreBeat
            | Transition::SemaphoreForceRelease => "'allow-oom', 'allow-cross-slot-keys'",
            Transition::RatelimitRefund
            | Transition::RatelimitRelease
            | Transition::RatelimitPutBack => "'allow-oom'",
            Transition::LockNewest => "'no-writes', 'allow-cross-slot-keys'",
            Transition::LockQuery | Transition::SemaphoreQuery => "'no-writes'",
        }
    }
}

/// The scripts in both forms.
#[derive(Debug)]
pub struct Scripts {
    library: String,
    source: String,
    functions: Vec<String>,
    scripts: Vec<Script>,
}

/// A transition as a plain script.
#[derive(Debug)]
pub struct Script {
    /// What EVAL takes.
    pub code: String,
    /// What EVALSHA takes.
    pub sha1: String,
}

impl Scripts {
    /// What makes numbers to texts. Tests run it as a server of 32 bits would.
    #[doc(hidden)]
    pub fn numbers() -> &'static str {
        NUMBERS
    }

    /// The scripts of this version.
    pub fn shared() -> &'static Scripts {
        static SHARED: LazyLock<Scripts> = LazyLock::new(|| Scripts::compose(CLOCK));
        &SHARED
    }

    /// The scripts with another `store_ms()`: tests inject the store's time.
    pub fn compose(clock: &str) -> Scripts {
        let parts = [clock, NUMBERS, PRELUDE, RATELIMIT_PRELUDE, SEMAPHORE_PRELUDE];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        for transition in Transition::ALL {
            hash.update(transition.body());
        }
        let version: String = hash.finalize().iter().take(4).map(|b| format!("{b:02x}")).collect();
        let library = format!("holdfast_{version}");
        let functions: Vec<String> =
            Transition::ALL.iter().map(|t| format!("{library}_{}", t.name())).collect();
        let mut source = format!("#!lua name={library}\n{}", parts.concat());
        for (transition, function) in Transition::ALL.iter().zip(&functions) {
            // Writing to a string cannot fail.
            let _ = write!(
                source,
                "redis.register_function{{ function_name = '{function}', flags = {{ {} }}, \
                 callback = function(KEYS, ARGV)\n{}end }}\n",
                transition.flags(),
                transition.body(),
            );
        }
        let scripts = Transition::ALL
            .iter()
            .map(|t| {
                let code = format!("{clock}{NUMBERS}{}{}", t.prelude().concat(), t.body());
                let sha1 = redis::Script::new(&code).get_hash().to_owned();
                Script { code, sha1 }
            })
            .collect();
        Scripts { library, source, functions, scripts }
    }

    /// The library's name.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// What FUNCTION LOAD takes.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The name of a transition's function.
    pub fn function(&self, transition: Transition) -> &str {
        &self.functions[transition as usize]
    }

    /// A transition as a plain script.
    pub fn script(&self, transition: Transition) -> &Script {
        &self.scripts[transition as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_has_other_names() {
        let (ours, theirs) = (Scripts::shared(), Scripts::compose("local function store_ms() end"));
        assert_ne!(ours.library(), theirs.library());
        for transition in Transition::ALL {
            assert_ne!(ours.function(transition), theirs.function(transition));
            assert!(ours.function(transition).ends_with(transition.name()));
        }
    }
}
