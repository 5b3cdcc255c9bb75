//! The custom resource definitions, generated from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
    JSONSchemaPropsOrArray::{Schema, Schemas},
    JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::v1alpha1::{Backend, LeaderElection, Lock, RateLimit, Semaphore};

/// Every definition there is, with the name of the file it is kept in.
pub fn all_crds() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![
        ("holdfast.dev_backends.yaml", plain(Backend::crd())),
        ("holdfast.dev_leaderelections.yaml", plain(LeaderElection::crd())),
        ("holdfast.dev_locks.yaml", plain(Lock::crd())),
        ("holdfast.dev_ratelimits.yaml", plain(RateLimit::crd())),
        ("holdfast.dev_semaphores.yaml", plain(Semaphore::crd())),
    ]
}

/// Without Rust's integer formats, which the API server does not know and warns about at every
/// apply. The bounds of a field are its minimum and maximum.
fn plain(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        schema.into_iter().for_each(strip);
    }
    crd
}

fn strip(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| format.starts_with("uint"));
    schema.properties.iter_mut().flat_map(|all| all.values_mut()).for_each(strip);
    match &mut schema.items {
        Some(Schema(items)) => strip(items),
        Some(Schemas(items)) => items.iter_mut().for_each(strip),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(more)) = &mut schema.additional_properties {
        strip(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_definition_has_a_format_that_the_api_server_warns_about() {
        for (file, crd) in all_crds() {
            let text = serde_json::to_string(&crd).unwrap();
            assert!(!text.contains("\"uint"), "{file}");
        }
    }
}
