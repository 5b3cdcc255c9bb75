//! From what a user wrote to what a backend runs, or a list of what is wrong.
//!
//! The rules stand twice: as CEL in the schemas, so that `kubectl apply` refuses a bad spec with no
//! webhook, and here, for `holdfast lint`, for `holdfast dev` and for objects older than a rule. A
//! test on a real API server holds the two together.

use holdfast_core::Substrate;

use crate::v1alpha1::lock::AccessSpec;

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct FieldError {
    /// The field's path, such as `spec.ttlSeconds`.
    pub field: String,
    /// What is wrong, and what to write instead.
    pub why: String,
}

impl FieldError {
    /// An error about a field.
    pub fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        FieldError { field: field.into(), why: why.into() }
    }
}

/// What a class's configuration depends on beside its spec.
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    /// The substrate of its backend.
    pub substrate: Substrate,
    /// What a deleted class of the same name left behind.
    pub fence_floor: u64,
}

/// A kind of class.
pub trait Validate {
    /// What a valid spec becomes.
    type Config;
    /// The name of the backend it wants.
    fn backend(&self) -> &str;
    /// Its rules of access.
    fn access(&self) -> &[AccessSpec];
    /// Checks every rule.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    fn validate(&self, on: &Resolved) -> Result<Self::Config, Vec<FieldError>>;
}

/// Checks the rules of access of a class.
pub fn check_access(rules: &[AccessSpec]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, rule) in rules.iter().enumerate() {
        let names = rule.service_accounts.iter().enumerate();
        for (j, _) in names.filter(|(_, name)| !is_account(name)) {
            errors.push(FieldError::new(
                format!("spec.access[{i}].serviceAccounts[{j}]"),
                "must be the name of a ServiceAccount: a-z, 0-9, '-' and '.'",
            ));
        }
    }
    errors
}

/// Whether a ServiceAccount can be called so. Roles are named after it.
fn is_account(name: &str) -> bool {
    let ends = |text: &str, at: char| text.starts_with(at) || text.ends_with(at);
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        && !ends(name, '-')
        && !ends(name, '.')
}
