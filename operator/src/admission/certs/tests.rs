//! The rules of rotation, and a real TLS client that calls through thirty of them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use axum::{Router, routing::get};
use axum_server::tls_rustls::RustlsConfig;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::ServerName, version::TLS12,
};

use tokio_util::sync::CancellationToken;

use super::*;

const NOW: i64 = 1_800_000_000;

fn mk_purpose(life: u64) -> Purpose {
    Purpose {
        names: vec!["holdfast-webhook.holdfast-system.svc".into(), "127.0.0.1".into()],
        life: Duration::from_secs(life),
    }
}

fn real_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[test]
fn material_survives_the_secret() {
    let material = Material::first(&mk_purpose(90), NOW).unwrap();
    assert_eq!(Material::from_data(&material.to_data()).unwrap(), material);
    let mut broken = material.to_data();
    broken.remove(KEY);
    assert!(matches!(Material::from_data(&broken), Err(Error::Unreadable(KEY))));
    broken.insert(KEY.into(), ByteString(b"garbage".to_vec()));
    assert!(matches!(Material::from_data(&broken), Err(Error::Unreadable(KEY))));
    assert!(!format!("{material:?}").contains("PRIVATE"), "keys are never printed");
}

#[test]
fn rotation_is_due_after_two_thirds_and_when_names_change() {
    let life = 90 * 86_400;
    let purpose = mk_purpose(life);
    let material = Material::first(&purpose, NOW).unwrap();
    let Due::In(wait) = material.due(&purpose, NOW) else { panic!("due at once") };
    assert_eq!(wait, Duration::from_secs(life * 2 / 3));
    assert_eq!(material.due(&purpose, NOW + life as i64 * 2 / 3), Due::Now);
    let mut renamed = purpose.clone();
    renamed.names[0] = "other.holdfast-system.svc".into();
    assert_eq!(material.due(&renamed, NOW), Due::Now);
    // A life that was configured shorter counts at once.
    assert_eq!(material.due(&mk_purpose(60), NOW), Due::Now);
}

#[test]
fn every_signer_was_trusted_a_whole_period_before_and_stays_trusted_one_after() {
    let purpose = mk_purpose(90 * 86_400);
    let mut now = NOW;
    let mut material = Material::first(&purpose, now).unwrap();
    let mut trusted_before = material.bundle.clone();
    for _ in 0..10 {
        now += 60 * 86_400;
        let next = material.rotated(&purpose, now).unwrap();
        let verify = |bundle: &str, cert: &str| {
            let cert = der(cert).unwrap();
            let (_, cert) = parse_x509_certificate(&cert).unwrap();
            split(bundle).any(|ca| {
                let ca = der(&ca).unwrap();
                let (_, ca) = parse_x509_certificate(&ca).unwrap();
                cert.verify_signature(Some(ca.public_key())).is_ok()
            })
        };
        assert!(verify(&trusted_before, &next.cert), "the successor is not trusted in time");
        assert!(verify(&next.bundle, &material.cert), "the predecessor is dropped too early");
        assert!(!verify(&next.bundle, &Material::first(&purpose, now).unwrap().cert), "control");
        assert!(split(&next.bundle).count() <= BUNDLED);
        assert!(next.not_after() >= now + 90 * 86_400);
        trusted_before = next.bundle.clone();
        material = next;
    }
}

#[test]
fn operator_that_was_away_too_long_starts_anew() {
    let purpose = mk_purpose(90);
    let old = Material::first(&purpose, NOW).unwrap();
    let later = NOW + 10_000;
    assert_eq!(old.due(&purpose, later), Due::Now);
    let new = old.rotated(&purpose, later).unwrap();
    assert_eq!(new.not_after(), later + 90);
    assert_eq!(split(&new.bundle).count(), 2, "what has expired is not trusted any more");
}

