//! Who may read the bundle and touch which Leases, as Roles: the API server enforces what `access`
//! says, not only the sidecar. Every rule on Leases names them, but for the one below.
//!
//! - Every account of the namespace: its bundle, and its pods (a sidecar watches its own).
//! - Every account: the Leases of classes whose `access` is empty. Where the namespace says that they
//!   are watched all at once, every account may also watch, and so read, those that it is not given,
//!   but take none.
//! - An account that `access` names: the Leases of those classes, by its verbs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use holdfast_api::{
    bundle::{AccessRule, BUNDLE_CONFIG_MAP, Bundle, BundleClass, ClassConfig, Verb},
    names::LABEL_MANAGED,
};
use holdfast_backend::lease::names;
use holdfast_core::{Key, Kind, Substrate};
use k8s_openapi::{
    api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt};

use crate::{apply, context::Context, error::Error, pipeline::lease_keys};

/// The Role of every account, on the bundle and on pods.
const EVERYBODY: &str = "holdfast-sidecar";
/// The Role of every account, on Leases.
const OPEN: &str = "holdfast-leases";
const RBAC: &str = "rbac.authorization.k8s.io";
/// What a sidecar does to a Lease it may take. Never create, never delete: see
/// `holdfast_backend::lease`.
const TAKE: &[&str] = &["get", "watch", "patch"];
const LOOK: &[&str] = &["get", "watch"];

/// The Leases that somebody may take, and those that they may only look at.
#[derive(Default)]
struct Rights {
    take: BTreeSet<String>,
    look: BTreeSet<String>,
}

/// The Roles of a namespace, each with whom it is for. `there` are the names of the Leases that there
/// are. Pure.
pub fn plan(namespace: &str, bundle: &Bundle, there: &[String]) -> Vec<(Role, RoleBinding)> {
    let mut open = Rights::default();
    let mut named: BTreeMap<String, Rights> = BTreeMap::new();
    for class in &bundle.classes {
        let substrate = bundle.backends.get(&class.backend).map(|backend| backend.substrate);
        for key in lease_keys(class, substrate.unwrap_or(Substrate::Lease)) {
            let leases = names_of(class, &key, there);
            if class.access.is_empty() {
                open.take.extend(leases);
                continue;
            }
            for rule in reaching(class, &key) {
                for account in &rule.service_accounts {
                    let rights = named.entry(account.clone()).or_default();
                    match only_reads(rule) {
                        true => rights.look.extend(leases.clone()),
                        false => rights.take.extend(leases.clone()),
                    };
                }
            }
        }
    }
    let group = Subject {
        kind: "Group".into(),
        api_group: Some(RBAC.into()),
        name: format!("system:serviceaccounts:{namespace}"),
        namespace: None,
    };
    let mut base = vec![
        rule("", "configmaps", LOOK, [BUNDLE_CONFIG_MAP.to_owned()]),
        // A pod's name is not known before it runs.
        rule("", "pods", LOOK, []),
    ];
    if bundle.backends.values().any(|backend| backend.share_watch) {
        base.push(rule("coordination.k8s.io", "leases", &["watch"], []));
    }
    let mut roles = vec![grant(namespace, EVERYBODY, base, group.clone())];
    if !open.take.is_empty() {
        roles.push(grant(namespace, OPEN, open.rules(), group));
    }
    for (account, rights) in named {
        let subject = Subject {
            kind: "ServiceAccount".into(),
            api_group: None,
            name: account.clone(),
            namespace: Some(namespace.to_owned()),
        };
        // No account can be called so that this is the name of another Role of ours.
        roles.push(grant(namespace, &format!("{OPEN}:{account}"), rights.rules(), subject));
    }
    roles
}

/// The Leases of a key. Of a semaphore also those that its class has no more: whoever holds one goes on
/// renewing it.
fn names_of(class: &BundleClass, key: &Key, there: &[String]) -> Vec<String> {
    let ClassConfig::Semaphore(config) = &class.config else {
        return vec![names::lease_name(class.config.kind(), &class.name, key)];
    };
    let name = |number| names::slot_name(Kind::Semaphore, &class.name, key, number);
    let is_surplus = |lease: &&String| {
        names::slot_number(&class.name, key, lease).is_some_and(|number| number >= config.permits)
    };
    (0..config.permits).map(name).chain(there.iter().filter(is_surplus).cloned()).collect()
}

