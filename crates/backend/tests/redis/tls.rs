//! TLS: whom we trust, and that pushes take the same way (security 5.5).

use std::{net::TcpListener, time::Duration};

use holdfast_core::{
    BackendError, HoldId,
    lock::{Attempt, LockBackend, Push},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::fixture::{Store, mk_address, mk_config, mk_redis_at, pushed};

/// A server whose certificate is for 127.0.0.1 only.
struct TlsStore {
    store: Store,
    port: u16,
    ca_pem: Vec<u8>,
    _files: TempDir,
}

async fn start() -> TlsStore {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let cert = cert.signed_by(&key, &ca).unwrap();
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: String| {
        let path = files.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca_file, cert_file) = (write("ca.pem", ca.pem()), write("cert.pem", cert.pem()));
    let key_file = write("key.pem", key.serialize_pem());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let args = [
        ["--tls-port", &port.to_string()],
        ["--tls-ca-cert-file", &ca_file],
        ["--tls-cert-file", &cert_file],
        ["--tls-key-file", &key_file],
        ["--tls-auth-clients", "no"],
    ];
    let store = Store::start(&args.concat()).await;
    TlsStore { store, port, ca_pem: ca.pem().into_bytes(), _files: files }
}

#[tokio::test]
async fn a_store_is_trusted_by_its_ca_and_by_its_name() {
    let TlsStore { store, port, ca_pem, _files } = start().await;
    let at_host = |host: &str| mk_redis_at(&format!("{host}:{port}"));
    let trusting = at_host("127.0.0.1").with_tls(Some(ca_pem.clone()));
    let session = store.session_as(trusting);
    assert!(session.locks.subscribed(Duration::from_secs(5)).await);
    let (at, config) = (mk_address("a"), mk_config());
    let (first, second) = (HoldId::random(), HoldId::random());
    session.grant(&at, &config, &first).await;
    let mut inbox = session.hub.register(&second);
    let queued = session.try_acquire(&at, &config, &second).await;
    assert_eq!(queued, Ok(Attempt::Queued { position: 1 }));
    session.locks.release(&at, &config, &first).await.unwrap();
    assert!(matches!(pushed(&mut inbox).await, Push::Granted { .. }));

    let refused = [
        ("another CA", at_host("127.0.0.1").with_tls(None)),
        ("another name", at_host("localhost").with_tls(Some(ca_pem))),
        ("no TLS", at_host("127.0.0.1")),
    ];
    for (why, config) in refused {
        let session = store.session_as(config);
        let attempt = session.try_acquire(&at, &mk_config(), &HoldId::random()).await;
        match (why, attempt) {
            (_, Err(BackendError::Unavailable(text))) => println!("{why}: {text}"),
            // A server that speaks TLS only hangs up on the first words of something else.
            ("no TLS", Err(BackendError::Unknown(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}
