//! Ports of the servers that tests start. One that was free a moment ago may be another process's
//! by the time that a server binds it: what counts is who listens.

use std::{fs, net::TcpListener, process::Child, thread::sleep, time::Duration};

/// A port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until these processes listen on all of the ports; `false` once one of them has ended, as a
/// server does that finds its port taken.
pub fn listen(processes: &mut [Child], ports: &[u16]) -> bool {
    for _ in 0..3_000 {
        let theirs: Vec<u16> = processes.iter().flat_map(|process| of(process.id())).collect();
        if processes.iter_mut().any(|process| process.try_wait().unwrap().is_some()) {
            return false;
        }
        if ports.iter().all(|port| theirs.contains(port)) {
            return true;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("nobody listens on some of {ports:?}");
}

/// The TCP ports on which a process listens, as the kernel tells them.
fn of(process: u32) -> Vec<u16> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let open: Vec<String> = files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        for line in table.lines() {
            // A number, the own address, the other one, the state (0A: it listens), …, the inode.
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, own, _, "0A", _, _, _, _, _, inode, ..] = words[..]
                && open.contains(&format!("socket:[{inode}]"))
            {
                let (_, port) = own.rsplit_once(':').unwrap();
                ports.push(u16::from_str_radix(port, 16).unwrap());
            }
        }
    }
    ports
}