/// The rules of access that say something about a key.
fn reaching<'a>(class: &'a BundleClass, key: &'a Key) -> impl Iterator<Item = &'a AccessRule> {
    class.access.iter().filter(|rule| key.as_str().starts_with(&rule.key_prefix))
}

fn only_reads(rule: &AccessRule) -> bool {
    !rule.verbs.is_empty() && rule.verbs.iter().all(|verb| *verb == Verb::Read)
}

impl Rights {
    fn rules(mut self) -> Vec<PolicyRule> {
        self.look.retain(|lease| !self.take.contains(lease));
        [(TAKE, self.take), (LOOK, self.look)]
            .into_iter()
            .filter(|(_, leases)| !leases.is_empty())
            .map(|(verbs, leases)| rule("coordination.k8s.io", "leases", verbs, leases))
            .collect()
    }
}

fn rule(
    group: &str,
    resource: &str,
    verbs: &[&str],
    names: impl IntoIterator<Item = String>,
) -> PolicyRule {
    let names: Vec<String> = names.into_iter().collect();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        resource_names: Some(names).filter(|names| !names.is_empty()),
        non_resource_urls: None,
    }
}

fn grant(
    namespace: &str,
    name: &str,
    rules: Vec<PolicyRule>,
    subject: Subject,
) -> (Role, RoleBinding) {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some([(LABEL_MANAGED.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let role = Role { metadata: metadata.clone(), rules: Some(rules) };
    let role_ref = RoleRef { api_group: RBAC.into(), kind: "Role".into(), name: name.to_owned() };
    let binding = RoleBinding { metadata, role_ref, subjects: Some(vec![subject]) };
    (role, binding)
}

/// Applies the Roles that differ, and deletes those that nobody needs any more.
///
/// # Errors
/// Whatever the API server says.
pub async fn apply(ctx: &Context, namespace: &str, bundle: &Bundle) -> Result<(), Error> {
    let inside = |object: &dyn Fn() -> Option<String>| object().as_deref() == Some(namespace);
    let there = ctx.caches.leases.state_filter(|lease| inside(&|| lease.namespace()));
    let there: Vec<String> = there.iter().map(|lease| lease.name_any()).collect();
    let planned = plan(namespace, bundle, &there);
    let roles = ctx.caches.roles.state_filter(|role| inside(&|| role.namespace()));
    let bindings = ctx.caches.bindings.state_filter(|binding| inside(&|| binding.namespace()));
    for (role, binding) in &planned {
        let there = find(&roles, &role.name_any());
        if there.is_none_or(|there| there.rules != role.rules) {
            apply::child(ctx, "role", role).await?;
        }
        let there = find(&bindings, &binding.name_any());
        if there.is_none_or(|there| there.subjects != binding.subjects) {
            apply::child(ctx, "binding", binding).await?;
        }
    }
    let is_planned = |name: String| planned.iter().any(|(role, _)| role.name_any() == name);
    let api: Api<RoleBinding> = Api::namespaced(ctx.client.clone(), namespace);
    for binding in bindings.iter().filter(|binding| !is_planned(binding.name_any())) {
        apply::delete(ctx, &api, &binding.name_any()).await?;
    }
    let api: Api<Role> = Api::namespaced(ctx.client.clone(), namespace);
    for role in roles.iter().filter(|role| !is_planned(role.name_any())) {
        apply::delete(ctx, &api, &role.name_any()).await?;
    }
    Ok(())
}

fn find<'a, K: ResourceExt>(all: &'a [Arc<K>], name: &str) -> Option<&'a Arc<K>> {
    all.iter().find(|object| object.name_any() == name)
}

#[cfg(test)]
mod tests {
    use holdfast_api::{
        bundle::LEASE_BACKEND,
        compile::{Class, Environment, compile},
        load::{Object, load},
    };

    use super::*;

    fn mk_bundle(yaml: &str) -> Bundle {
        let objects = load(yaml).unwrap();
        let classes: Vec<Class> = objects
            .into_iter()
            .filter_map(|found| match found.object {
                Object::Class(class) => Some(class),
                Object::Backend(_) => None,
            })
            .collect();
        compile("shop", &classes, &Environment::default()).0
    }

    fn leases(role: &Role, verbs: &[&str]) -> Vec<String> {
        let rules = role.rules.as_ref().unwrap().iter();
        let rules = rules.filter(|rule| rule.resources.as_ref().unwrap()[0] == "leases");
        rules
            .filter(|rule| rule.verbs == verbs)
            .flat_map(|rule| rule.resource_names.clone().unwrap())
            .collect()
    }

    #[test]
    fn access_becomes_roles_that_name_their_leases() {
        let head = "---\napiVersion: holdfast.dev/v1alpha1\nkind: Lock\n";
        let bundle = mk_bundle(&format!(
            "{head}metadata: {{name: open}}\nspec: {{}}\n\
             {head}metadata: {{name: shared}}\nspec:\n  keys: [a/1, b/1]\n  access:\n\
             \x20 - {{serviceAccounts: [ann], keyPrefix: a/}}\n\
             \x20 - {{serviceAccounts: [ann, bob], verbs: [Read]}}\n"
        ));
        let planned = plan("shop", &bundle, &[]);
        let by_name = |name: &str| &planned.iter().find(|(r, _)| r.name_any() == name).unwrap().0;
        let names: Vec<_> = planned.iter().map(|(role, _)| role.name_any()).collect();
        let expected =
            ["holdfast-sidecar", "holdfast-leases", "holdfast-leases:ann", "holdfast-leases:bob"];
        assert_eq!(names, expected);
        assert_eq!(leases(by_name("holdfast-leases"), TAKE), ["holdfast-lock-open"]);
        let class = &bundle.classes[1].name;
        let lease = |key| names::lease_name(Kind::Lock, class, &Key::new(key).unwrap());
        assert_eq!(leases(by_name("holdfast-leases:ann"), TAKE), [lease("a/1")]);
        assert_eq!(leases(by_name("holdfast-leases:ann"), LOOK), [lease("b/1")]);
        let mut both = [lease("a/1"), lease("b/1")];
        both.sort();
        assert_eq!(leases(by_name("holdfast-leases:bob"), LOOK), both);
    }

    #[test]
    fn a_namespace_that_shares_its_watch_may_watch_all_and_take_what_it_is_given() {
        let lock =
            "apiVersion: holdfast.dev/v1alpha1\nkind: Lock\nmetadata: {name: open}\nspec: {}\n";
        let mut bundle = mk_bundle(lock);
        let watched = |bundle: &Bundle| {
            let planned = plan("shop", bundle, &[]);
            let rules = planned.iter().flat_map(|(role, _)| role.rules.clone().unwrap());
            rules
                .filter(|rule| {
                    rule.resources.as_ref().unwrap()[0] == "leases" && rule.resource_names.is_none()
                })
                .map(|rule| rule.verbs)
                .collect::<Vec<_>>()
        };
        assert!(watched(&bundle).is_empty());
        bundle.backends.get_mut(LEASE_BACKEND).unwrap().share_watch = true;
        assert_eq!(watched(&bundle), [["watch"]]);
    }

    #[test]
    fn a_semaphore_s_role_names_its_slots_and_those_that_are_still_held() {
        let bundle = mk_bundle(
            "apiVersion: holdfast.dev/v1alpha1\nkind: Semaphore\nmetadata: {name: pool}\n\
             spec: {backend: lease, permits: 2}\n",
        );
        let there = ["holdfast-semaphore-pool.1", "holdfast-semaphore-pool.5", "holdfast-lock-x"];
        let planned = plan("shop", &bundle, &there.map(str::to_owned));
        let expected = [0, 1, 5].map(|n| format!("holdfast-semaphore-pool.{n}"));
        assert_eq!(leases(&planned[1].0, TAKE), expected);
    }

    #[test]
    fn no_role_has_a_wildcard_or_lets_a_sidecar_create_or_delete() {
        let yaml = "apiVersion: holdfast.dev/v1alpha1\nkind: Lock\nmetadata: {name: a}\nspec: {}\n";
        for (role, _) in plan("shop", &mk_bundle(yaml), &[]) {
            let text = serde_json::to_string(&role).unwrap();
            for bad in ["*", "create", "delete", "update", "list"] {
                assert!(!text.contains(&format!("\"{bad}\"")), "{text}");
            }
        }
    }
}
