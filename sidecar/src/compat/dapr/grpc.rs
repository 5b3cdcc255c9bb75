//! The gRPC side of Dapr's lock API: `TryLockAlpha1` and `UnlockAlpha1`.

use std::sync::Arc;

use holdfast_peers::{
    dapr::{TryLockRequest, TryLockResponse, UnlockRequest, UnlockResponse, dapr_server},
    tonic::{self, Request, Response, Status},
};

use super::{Dapr, FENCE, Refusal, Unlocked};
use crate::compat::grpc::status;

/// The service.
pub struct Locks(pub Arc<Dapr>);

#[tonic::async_trait]
impl dapr_server::Dapr for Locks {
    async fn try_lock_alpha1(
        &self,
        request: Request<TryLockRequest>,
    ) -> Result<Response<TryLockResponse>, Status> {
        let request = request.into_inner();
        let (store, resource) = (&request.store_name, &request.resource_id);
        let expiry = request.expiry_in_seconds.into();
        let view = self.0.try_lock(store, resource, &request.lock_owner, expiry).await?;
        let mut answer = Response::new(TryLockResponse { success: view.is_some() });
        if let Some(fence) = view.and_then(|view| view.fence.to_string().parse().ok()) {
            answer.metadata_mut().insert(FENCE, fence);
        }
        Ok(answer)
    }

    async fn unlock_alpha1(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let request = request.into_inner();
        let (store, resource) = (&request.store_name, &request.resource_id);
        let unlocked: Unlocked = self.0.unlock(store, resource, &request.lock_owner).await?;
        Ok(Response::new(UnlockResponse { status: unlocked as i32 }))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) | Refusal::NoStore(why) => Status::invalid_argument(why),
            Refusal::TryLock(failure) | Refusal::Unlock(failure) => status(&failure),
        }
    }
}
