//! The README's tour, command by command as it is written there.

use std::process::{Command, Stdio};

use crate::support::{Dev, HOLDFAST, root};

/// The commands of the block after the marker, comments left out.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- tour:").expect("the marker");
    let (_, rest) = rest.split_once("```sh\n").expect("a block");
    let (block, _) = rest.split_once("```").expect("its end");
    let is_command = |line: &&str| !line.is_empty() && !line.starts_with('#');
    block.lines().filter(is_command).map(str::to_owned).collect()
}

#[test]
fn every_command_of_the_tour_does_what_it_says() {
    let dev = Dev::start(&root().join("examples"), &[]);
    let bin = std::path::Path::new(HOLDFAST).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut expected = [
        "\"holdId\"",
        "\"held\":true",
        "\"code\":\"locked\"",
        "\"takenFrom\"",
        "\"state\":\"leading\"",
        "\"term\"",
        "\"permits\":2",
        "ratelimit-policy: ",
        "my fence is ",
        "LOCK",
        "nightly-report",
        "410",
        "no errors",
    ]
    .into_iter();
    for command in commands() {
        let here = command.replace("http://127.0.0.1:4140", &dev.url);
        let output = Command::new("sh")
            .args(["-ec", &here])
            .current_dir(root())
            .env("PATH", &path)
            .env("HOLDFAST_URL", &dev.url)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {output:?}");
        let wanted = expected.next().expect("a command that is not expected");
        assert!(text.contains(wanted), "{command}: {text}");
    }
    assert_eq!(expected.next(), None, "a command is missing from the tour");
}
