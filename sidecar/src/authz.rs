//! Who may do what on which key: the bundle's access rules, before any call to a store.
//!
//! This keeps honest apps honest. What keeps others out is the store itself: Roles by
//! `resourceNames` on Leases, ACL users on Redis.

use holdfast_api::bundle::AccessRule;
pub use holdfast_api::bundle::permits;

/// Whether a ServiceAccount may do anything at all.
pub fn may_anything(rules: &[AccessRule], account: &str) -> bool {
    rules.is_empty() || rules.iter().any(|rule| rule.service_accounts.iter().any(|n| n == account))
}

#[cfg(test)]
mod tests {
    use holdfast_api::bundle::Verb;
    use holdfast_core::Key;

    use super::*;

    #[test]
    fn a_rule_binds_account_verb_and_prefix_together() {
        let rule = |account: &str, verbs: &[Verb], prefix: &str| AccessRule {
            service_accounts: vec![account.into()],
            verbs: verbs.to_vec(),
            key_prefix: prefix.into(),
        };
        let key = |text: &str| Key::new(text).unwrap();
        assert!(permits(&[], "anyone", Verb::ForceRelease, &key("k")));
        let rules = [rule("app", &[Verb::Acquire], "order/"), rule("admin", &[], "")];
        assert!(permits(&rules, "app", Verb::Acquire, &key("order/1")));
        assert!(!permits(&rules, "app", Verb::Acquire, &key("invoice/1")));
        assert!(!permits(&rules, "app", Verb::ForceRelease, &key("order/1")));
        assert!(!permits(&rules, "other", Verb::Read, &key("order/1")));
        assert!(permits(&rules, "admin", Verb::ForceRelease, &key("x")));
    }
}
