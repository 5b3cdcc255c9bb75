//! What must never be lowered, kept in a ConfigMap of the operator's own namespace: the fences of
//! deleted classes on stores that forget, and the epochs of deleted Backends.
//!
//! In the operator's namespace, because it outlives the namespace of the class. Entries are
//! `<namespace>.<kind>.<class>` and `_epoch.<backend>`; no namespace can begin with an underscore.
//! Values only grow: every write is conditional on what was read, and keeps the higher of two.

use std::{collections::BTreeMap, sync::Mutex};

use holdfast_api::names::FLOORS_CONFIG_MAP;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};

use crate::{context::lock, error::Error};

/// How often a write is tried when others write, too.
const TRIES: usize = 5;

/// The floors.
pub struct Floors {
    api: Api<ConfigMap>,
    /// What is certainly in etcd. Read at the start of a term; as a rule only the leader writes.
    known: Mutex<BTreeMap<String, u64>>,
}

/// The entry of a Backend's epoch.
pub fn epoch_key(backend: &str) -> String {
    format!("_epoch.{backend}")
}

impl Floors {
    /// Reads them.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn load(client: Client, namespace: &str) -> Result<Self, Error> {
        let floors = Floors { api: Api::namespaced(client, namespace), known: Mutex::default() };
        floors.read().await?;
        Ok(floors)
    }

    async fn read(&self) -> Result<Option<ConfigMap>, Error> {
        let what = format!("read ConfigMap \"{FLOORS_CONFIG_MAP}\"");
        let map = self.api.get_opt(FLOORS_CONFIG_MAP).await.map_err(Error::api(what))?;
        let entries = map.as_ref().and_then(|map| map.data.clone()).unwrap_or_default();
        let mut known = lock(&self.known);
        for (key, value) in entries {
            match value.parse::<u64>() {
                Ok(value) => raise_in(&mut known, &key, value),
                Err(_) => tracing::warn!(key, value, "a floor is not a number; it is passed over"),
            }
        }
        drop(known);
        Ok(map)
    }

    /// Reads them again: another operator may have raised some. Whether any is higher than known.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn refresh(&self) -> Result<bool, Error> {
        let before = lock(&self.known).clone();
        self.read().await?;
        Ok(*lock(&self.known) != before)
    }

    /// A floor.
    pub fn get(&self, key: &str) -> Option<u64> {
        lock(&self.known).get(key).copied()
    }

    /// The floors of the classes of a namespace, by the compiler's keys.
    pub fn of_namespace(&self, namespace: &str) -> BTreeMap<String, u64> {
        let prefix = format!("{namespace}.");
        let known = lock(&self.known);
        let ours =
            known.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
        ours.map(|(key, value)| (key.to_owned(), *value)).collect()
    }

    /// Raises a floor; once this returns, it will never be lower again.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn raise(&self, key: &str, value: u64) -> Result<(), Error> {
        let what = || format!("write ConfigMap \"{FLOORS_CONFIG_MAP}\"");
        for _ in 0..TRIES {
            if self.get(key).is_some_and(|known| known >= value) {
                return Ok(());
            }
            let there = self.read().await?;
            if self.get(key).is_some_and(|known| known >= value) {
                continue;
            }
            let params = PostParams::default();
            let written = match there {
                Some(mut map) => {
                    map.data.get_or_insert_default().insert(key.to_owned(), value.to_string());
                    // With the version that was read: another's write is not lost.
                    self.api.replace(FLOORS_CONFIG_MAP, &params, &map).await
                }
                None => {
                    let map = ConfigMap {
                        metadata: ObjectMeta {
                            name: Some(FLOORS_CONFIG_MAP.into()),
                            ..ObjectMeta::default()
                        },
                        data: Some([(key.to_owned(), value.to_string())].into()),
                        ..ConfigMap::default()
                    };
                    self.api.create(&params, &map).await
                }
            };
            match written {
                Ok(_) => {
                    raise_in(&mut lock(&self.known), key, value);
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(Error::api(what())(error)),
            }
        }
        Err(Error::Conflict(FLOORS_CONFIG_MAP.into()))
    }
}

fn raise_in(known: &mut BTreeMap<String, u64>, key: &str, value: u64) {
    let entry = known.entry(key.to_owned()).or_insert(value);
    *entry = value.max(*entry);
}
