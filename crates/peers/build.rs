//! Compiles `proto/`, without protoc.

use std::{error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("proto");
    let files = ["envoy_rls.proto", "dapr_lock.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, [root])?;
    // Comments of a schema are no Rust documentation.
    let services = tonic_prost_build::configure().disable_comments(["."]);
    services.build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
