//! Envoy's question over gRPC, in memory, beside a tonic server that answers a constant.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use holdfast_peers::{
    prost::Message,
    rls::{
        RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
        rate_limit_descriptor::Entry,
        rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit},
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
    tonic::{
        self, Request, Response, Status,
        transport::{Server as Tonic, server::TcpIncoming},
    },
};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Bench,
    figures::{Figure, Target, median},
    process::{FIRST, Server},
};

/// As an Envoy of four threads has them.
const CONNECTIONS: usize = 4;
const STREAMS: usize = 8;

/// Answers as if there were a limit.
struct Constant;

#[tonic::async_trait]
impl RateLimitService for Constant {
    async fn should_rate_limit(
        &self,
        _: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let limit = RateLimit {
            name: "bench/l".into(),
            requests_per_unit: 100_000_000,
            unit: Unit::Second.into(),
        };
        let status = DescriptorStatus {
            code: Code::Ok.into(),
            current_limit: Some(limit),
            limit_remaining: 99_999_999,
            duration_until_reset: None,
        };
        Ok(Response::new(RateLimitResponse {
            overall_code: Code::Ok.into(),
            statuses: vec![status],
            response_headers_to_add: Vec::new(),
        }))
    }
}

/// The floor: tonic and nothing else.
pub async fn constant(port: u16) -> anyhow::Result<()> {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], port).into())?.with_nodelay(Some(true));
    let service = RateLimitServiceServer::new(Constant);
    Ok(Tonic::builder().serve_with_incoming(service, incoming).await?)
}

/// A question as it is on the wire.
fn question(key: usize) -> Bytes {
    let entry = Entry { key: "remote_address".into(), value: format!("10.0.0.{key}") };
    let descriptor = RateLimitDescriptor { entries: vec![entry], ..Default::default() };
    let message =
        RateLimitRequest { domain: "bench".into(), descriptors: vec![descriptor], hits_addend: 0 };
    let message = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

/// Asks once; leaner than a tonic client, because it shares the machine with what it measures.
async fn ask(client: &h2::client::SendRequest<Bytes>, question: Bytes) -> anyhow::Result<()> {
    let uri = "http://localhost/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
    let request = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut body) = client.clone().ready().await?.send_request(request, false)?;
    body.send_data(question, true)?;
    let mut body = answer.await?.into_body();
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        length += chunk.len();
        body.flow_control().release_capacity(chunk.len())?;
    }
    let trailers = body.trailers().await?.context("no trailers")?;
    ensure!(trailers["grpc-status"] == "0" && length > 5, "{trailers:?}");
    Ok(())
}

/// One slice: requests per second, CPU µs per request.
async fn slice(server: &Server, lasts: Duration) -> anyhow::Result<(f64, f64)> {
    let mut tasks = JoinSet::new();
    let (begun, cpu) = (Instant::now(), server.cpu()?);
    for connection in 0..CONNECTIONS {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await?;
        stream.set_nodelay(true)?;
        let (client, driver) = h2::client::handshake(stream).await?;
        tokio::spawn(driver);
        for stream in 0..STREAMS {
            let (client, question) = (client.clone(), question(connection * STREAMS + stream));
            tasks.spawn(async move {
                let mut requests = 0u64;
                while begun.elapsed() < lasts {
                    ask(&client, question.clone()).await?;
                    requests += 1;
                }
                anyhow::Ok(requests)
            });
        }
    }
    let mut requests = 0;
    while let Some(done) = tasks.join_next().await {
        requests += done??;
    }
    let (took, used) = (begun.elapsed().as_secs_f64(), server.cpu()? - cpu);
    Ok((requests as f64 / took, used * 1e6 / requests as f64))
}

/// Asks so many times, over all connections and streams.
pub async fn ask_often(server: &Server, each: usize) -> anyhow::Result<usize> {
    let mut tasks = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await?;
        stream.set_nodelay(true)?;
        let (client, driver) = h2::client::handshake(stream).await?;
        tokio::spawn(driver);
        for stream in 0..STREAMS {
            let (client, question) = (client.clone(), question(connection * STREAMS + stream));
            tasks.spawn(async move {
                for _ in 0..each {
                    ask(&client, question.clone()).await?;
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(CONNECTIONS * STREAMS * each)
}

/// A sidecar that answers Envoys, in memory. It lives as long as the folder of its class.
pub async fn sidecar(bench: &Bench) -> anyhow::Result<(Server, tempfile::TempDir)> {
    let classes = tempfile::tempdir()?;
    let file = classes.path().join("bench.yaml");
    let yaml = "{apiVersion: holdfast.dev/v1alpha1, kind: RateLimit, metadata: {name: bench}, \
                spec: {backend: any, limits: [{name: l, limit: 100000000, windowSeconds: 1}]}}\n";
    std::fs::write(&file, yaml)?;
    let server = Server::start(FIRST, &bench.bin.join("holdfast"), |port| {
        let words = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log", "warn"];
        let mut args: Vec<String> = words.map(str::to_owned).into();
        args.extend(["-f".into(), file.display().to_string()]);
        args.extend(["--compat".into(), format!("rls={port}")]);
        args
    })
    .await?;
    Ok((server, classes))
}

/// Rates and costs beside the floor's.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (rounds, lasts) = if bench.quick { (2, 1) } else { (7, 2) };
    let lasts = Duration::from_secs(lasts);
    let own = std::env::current_exe()?;
    let floor = Server::start(FIRST, &own, |port| vec!["f0-grpc".into(), port.to_string()]).await?;
    let (ours, _classes) = sidecar(bench).await?;
    let (mut rates, mut costs): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for round in 0..=rounds {
        for (index, server) in [&floor, &ours].into_iter().enumerate() {
            let (rate, cost) = slice(server, lasts).await?;
            // The first round warms up.
            if round > 0 {
                rates[index].push(rate);
                costs[index].push(cost);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let ratio = |all: &[Vec<f64>; 2]| {
        median(all[1].iter().zip(&all[0]).map(|(ours, floor)| ours / floor).collect())
    };
    let middle = |all: &[Vec<f64>; 2], index: usize| median(all[index].clone());
    Ok(vec![
        Figure::new(
            "Envoy's gRPC, memory: ÷ a constant's",
            ratio(&rates),
            "",
            Target::AtLeast(0.8),
        )
        .note(format!(
            "{:.0} of {:.0} requests/s (tonic)",
            middle(&rates, 1),
            middle(&rates, 0)
        )),
        Figure::new("Envoy's gRPC, memory: CPU ÷ its", ratio(&costs), "", Target::AtMost(1.25))
            .note(format!("{:.1} of {:.1} µs a request", middle(&costs, 1), middle(&costs, 0))),
    ])
}
