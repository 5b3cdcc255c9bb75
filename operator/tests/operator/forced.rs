//! Releases by force that are carried out in two goes: nothing newer is taken, and nothing untold.

use std::{sync::Arc, time::Duration};

use holdfast_core::lock::{LockBackend, Renewal};
use kube::ResourceExt;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::{
    fixture::{Bed, acquire, acquire_soon, eventually, object},
    redis::RedisServer,
    semaphores::{Pods, get, until_ready},
};

/// Passes everything on to a Redis, but the answer to the first release by force.
async fn forgetful(redis: String) -> (String, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, lost) = (listener.local_addr().unwrap().to_string(), Arc::new(Notify::new()));
    let (once, told) = (Arc::new(std::sync::Once::new()), lost.clone());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&redis).await.unwrap();
            tokio::spawn(relay(near, far, once.clone(), told.clone()));
        }
    });
    (address, lost)
}

async fn relay(near: TcpStream, far: TcpStream, once: Arc<std::sync::Once>, lost: Arc<Notify>) {
    let ((mut asks, mut answers), (mut replies, mut store)) = (near.into_split(), far.into_split());
    let mut loses = false;
    let (mut asked, mut replied) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = asks.read(&mut asked) => {
                let Ok(n @ 1..) = read else { return };
                // The library is loaded with the same words.
                let has = |word: &[u8]| asked[..n].windows(word.len()).any(|part| part == word);
                if has(b"FCALL\r\n") && has(b"lock_force_release") {
                    once.call_once(|| loses = true);
                }
                if store.write_all(&asked[..n]).await.is_err() {
                    return;
                }
            }
            read = replies.read(&mut replied) => {
                let Ok(n @ 1..) = read else { return };
                if loses {
                    return lost.notify_one();
                }
                if answers.write_all(&replied[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_whose_forced_release_got_no_answer_is_told_all_the_same() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    let (address, lost) = forgetful(redis.address()).await;
    let spec = format!("{{redis: {{addresses: ['{address}']}}}}");
    bed.kubectl_cluster(&["apply", "-f", "-"], &object("Backend", "deaf", &spec)).unwrap();
    bed.lock("orders", "{ttlSeconds: 300, backend: deaf}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.redis("deaf").await, bed.at("orders", "a"));
    let (hold, _) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    bed.kubectl(&["annotate", "lock", "orders", "holdfast.dev/force-release=a"], "").unwrap();
    tokio::time::timeout(Duration::from_secs(40), lost.notified()).await.expect("no answer lost");
    // Somebody else has it by the time that the operator looks again.
    acquire_soon(&*locks, &at, &config, "pod-2").await;
    eventually("the annotation is gone", async || {
        let lock = bed.get_lock("orders").await.unwrap();
        !lock.annotations().keys().any(|name| name.starts_with("holdfast.dev/force-release"))
    })
    .await;
    let notes = bed.events("orders", "ForceReleased").await;
    assert!(notes.len() == 1 && notes[0].contains("pod-1"), "{notes:?}");
    let renewed = locks.renew(&at, &config, &hold, Duration::from_secs(300)).await.unwrap();
    assert_eq!(renewed, Renewal::Lost);
    assert_eq!(acquire(&*locks, &at, &config, "pod-3").await, None, "pod-2 lost it as well");
}

/// On a busy semaphore there is a newer grant at any time, and after a crash for certain.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_release_of_permits_takes_what_was_meant_and_nothing_newer() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("busy", &redis, "");
    let spec = "{backend: busy, permits: 5, ttlSeconds: 300}";
    bed.kubectl(&["apply", "-f", "-"], &object("Semaphore", "pool", spec)).unwrap();
    until_ready(&bed, "pool").await;
    let pods = Pods::of(&bed, "busy", "pool", "a").await;
    let ((stuck, old), (busy, _)) =
        (pods.acquire("pod-1", 2).await, pods.acquire("pod-2", 2).await);
    // As an operator leaves it that ends once it has written down what is meant.
    let meant = json!({ "newest": old.fence, "holders": { old.fence.to_string(): "pod-1" } });
    let meant = format!("holdfast.dev/force-release-meant={meant}");
    let notes = ["annotate", "semaphore", "pool", "holdfast.dev/force-release=a", &meant];
    bed.kubectl(&notes, "").unwrap();
    eventually("the old one is taken", async || pods.renew(&stuck).await == Renewal::Lost).await;
    eventually("the annotations are gone", async || {
        let semaphore = get(&bed, "pool").await.unwrap();
        !semaphore.annotations().keys().any(|name| name.starts_with("holdfast.dev/force-release"))
    })
    .await;
    assert!(matches!(pods.renew(&busy).await, Renewal::Renewed { .. }), "a newer one was taken");
    let notes = bed.events("pool", "ForceReleased").await;
    assert!(notes.len() == 1 && notes[0].contains("pod-1"), "{notes:?}");
}
