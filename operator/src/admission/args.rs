//! The webhook's flags; each has an environment variable, for the chart.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use super::{
    Settings,
    inject::sidecar::{InjectSettings, Resources},
};

/// How the webhook is served and called.
#[derive(Clone, Debug, Args)]
pub struct WebhookArgs {
    /// Where the API server reaches the webhook.
    #[arg(long, env = "HOLDFAST_WEBHOOK_LISTEN", default_value = "0.0.0.0:9443")]
    pub webhook_listen: SocketAddr,
    /// The Service in front of it. Empty: no certificate names but those below.
    #[arg(long, env = "HOLDFAST_WEBHOOK_SERVICE", default_value = "holdfast-webhook")]
    pub webhook_service: String,
    /// More names or addresses that the certificate is for.
    #[arg(long, env = "HOLDFAST_WEBHOOK_NAMES", value_delimiter = ',')]
    pub webhook_names: Vec<String>,
    /// The Secret in which the replicas share the certificates.
    #[arg(long, env = "HOLDFAST_WEBHOOK_SECRET", default_value = "holdfast-webhook-tls")]
    pub webhook_secret: String,
    /// The MutatingWebhookConfiguration whose caBundle is kept.
    #[arg(long, env = "HOLDFAST_WEBHOOK_CONFIGURATION", default_value = "holdfast-injector")]
    pub webhook_configuration: String,
    /// For how many seconds a serving certificate is valid; it is replaced after two thirds.
    #[arg(long, env = "HOLDFAST_CERTIFICATE_LIFE_SECONDS", default_value_t = 90 * 86_400,
          value_parser = clap::value_parser!(u64).range(6..=315_360_000))]
    pub certificate_life_seconds: u64,
    /// What is injected.
    #[command(flatten)]
    pub sidecar: SidecarArgs,
}

/// The sidecars that are injected.
#[derive(Clone, Debug, Args)]
pub struct SidecarArgs {
    /// The image with the sidecar in it.
    #[arg(long, env = "HOLDFAST_SIDECAR_IMAGE")]
    pub sidecar_image: String,
    /// When to pull it.
    #[arg(long, env = "HOLDFAST_SIDECAR_PULL_POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    pub sidecar_pull_policy: String,
    /// The program in the image.
    #[arg(long, env = "HOLDFAST_SIDECAR_COMMAND", default_value = "/holdfast-sidecar")]
    pub sidecar_command: String,
    /// The user it runs as.
    #[arg(long, env = "HOLDFAST_SIDECAR_USER", default_value_t = 65_532,
          value_parser = clap::value_parser!(i64).range(10_000..=2_147_483_647))]
    pub sidecar_user: i64,
    /// What it logs, in tracing's filter syntax.
    #[arg(long, env = "HOLDFAST_SIDECAR_LOG", default_value = "info")]
    pub sidecar_log: String,
    /// How it logs.
    #[arg(long, env = "HOLDFAST_SIDECAR_LOG_FORMAT", default_value = "json",
          value_parser = ["text", "json"])]
    pub sidecar_log_format: String,
    /// The CPU it asks for.
    #[arg(long, env = "HOLDFAST_SIDECAR_CPU_REQUEST", default_value = "10m")]
    pub sidecar_cpu_request: String,
    /// The memory it asks for.
    #[arg(long, env = "HOLDFAST_SIDECAR_MEMORY_REQUEST", default_value = "16Mi")]
    pub sidecar_memory_request: String,
    /// Its CPU limit; empty for none.
    #[arg(long, env = "HOLDFAST_SIDECAR_CPU_LIMIT", default_value = "500m")]
    pub sidecar_cpu_limit: String,
    /// Its memory limit.
    #[arg(long, env = "HOLDFAST_SIDECAR_MEMORY_LIMIT", default_value = "64Mi")]
    pub sidecar_memory_limit: String,
}

impl WebhookArgs {
    /// The settings of an operator in `namespace`.
    pub fn settings(&self, namespace: &str) -> Settings {
        let mut names = Vec::new();
        if !self.webhook_service.is_empty() {
            let service = &self.webhook_service;
            names.push(format!("{service}.{namespace}.svc"));
            names.push(format!("{service}.{namespace}.svc.cluster.local"));
        }
        names.extend(self.webhook_names.iter().filter(|name| !name.is_empty()).cloned());
        Settings {
            listen: self.webhook_listen,
            namespace: namespace.to_owned(),
            names,
            secret: self.webhook_secret.clone(),
            configuration: self.webhook_configuration.clone(),
            certificate_life: Duration::from_secs(self.certificate_life_seconds),
            inject: self.sidecar.settings(namespace),
        }
    }
}

impl SidecarArgs {
    fn settings(&self, namespace: &str) -> InjectSettings {
        InjectSettings {
            image: self.sidecar_image.clone(),
            image_pull_policy: self.sidecar_pull_policy.clone(),
            command: vec![self.sidecar_command.clone()],
            run_as_user: self.sidecar_user,
            log: self.sidecar_log.clone(),
            log_format: self.sidecar_log_format.clone(),
            resources: Resources {
                cpu_request: self.sidecar_cpu_request.clone(),
                memory_request: self.sidecar_memory_request.clone(),
                cpu_limit: self.sidecar_cpu_limit.clone(),
                memory_limit: self.sidecar_memory_limit.clone(),
            },
            own_namespace: namespace.to_owned(),
            ..InjectSettings::default()
        }
    }
}
