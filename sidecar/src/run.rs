//! Wiring: from flags or files to a served API, and its end.
//!
//! **The end.** In a pod this container is told to stop after the app's containers have ended, or
//! when it alone is restarted (a failed probe). Holds are released only in the first case; in the
//! second they are left in the journal, for the next run to take up.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context;
use futures::future::join_all;
use holdfast_api::bundle::Bundle;
use holdfast_backend::{
    hub::{Diverted, Hub},
    lease::LeaseClient,
};
use holdfast_core::{ClassName, Clock, Holder, Kind, SessionId, SystemClock};
use holdfast_runtime::{Readiness, admin, shutdown};
use prometheus::Registry;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    args::Args,
    compat::Compat,
    config::Bundles,
    connect::Backends,
    holds::{Holds, journal::Journal},
    liveness::container::OwnPod,
    metrics::Metrics,
    routes::{self, direct::App},
    serve::{self, Listen, Listener},
    service::{Identity, Sidecar},
    snapshot::Connect,
};

/// Releases at the end get so long in all.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);
/// For how long a stopped sidecar looks whether its app has ended.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// A sidecar that serves. Dropping it is a crash: nothing is released.
pub struct Serving {
    /// It.
    pub sidecar: Arc<Sidecar>,
    /// Where pushes arrive.
    pub hub: Arc<Hub>,
    /// Its metrics.
    pub registry: Registry,
    /// Where it listens.
    pub listens: Vec<Listen>,
    pub(crate) servers: Vec<AbortOnDropHandle<anyhow::Result<()>>>,
    keeper: AbortOnDropHandle<()>,
    stop: CancellationToken,
}

impl Serving {
    /// Serves an empty bundle: put classes in with [`Bundles`] or [`Local`].
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn start(identity: Identity, listen: &[Listen], page: bool) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let registry = Registry::new();
        let metrics = Metrics::new(&registry)?;
        register_process(&registry)?;
        let (pushes, pushed): (Diverted, _) = mpsc::unbounded_channel();
        let holds = Holds::new(clock.clone(), pushes);
        let sidecar = Sidecar::new(identity, holds.clone(), metrics, clock);
        let stop = CancellationToken::new();
        let keeper = AbortOnDropHandle::new(tokio::spawn(holds.keep(pushed, stop.clone())));
        let router = routes::router(sidecar.clone(), page);
        let app = Arc::new(App { sidecar: sidecar.clone(), router });
        let (mut servers, mut listens) = (Vec::new(), Vec::new());
        for listen in listen {
            let listener = Listener::bind(listen).await?;
            listens.push(listener.local()?);
            let serving = serve::serve(listener, app.clone(), sidecar.stopped.clone());
            servers.push(AbortOnDropHandle::new(tokio::spawn(serving)));
        }
        Ok(Serving { sidecar, hub: Hub::new(), registry, listens, servers, keeper, stop })
    }

    /// Serves the admin routes as well, and returns their address.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn admin(
        &self,
        address: std::net::SocketAddr,
        readiness: Readiness,
    ) -> anyhow::Result<std::net::SocketAddr> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}: choose another with --admin"))?;
        let local = listener.local_addr()?;
        let (registry, stop) = (self.registry.clone(), self.stop.clone());
        tokio::spawn(admin::serve(listener, registry, readiness, stop));
        Ok(local)
    }

    /// Ends when a task that everything depends on has ended: the process must, too.
    pub async fn failed(&mut self) -> anyhow::Error {
        let servers = futures::future::select_all(&mut self.servers);
        tokio::select! {
            (ended, _, _) = servers => match ended {
                Ok(Err(error)) => error,
                _ => anyhow::anyhow!("a server ended"),
            },
            _ = &mut self.keeper => anyhow::anyhow!("the keeper of holds ended"),
        }
    }

    /// Grants no more holds, releases the live ones if the app has ended, and stops.
    pub async fn close(self, app_has_ended: bool) {
        self.sidecar.closing.cancel();
        if app_has_ended {
            let live = self.sidecar.holds.live();
            let count = live.len();
            let releases = live.into_iter().map(|view| {
                self.sidecar.holds.releasing(&view.hold);
                self.sidecar.clone().release_at_length(view)
            });
            if timeout(RELEASE_WITHIN, join_all(releases)).await.is_err() {
                tracing::warn!(count, "not every hold could be released; they run out");
            }
        }
        let snapshot = self.sidecar.snapshot.load_full();
        let limits = snapshot.rate_limits.values().map(|class| class.client.close());
        if timeout(RELEASE_WITHIN, join_all(limits)).await.is_err() {
            tracing::warn!("not every token could be put back; time gives them back");
        }
        self.sidecar.stopped.cancel();
        join_all(self.servers).await;
        self.stop.cancel();
    }
}

fn register_process(registry: &Registry) -> anyhow::Result<()> {
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process)).context("cannot register the process's metrics")
}

/// Without a cluster: classes from files, on memory or on one Redis.
pub struct Local {
    /// The namespace of the classes.
    pub namespace: String,
    /// Who the app is to others.
    pub holder: Holder,
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// Whether to serve the status page.
    pub page: bool,
}

