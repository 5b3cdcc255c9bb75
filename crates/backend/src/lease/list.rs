//! A look at a whole class.

use holdfast_core::{
    Address, BackendError, ClassName, Key, Kind,
    lock::{Keys, LockBackend, LockConfig, LockView},
};

use super::grant::Inner;
use crate::hub::lock;

impl Inner {
    /// The keys of a class that are held or waited for, at most `limit` of them, as `backend` shows them.
    /// A Role with `resourceNames` lets nobody list by label, so each key is looked at.
    pub(super) async fn list(
        &self,
        backend: &dyn LockBackend,
        (kind, namespace, class): (Kind, &str, &ClassName),
        config: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        let address =
            |key: Key| Address { kind, namespace: namespace.into(), class: class.clone(), key };
        let keys = match &config.keys {
            Keys::Fixed(keys) => keys.iter().cloned().map(address).collect(),
            Keys::Any => lock(&self.local)
                .keys(|at| at.kind == kind && *at.namespace == *namespace && at.class == *class),
        };
        let mut found = Vec::new();
        for at in keys {
            if found.len() >= limit {
                break;
            }
            let view = match backend.query(&at, config).await {
                Ok(view) => view,
                Err(BackendError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            if view.holder.is_some() || view.waiters > 0 {
                found.push((at.key, view));
            }
        }
        Ok(found)
    }
}
