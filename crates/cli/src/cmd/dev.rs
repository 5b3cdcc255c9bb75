//! `holdfast dev`: the sidecar's whole localhost API from YAML files, in this process.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use holdfast_api::bundle::{Bundle, BundleClass, ClassConfig, MEMORY_BACKEND};
use holdfast_core::{Holder, Kind, Substrate, lock::Keys};
use holdfast_runtime::{Readiness, shutdown};
use holdfast_sidecar::{Compat, Listen, Local};

use crate::files::Declared;

/// The name of the backend behind `--redis`.
const REDIS: &str = "redis";
/// For how long a Redis is waited for before the URL is called wrong.
const REDIS_WITHIN: Duration = Duration::from_secs(3);

/// What to serve, and where.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file or a directory of YAML files with classes, as `kubectl apply` takes them.
    #[arg(short, long = "filename", required = true)]
    files: Vec<PathBuf>,
    /// Keep holds in this Redis (redis://host:port) instead of in memory.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Where to serve: an address of the loopback interface, or unix:/path. May be repeated.
    #[arg(long, env = "HOLDFAST_LISTEN", value_delimiter = ',', default_value = "127.0.0.1:4140")]
    listen: Vec<Listen>,
    /// The address of /metrics, /livez and /readyz.
    #[arg(long, env = "HOLDFAST_ADMIN", default_value = "127.0.0.1:4141")]
    admin: SocketAddr,
    /// Other projects' APIs to serve as well: dapr, elector, rls; each at its usual port on 127.0.0.1,
    /// or at =ADDRESS.
    #[arg(long, env = "HOLDFAST_COMPAT", default_value = "", hide_default_value = true)]
    compat: Compat,
    /// The namespace to pretend to be in.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Who to be to others.
    #[arg(long, default_value = "dev")]
    holder: String,
}

/// Serves until it is told to stop.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.compat.check(false).map_err(anyhow::Error::msg)?;
    let stop = shutdown::on_signal()?;
    let bundle = compile(&args)?;
    let local = Local {
        namespace: args.namespace.clone(),
        holder: Holder::new(&args.holder).context("--holder")?,
        listen: args.listen.clone(),
        page: true,
    };
    let redis = args.redis.as_deref().map(|url| (REDIS, url));
    let (mut serving, epoch) = local.start(&bundle, redis).await?;
    if let Some(epoch) = &epoch
        && !epoch.opened(REDIS_WITHIN).await
    {
        let why = epoch.failed().map(|why| format!(" ({why})")).unwrap_or_default();
        bail!("the Redis does not answer as it must{why}; is it running, and is --redis right?");
    }
    let compat = serving.compat(&args.compat).await?;
    let admin = serving.admin(args.admin, Readiness::default()).await?;
    // Who reads the greeting may be gone after its first line; the server goes on.
    let _ = writeln!(std::io::stdout(), "{}", greeting(&bundle, &serving.listens, admin, &compat));
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        error = serving.failed() => Some(error),
    };
    // Whoever stops `dev` stops the apps on it, too: nothing is kept for a next run.
    serving.close(true).await;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn compile(args: &Args) -> anyhow::Result<Bundle> {
    let (declared, report) = Declared::read(&args.files)?;
    let on = match args.redis {
        None => (MEMORY_BACKEND, Substrate::Memory),
        Some(_) => (REDIS, Substrate::Redis),
    };
    let (bundle, complaints) = declared.compile(&args.namespace, Some(on));
    let complaints: Vec<String> = report.complaints.into_iter().chain(complaints).collect();
    if !complaints.is_empty() {
        bail!("the files have errors:\n{}", complaints.join("\n"));
    }
    if bundle.classes.is_empty() {
        bail!("the files declare no class; see examples/locks.yaml");
    }
    Ok(bundle)
}

fn greeting(bundle: &Bundle, listens: &[Listen], admin: SocketAddr, compat: &Compat) -> String {
    let at = listens.iter().find(|listen| matches!(listen, Listen::Tcp(_))).or(listens.first());
    let (curl, url) = match at {
        Some(Listen::Unix(path)) => {
            (format!("curl --unix-socket {}", path.display()), "http://localhost".to_owned())
        }
        Some(tcp) => ("curl".to_owned(), tcp.to_string()),
        None => ("curl".to_owned(), String::new()),
    };
    let mut lines = vec![
        format!("Holdfast serves {} classes at {url}", bundle.classes.len()),
        format!("  status page  {url}/"),
        format!("  metrics      http://{admin}/metrics"),
    ];
    for (what, at) in [
        ("Dapr, HTTP  ", compat.dapr_http),
        ("Dapr, gRPC  ", compat.dapr_grpc),
        ("elector     ", compat.elector),
        ("Envoy, gRPC ", compat.rls),
    ] {
        lines.extend(at.map(|at| format!("  {what} {at}")));
    }
    lines.extend([String::new(), "Try:".into(), format!("  {curl} -s {url}/v1")]);
    let locks = bundle.classes.iter().filter_map(|class| match &class.config {
        ClassConfig::Lock(config) => Some((&class.name, config)),
        ClassConfig::LeaderElection(_) | ClassConfig::RateLimit(_) | ClassConfig::Semaphore(_) => {
            None
        }
    });
    if let Some((name, config)) = locks.into_iter().next() {
        let key = match &config.keys {
            Keys::Fixed(keys) if keys.len() > 1 => format!("&key={}", keys[0]),
            Keys::Fixed(_) | Keys::Any => String::new(),
        };
        lines.extend([
            format!("  {curl} -s -X POST '{url}/v1/locks/{name}/acquire?waitSeconds=30{key}'"),
            format!("  {curl} -s '{url}/v1/locks/{name}{}'", key.replacen('&', "?", 1)),
            format!("  {curl} -s -X POST '{url}/v1/locks/{name}/release?holdId=HOLD_ID'"),
            format!("  holdfast run --url {url} --lock {name} -- echo 'I hold it'"),
        ]);
    }
    let is_election = |class: &&BundleClass| class.config.kind() == Kind::LeaderElection;
    if let Some(class) = bundle.classes.iter().find(is_election) {
        let name = &class.name;
        lines.extend([
            format!("  {curl} -s -X POST '{url}/v1/elections/{name}/campaign?waitSeconds=5'"),
            format!("  {curl} -s '{url}/v1/elections/{name}/leading'"),
            format!("  {curl} -s -X POST '{url}/v1/elections/{name}/resign'"),
        ]);
    }
    lines.join("\n")
}