impl Local {
    /// Serves a bundle; backends named in it that are in `redis` (name, URL) are on that Redis.
    ///
    /// # Errors
    /// When an address cannot be listened on, or a URL cannot be used.
    pub async fn start(
        self,
        bundle: &Bundle,
        redis: Option<(&str, &str)>,
    ) -> anyhow::Result<(Serving, Option<holdfast_backend::redis::LocalEpoch>)> {
        let namespace: Arc<str> = self.namespace.as_str().into();
        let identity = Identity {
            namespace: namespace.clone(),
            holder: self.holder,
            session: SessionId::random(),
            service_account: "default".into(),
            in_pod: false,
        };
        let session = identity.session.clone();
        let serving = Serving::start(identity, &self.listen, self.page).await?;
        let clock = Arc::new(SystemClock);
        let backends = Backends::new(namespace, session, serving.hub.clone(), clock, None, None);
        let epoch = match redis {
            Some((name, url)) => {
                let adopted = backends.adopt_redis(name, url, Duration::ZERO);
                Some(adopted.map_err(anyhow::Error::msg)?)
            }
            None => None,
        };
        let connect: Arc<dyn Connect> = Arc::new(backends);
        Bundles::new(serving.sidecar.clone(), connect, Readiness::default(), None).apply(bundle);
        Ok((serving, epoch))
    }
}

/// `holdfast-sidecar`: runs until it is told to stop.
///
/// # Errors
/// When it cannot start, or a part of it that it cannot do without has ended.
pub async fn run(args: Args) -> anyhow::Result<()> {
    args.compat.check(args.gateway).map_err(anyhow::Error::msg)?;
    let signalled = shutdown::on_signal()?;
    let config = kube::Config::infer().await.context("there is no API server to reach")?;
    let journal = args.state_dir.as_ref().map(|dir| Journal::new(dir.join("holds.json")));
    let earlier = journal.as_ref().and_then(Journal::read);
    let identity = Identity {
        namespace: args.namespace.as_str().into(),
        holder: Holder::new(&args.pod).context("--pod")?,
        session: earlier.as_ref().map_or_else(SessionId::random, |e| e.session.clone()),
        service_account: args.service_account.clone(),
        in_pod: !args.gateway,
    };
    let (namespace, session) = (identity.namespace.clone(), identity.session.clone());
    let mut serving = Serving::start(identity, &args.listen, false).await?;
    let compat = serving.compat(&args.compat).await?;
    if compat != Compat::default() {
        tracing::info!(?compat, "serves other projects' APIs");
    }
    let readiness = Readiness::default();
    let leases = LeaseClient::new(&config)?;
    let clock = Arc::new(SystemClock);
    let credentials = Some(args.redis_credentials.clone());
    let hub = serving.hub.clone();
    let backends = Backends::new(namespace, session, hub, clock, Some(leases), credentials);
    let kept = args.state_dir.as_ref().map(|dir| dir.join("bundle.json"));
    let connect: Arc<dyn Connect> = Arc::new(backends);
    let bundles = Bundles::new(serving.sidecar.clone(), connect, readiness.clone(), kept);
    serving.admin(args.admin.admin, readiness).await?;
    bundles.recall();
    if let Some(contents) = earlier {
        let resumed = serving.sidecar.holds.resume(contents, &serving.sidecar, &serving.hub);
        tracing::info!(resumed, "took up the holds of an earlier run");
    }
    for name in candidacies(&args.candidate, &serving.sidecar)? {
        serving.sidecar.elections.campaign(&serving.sidecar, &name);
    }
    let client = mk_client(config)?;
    let pod = OwnPod::new(client.clone(), &args.namespace, &args.pod);
    let stop = CancellationToken::new();
    tokio::spawn(bundles.watch(client, stop.clone()));
    if !args.gateway {
        tokio::spawn(pod.clone().watch(serving.sidecar.clone(), stop.clone()));
    }
    if let Some(journal) = &journal {
        tokio::spawn(journal.clone().keep(serving.sidecar.clone(), stop.clone()));
    }
    let failed = tokio::select! {
        () = signalled.cancelled() => None,
        error = serving.failed() => Some(error),
    };
    serving.sidecar.closing.cancel();
    // A gateway has no app to wait for.
    let app_has_ended = failed.is_none()
        && serving.sidecar.holds.count() > 0
        && (args.gateway || pod.app_has_ended(LOOK_WITHIN).await);
    if let (Some(journal), false) = (&journal, app_has_ended) {
        journal.note(&serving.sidecar);
    }
    stop.cancel();
    serving.close(app_has_ended).await;
    failed.map_or(Ok(()), Err)
}

/// The elections to stand in: those that the pod names, and those of terms that were taken up.
fn candidacies(named: &str, sidecar: &Sidecar) -> anyhow::Result<BTreeSet<ClassName>> {
    let named = named.split(',').map(str::trim).filter(|name| !name.is_empty());
    let named =
        named.map(|name| ClassName::new(name).with_context(|| format!("--candidate {name}")));
    let terms =
        sidecar.holds.live().into_iter().filter(|view| view.at.kind == Kind::LeaderElection);
    named.chain(terms.map(|view| Ok(view.at.class.clone()))).collect()
}

/// A client for watches: no hidden retries, and no time limit on a stream on which nothing happens.
fn mk_client(mut config: kube::Config) -> anyhow::Result<kube::Client> {
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = None;
    config.write_timeout = Some(Duration::from_secs(10));
    kube::Client::try_from(config).context("cannot build an API client")
}
