//! Other projects' APIs over the sidecar's own calls, for clients that people already have.
//!
//! Adapters only: what may be done, and what comes of it, is for [`Sidecar`](crate::Sidecar) to say.
//! Nothing here runs, or takes memory, unless it was asked for. See docs/design/0008-compat.md.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use axum::Router;
pub use holdfast_api::compat::Compat;
use holdfast_peers::dapr::dapr_server::DaprServer;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    routes::{self, direct::App},
    run::Serving,
    serve::{self, Listen, Listener},
};

pub mod dapr;
pub mod elector;
pub mod grpc;
pub mod rls;

impl Serving {
    /// Serves what was asked for, beside the native API. Returns where, with the ports that were
    /// really taken.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn compat(&mut self, wanted: &Compat) -> anyhow::Result<Compat> {
        let mut bound = Compat::default();
        if wanted.dapr_http.is_some() || wanted.dapr_grpc.is_some() {
            let dapr = dapr::Dapr::new(self.sidecar.clone());
            if let Some(at) = wanted.dapr_http {
                let router = routes::router(self.sidecar.clone(), false);
                let router = router.merge(dapr::http::routes(dapr.clone()));
                bound.dapr_http = Some(self.serve_http("dapr-http", at, router).await?);
            }
            if let Some(at) = wanted.dapr_grpc {
                let service = DaprServer::from_arc(Arc::new(dapr::grpc::Locks(dapr)));
                let service = service.max_decoding_message_size(grpc::MAX_MESSAGE);
                let (local, serving) =
                    grpc::serve("dapr-grpc", at, service, self.sidecar.stopped.clone()).await?;
                self.servers.push(AbortOnDropHandle::new(tokio::spawn(serving)));
                bound.dapr_grpc = Some(local);
            }
        }
        if let Some(at) = wanted.elector {
            let router = elector::routes(self.sidecar.clone());
            bound.elector = Some(self.serve_http("elector", at, router).await?);
        }
        if let Some(at) = wanted.rls {
            let service = rls::service(self.sidecar.clone(), &self.registry)?;
            let (local, serving) =
                grpc::serve("rls", at, service, self.sidecar.stopped.clone()).await?;
            self.servers.push(AbortOnDropHandle::new(tokio::spawn(serving)));
            bound.rls = Some(local);
        }
        Ok(bound)
    }

    async fn serve_http(
        &mut self,
        word: &str,
        at: SocketAddr,
        router: Router,
    ) -> anyhow::Result<SocketAddr> {
        let app = Arc::new(App { sidecar: self.sidecar.clone(), router });
        let listener = Listener::bind(&Listen::Tcp(at)).await.with_context(|| taken(word))?;
        let Listen::Tcp(local) = listener.local()? else { return Ok(at) };
        let serving = serve::serve(listener, app, self.sidecar.stopped.clone());
        self.servers.push(AbortOnDropHandle::new(tokio::spawn(serving)));
        Ok(local)
    }
}

fn taken(word: &str) -> String {
    format!("cannot serve {word}: give it another address with --compat {word}=ADDRESS")
}
