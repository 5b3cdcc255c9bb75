//! Tenants' users: one ACL user per namespace, with the least rights that its sidecars need.
//!
//! A command inside a function needs its right too, so a tenant may also send it by itself, and so
//! harm its *own* objects. What keeps tenants apart are the patterns of keys and channels, which
//! Redis checks inside functions as well. The epoch's marker is read-only for tenants where the
//! store can say so (Redis 7, Valkey).

use holdfast_core::BackendError;
use sha2::{Digest, Sha256};

use super::{
    admin::{RedisAdmin, section},
    keys,
};

/// Commands of a tenant's user: the call itself, and what functions and scripts call inside.
const COMMANDS: &[&str] = &[
    "+fcall",
    "+ping",
    "+wait",
    "+subscribe",
    "+unsubscribe",
    "+publish",
    "+info",
    "+time",
    "+get",
    "+mget",
    "+set",
    "+pexpire",
    "+hget",
    "+hset",
    "+hdel",
    "+hexists",
    "+lindex",
    "+llen",
    "+lpop",
    "+lpos",
    "+lrange",
    "+lrem",
    "+rpush",
    "+zadd",
    "+zcard",
    "+zrange",
    "+zrem",
];
/// What a tenant needs besides in a cluster: where the slots are, and to follow one that is moved.
const CLUSTER_COMMANDS: &[&str] = &["+cluster|slots", "+asking"];
/// What a tenant needs instead of `+fcall` where the store has no Functions.
const SCRIPT_COMMANDS: &[&str] = &["+evalsha", "+eval"];

impl RedisAdmin {
    /// Makes a namespace's user, or brings it back to just these rights and passwords. Give it the
    /// old password and the new one while a rotation is under way.
    ///
    /// Connections that are logged in stay so; rights change for them at once.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn ensure_user(
        &self,
        namespace: &str,
        username: &str,
        passwords: &[String],
    ) -> Result<(), BackendError> {
        let has_functions = self.has_functions().await?;
        let cluster = section(&self.client, "cluster").await?;
        let is_cluster = cluster.get("cluster_enabled").is_some_and(|enabled| enabled == "1");
        // One command: there is no moment at which the user lacks a right that it keeps.
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(username).arg("reset").arg("on").arg("sanitize-payload");
        for password in passwords {
            // By hash, so that no password is on the wire or in a slow log.
            command.arg(format!("#{}", hex_sha256(password)));
        }
        let stem = keys::namespace_stem(namespace);
        if has_functions {
            command.arg(format!("~{stem}{{*")).arg(format!("%R~{}", keys::marker(namespace)));
            if is_cluster {
                command.arg(format!("%R~{}:{{*", keys::marker(namespace)));
            }
        } else {
            command.arg(format!("~{stem}*"));
        }
        command.arg(format!("&{}*", keys::channel_prefix(namespace))).arg("-@all").arg(COMMANDS);
        if !has_functions {
            command.arg(SCRIPT_COMMANDS);
        }
        if is_cluster {
            command.arg(CLUSTER_COMMANDS);
        }
        self.client.run(&command).await
    }

    /// Deletes a user and closes its connections. Nothing happens when there is none.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn drop_user(&self, username: &str) -> Result<(), BackendError> {
        self.client.run::<u64>(redis::cmd("ACL").arg("DELUSER").arg(username)).await.map(drop)
    }

    /// Whether the store has Functions. One that has can also tell reading a key from writing it.
    async fn has_functions(&self) -> Result<bool, BackendError> {
        let mut command = redis::cmd("COMMAND");
        let found: Vec<redis::Value> = self.client.run(command.arg("INFO").arg("FCALL")).await?;
        Ok(found.iter().any(|entry| *entry != redis::Value::Nil))
    }
}

fn hex_sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
