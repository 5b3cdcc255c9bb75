//! The custom resource definitions, generated from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::v1alpha1::{Backend, Lock};

/// Every definition there is, with the name of the file it is kept in.
pub fn all_crds() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![("holdfast.dev_backends.yaml", Backend::crd()), ("holdfast.dev_locks.yaml", Lock::crd())]
}
