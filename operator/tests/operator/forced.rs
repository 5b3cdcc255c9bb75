//! Releases by force that are carried out in two goes: nothing newer is taken, and nothing untold.

use std::{sync::Arc, time::Duration};

use holdfast_core::lock::{LockBackend, Renewal};
use kube::ResourceExt;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    fixture::{Bed, SOON, acquire_soon, eventually, object},
    redis::RedisServer,
    semaphores::{Pods, get, until_ready},
};

/// What becomes of the first release by force.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Its answer is lost.
    NoAnswer,
    /// It is carried out when nobody waits for it any more.
    Late,
}

/// Passes everything on to a Redis, with a fault; tells when that has happened.
async fn faulty(redis: String, fault: Fault) -> (String, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, told) = (listener.local_addr().unwrap().to_string(), Arc::new(Notify::new()));
    let (once, tell) = (Arc::new(std::sync::Once::new()), told.clone());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&redis).await.unwrap();
            tokio::spawn(relay(near, far, fault, once.clone(), tell.clone()));
        }
    });
    (address, told)
}

async fn relay(
    near: TcpStream,
    far: TcpStream,
    fault: Fault,
    once: Arc<std::sync::Once>,
    tell: Arc<Notify>,
) {
    let ((mut asks, mut answers), (mut replies, mut store)) = (near.into_split(), far.into_split());
    let mut is_it = false;
    let (mut asked, mut replied) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = asks.read(&mut asked), if !is_it => {
                let Ok(n @ 1..) = read else { return };
                // The library is loaded with the same words.
                let has = |word: &[u8]| asked[..n].windows(word.len()).any(|part| part == word);
                if has(b"FCALL\r\n") && has(b"lock_force_release") {
                    once.call_once(|| is_it = true);
                }
                if is_it && fault == Fault::Late {
                    sleep(LATE).await;
                }
                if store.write_all(&asked[..n]).await.is_err() {
                    return;
                }
            }
            read = replies.read(&mut replied) => {
                let Ok(n @ 1..) = read else { return };
                if is_it {
                    return tell.notify_one();
                }
                if answers.write_all(&replied[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// For how long a request is held back: the operator has tried again by then.
const LATE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_whose_forced_release_got_no_answer_is_told_all_the_same() {
    of_one_holder("deaf", Fault::NoAnswer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_release_that_is_carried_out_late_takes_nothing_from_the_next_holder() {
    of_one_holder("late", Fault::Late).await;
}

/// The next holder has it by the time that the operator looks again, or the fault is over.
async fn of_one_holder(name: &str, fault: Fault) {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    let (address, told) = faulty(redis.address(), fault).await;
    let spec = format!("{{redis: {{addresses: ['{address}']}}}}");
    bed.kubectl_cluster(&["apply", "-f", "-"], &object("Backend", name, &spec)).unwrap();
    bed.lock("orders", &format!("{{ttlSeconds: 300, backend: {name}}}"));
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.redis(name).await, bed.at("orders", "a"));
    let renew = async |hold| locks.renew(&at, &config, hold, Duration::from_secs(300)).await;
    let (hold, _) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    bed.kubectl(&["annotate", "lock", "orders", "holdfast.dev/force-release=a"], "").unwrap();
    let happened = async { timeout(SOON, told.notified()).await.expect("no fault") };
    let ((next, _), ()) = tokio::join!(acquire_soon(&*locks, &at, &config, "pod-2"), happened);
    eventually("the annotation is gone", async || {
        let lock = bed.get_lock("orders").await.unwrap();
        !lock.annotations().keys().any(|name| name.starts_with("holdfast.dev/force-release"))
    })
    .await;
    let notes = bed.events("orders", "ForceReleased").await;
    assert!(notes.len() == 1 && notes[0].contains("pod-1"), "{notes:?}");
    let released = bed.events("orders", "Released").await;
    assert!(!released.iter().any(|note| note.contains("pod-1")), "it was not: {released:?}");
    assert_eq!(renew(&hold).await, Ok(Renewal::Lost));
    let renewed = renew(&next).await;
    assert!(matches!(renewed, Ok(Renewal::Renewed { .. })), "pod-2 lost it as well: {renewed:?}");
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
    let meant = |asked: &str| {
        let holders = json!({ old.fence.to_string(): "pod-1" });
        let meant = json!({ "asked": asked, "newest": old.fence, "holders": holders });
        format!("holdfast.dev/force-release-meant={meant}")
    };
    let annotate = async |notes: &[&str]| {
        bed.kubectl(&[&["annotate", "semaphore", "pool"], notes].concat(), "").unwrap();
        eventually("the annotations are gone", async || {
            let semaphore = get(&bed, "pool").await.unwrap();
            let mut names = semaphore.annotations().keys();
            !names.any(|name| name.starts_with("holdfast.dev/force-release"))
        })
        .await;
    };
    annotate(&["holdfast.dev/force-release=a", &meant("a")]).await;
    assert_eq!(pods.renew(&stuck).await, Renewal::Lost);
    assert!(matches!(pods.renew(&busy).await, Renewal::Renewed { .. }), "a newer one was taken");
    let notes = bed.events("pool", "ForceReleased").await;
    assert!(notes.len() == 1 && notes[0].contains("pod-1"), "{notes:?}");

    // What was meant by a request that was taken back, or by another one, counts for no other.
    annotate(&[&meant("a")]).await;
    assert!(matches!(pods.renew(&busy).await, Renewal::Renewed { .. }));
    annotate(&["holdfast.dev/force-release=a", &meant("b")]).await;
    assert_eq!(pods.renew(&busy).await, Renewal::Lost);
    let mut notes = bed.events("pool", "ForceReleased").await;
    notes.sort();
    assert!(notes.len() == 2 && notes[1].contains("pod-2"), "{notes:?}");
}
