//! What there is: the classes that this pod may use, and everything that is held or waited for.

use holdfast_core::Kind;
use holdfast_wire::{Catalogue, ClassInfo, Status, StatusRow};

use super::{Sidecar, answers::mk_state};
use crate::authz;

impl Sidecar {
    /// What this pod may use.
    pub fn catalogue(&self) -> Catalogue {
        let snapshot = self.snapshot.load();
        let mut classes: Vec<ClassInfo> = snapshot
            .classes()
            .filter(|class| authz::may_anything(&class.access, &self.identity.service_account))
            .map(|class| ClassInfo {
                kind: class.kind.name().into(),
                name: class.name.to_string(),
                backend: class.backend.clone(),
                guarantee: class.guarantee.clone(),
                path: format!("/v1/{}/{}", class.kind.route(), class.name),
            })
            .collect();
        let limits = snapshot.rate_limits.values();
        let limits = limits
            .filter(|class| authz::may_anything(&class.access, &self.identity.service_account));
        classes.extend(limits.map(|class| ClassInfo {
            kind: Kind::RateLimit.name().into(),
            name: class.name.to_string(),
            backend: class.backend.clone(),
            guarantee: class.guarantee.clone(),
            path: format!("/v1/{}/{}", Kind::RateLimit.plural(), class.name),
        }));
        classes.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
        Catalogue {
            namespace: self.identity.namespace.to_string(),
            holder: self.identity.holder.to_string(),
            classes,
        }
    }

    /// Everything that is held or waited for, as far as the stores can list it.
    pub async fn status(&self) -> Status {
        let snapshot = self.snapshot.load_full();
        let mut locks = Vec::new();
        for class in snapshot.classes() {
            let backend = class.client.backend();
            let namespace = &self.identity.namespace;
            match backend.list(class.kind, namespace, &class.name, &class.config, 100).await {
                Ok(rows) => locks.extend(rows.into_iter().map(|(key, view)| StatusRow {
                    kind: class.kind.name().into(),
                    name: class.name.to_string(),
                    state: mk_state(&key, view),
                })),
                Err(error) => tracing::debug!(class = %class.name, %error, "cannot list"),
            }
        }
        locks.sort_by(|a, b| (&a.name, &a.state.key).cmp(&(&b.name, &b.state.key)));
        Status { locks }
    }
}
