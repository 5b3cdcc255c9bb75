//! The README's commands for a cluster, as they are written there.

use std::process::Command;

use holdfast_e2e::{Namespace, kubectl, root, tools_path};

/// The commands of the block below a heading, comments left out.
fn commands(heading: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once(heading).expect("the heading");
    let (_, rest) = rest.split_once("```sh\n").expect("a block");
    let (block, _) = rest.split_once("```").expect("its end");
    let is_command = |line: &&str| !line.is_empty() && !line.starts_with('#');
    block.lines().filter(is_command).map(str::to_owned).collect()
}

#[test]
fn every_command_for_a_cluster_does_what_it_says() {
    let namespace = Namespace::new("readme");
    let commands = commands("## In a cluster");
    // A context of its own, so that the commands need no namespace.
    let config = std::env::temp_dir().join(format!("holdfast-readme-{}", std::process::id()));
    std::fs::write(&config, kubectl(&["config", "view", "--raw"])).unwrap();
    let run = |command: &str| {
        let output = Command::new("sh")
            .args(["-ec", command])
            .current_dir(root())
            .env("PATH", tools_path())
            .env("KUBECONFIG", &config)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run(&format!("kubectl config set-context --current --namespace={}", namespace.name));
    let mut outputs = Vec::new();
    for command in &commands {
        // It is installed already, by the same flags; here it is enough that they are understood.
        outputs.push(run(&command.replace("helm install", "helm template")));
    }
    std::fs::remove_file(&config).unwrap();
    assert!(commands[0].starts_with("helm install holdfast charts/holdfast"), "{commands:?}");
    assert!(outputs[1].contains("lock.holdfast.dev/nightly-report created"), "{outputs:?}");
    let last = outputs.last().unwrap();
    for column in ["READY", "HOLDER", "FENCE", "WAITING", "BACKEND", "GUARANTEE"] {
        let says = commands.last().unwrap();
        assert!(last.contains(column) && says.contains(column), "{column}: {last} {says}");
    }
    assert!(last.lines().any(|line| line.starts_with("nightly-report") && line.contains("True")));
}