/// What one call of an API server does: connect, verify, ask.
fn call(
    address: SocketAddr,
    bundle: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    for ca in split(bundle) {
        roots.add(der(&ca).unwrap()).map_err(|e| e.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("holdfast-webhook.holdfast-system.svc").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).map_err(|e| e.to_string())?;
    let socket = TcpStream::connect(address).map_err(|e| e.to_string())?;
    let mut stream = StreamOwned::new(client, socket);
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    Ok(answer)
}

async fn serve(material: &Material) -> (SocketAddr, RustlsConfig, axum_server::Handle<SocketAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tls = RustlsConfig::from_config(Arc::new(material.server_config().unwrap()));
    let handle = axum_server::Handle::new();
    let app = Router::new().route("/", get(|| async { "served" }));
    let server =
        axum_server::from_tcp_rustls(listener, tls.clone()).unwrap().handle(handle.clone());
    tokio::spawn(server.serve(app.into_make_service()));
    handle.listening().await;
    (address, tls, handle)
}

/// Calls made and calls failed, of each caller.
type Counts = [(usize, usize); 2];

/// Waits until each caller has begun and ended a call.
async fn more_calls(counts: &Mutex<Counts>) {
    let before = *counts.lock().unwrap();
    while (0..2).any(|i| counts.lock().unwrap()[i].0 < before[i].0 + 2) {
        tokio::task::yield_now().await;
    }
}

/// E5. The clients learn what to trust one whole rotation late. Answers how many calls failed.
async fn failed_calls_over_rotations(publish_next: bool, rotations: u32) -> (usize, usize) {
    let purpose = mk_purpose(3600);
    let mut material = Material::first(&purpose, real_now()).unwrap();
    let only_current = |m: &Material| split(&m.bundle).filter(|c| !c.eq(&m.next_cert)).collect();
    let view = |m: &Material| if publish_next { m.bundle.clone() } else { only_current(m) };
    let trusted = Arc::new(Mutex::new(view(&material)));
    let (address, tls, handle) = serve(&material).await;
    let (stop, counts) = (CancellationToken::new(), Arc::new(Mutex::new(Counts::default())));
    let callers: Vec<_> = (0..2)
        .map(|me: usize| {
            let (stop, counts, trusted) = (stop.clone(), counts.clone(), trusted.clone());
            tokio::task::spawn_blocking(move || {
                while !stop.is_cancelled() {
                    let bundle = trusted.lock().unwrap().clone();
                    let answer = call(address, &bundle, rustls::ALL_VERSIONS);
                    let mut counts = counts.lock().unwrap();
                    counts[me].0 += 1;
                    counts[me].1 += usize::from(!answer.is_ok_and(|a| a.ends_with("served")));
                }
            })
        })
        .collect();
    for _ in 0..rotations {
        // What is trusted is one rotation late, never two: every caller has taken it up before the
        // next certificate is served, and meets each pair of trust and certificate.
        more_calls(&counts).await;
        *trusted.lock().unwrap() = view(&material);
        more_calls(&counts).await;
        material = material.rotated(&purpose, real_now()).unwrap();
        tls.reload_from_config(Arc::new(material.server_config().unwrap()));
    }
    stop.cancel();
    for caller in callers {
        caller.await.unwrap();
    }
    handle.shutdown();
    let counts = *counts.lock().unwrap();
    (counts[0].0 + counts[1].0, counts[0].1 + counts[1].1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_over_thirty_rotations_under_load() {
    let (calls, failed) = failed_calls_over_rotations(true, 30).await;
    assert!(calls >= 180, "{calls} calls are no load");
    assert_eq!(failed, 0, "of {calls}");
    let (calls, failed) = failed_calls_over_rotations(false, 5).await;
    assert!(failed > 0, "the control published no successor, and yet none of {calls} calls failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_speaks_tls_1_2_and_only_with_whom_it_is_known_to() {
    let purpose = mk_purpose(3600);
    let material = Material::first(&purpose, real_now()).unwrap();
    let (address, _tls, handle) = serve(&material).await;
    let bundle = material.bundle.clone();
    let stranger = Material::first(&purpose, real_now()).unwrap().bundle;
    tokio::task::spawn_blocking(move || {
        assert!(call(address, &bundle, &[&TLS12]).unwrap().ends_with("served"));
        let refused = call(address, &stranger, rustls::ALL_VERSIONS).unwrap_err();
        assert!(refused.contains("UnknownIssuer"), "{refused}");
    })
    .await
    .unwrap();
    handle.shutdown();
}
