//! Which other projects' APIs a sidecar is to serve, and where: the grammar of `--compat` and of the
//! annotation `holdfast.dev/compat`. What is behind the words is the sidecar's.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

/// The usual addresses of the peers' own servers.
const DAPR_HTTP: SocketAddr = loopback(3500);
const DAPR_GRPC: SocketAddr = loopback(50001);
const ELECTOR: SocketAddr = loopback(4040);
const RLS: SocketAddr = loopback(8081);

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// What to serve, and where. Written as `dapr,elector=4041,rls=127.0.0.1:8081`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// Dapr's lock API over HTTP.
    pub dapr_http: Option<SocketAddr>,
    /// Dapr's lock API over gRPC.
    pub dapr_grpc: Option<SocketAddr>,
    /// The name of the leader, as leader-elector says it.
    pub elector: Option<SocketAddr>,
    /// Envoy's rate limit service.
    pub rls: Option<SocketAddr>,
}

impl FromStr for Compat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut compat = Compat::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (word, address) = match item.split_once('=') {
                Some((word, address)) => (word, Some(read_address(item, address)?)),
                None => (item, None),
            };
            let (place, usual) = match word {
                "dapr" if address.is_none() => {
                    compat.dapr_http = Some(DAPR_HTTP);
                    (&mut compat.dapr_grpc, DAPR_GRPC)
                }
                "dapr" => {
                    let why = "it has two servers, dapr-http and dapr-grpc";
                    return Err(format!("\"{item}\": {why}; give each its address"));
                }
                "dapr-http" => (&mut compat.dapr_http, DAPR_HTTP),
                "dapr-grpc" => (&mut compat.dapr_grpc, DAPR_GRPC),
                "elector" => (&mut compat.elector, ELECTOR),
                "rls" => (&mut compat.rls, RLS),
                _ => {
                    let known = "dapr, dapr-http, dapr-grpc, elector, rls";
                    return Err(format!("\"{word}\" is none of {known}"));
                }
            };
            *place = Some(address.unwrap_or(usual));
        }
        Ok(compat)
    }
}

fn read_address(item: &str, text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map(loopback);
    port.or_else(|_| text.parse()).map_err(|_| {
        format!("\"{item}\": after = comes a port, or an address such as 127.0.0.1:8081")
    })
}

impl Compat {
    /// Refuses addresses that anybody could call. A gateway's rate limit service is meant to be.
    ///
    /// # Errors
    /// What to write instead.
    pub fn check(&self, gateway: bool) -> Result<(), String> {
        let all = [
            ("dapr-http", self.dapr_http),
            ("dapr-grpc", self.dapr_grpc),
            ("elector", self.elector),
            ("rls", self.rls.filter(|_| !gateway)),
        ];
        let open = all.into_iter().find(|(_, at)| at.is_some_and(|at| !at.ip().is_loopback()));
        match open {
            Some((word, Some(at))) => {
                let hint = if word == "rls" { " without --gateway" } else { "" };
                Err(format!(
                    "--compat {word}={at} is not on the loopback interface: anybody could call \
                     it{hint}; write {word}={}",
                    at.port()
                ))
            }
            _ if gateway && self.rls.is_none() => Err("--gateway serves rate limits to other \
                pods: say where with --compat rls=0.0.0.0:8081"
                .into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_their_usual_addresses_and_take_others() {
        assert_eq!("".parse(), Ok(Compat::default()));
        let all: Compat = "dapr, elector=4041,rls=[::1]:9000".parse().unwrap();
        assert_eq!(all.dapr_http, Some(loopback(3500)));
        assert_eq!(all.dapr_grpc, Some(loopback(50001)));
        assert_eq!(all.elector, Some(loopback(4041)));
        assert_eq!(all.rls, Some("[::1]:9000".parse().unwrap()));
        let refused = |text: &str| text.parse::<Compat>().unwrap_err();
        assert!(refused("darp").contains("dapr-http"), "{}", refused("darp"));
        assert!(refused("dapr=3500").contains("dapr-grpc"));
        assert!(refused("rls=everywhere").contains("127.0.0.1:8081"));
    }

    #[test]
    fn only_a_gateways_rate_limits_may_be_called_from_elsewhere() {
        let open: Compat = "rls=0.0.0.0:8081".parse().unwrap();
        assert!(open.check(false).unwrap_err().contains("--gateway"));
        assert_eq!(open.check(true), Ok(()));
        for text in ["dapr-http=0.0.0.0:3500,rls", "elector=10.0.0.1:4040,rls"] {
            let open: Compat = text.parse().unwrap();
            assert!(open.check(true).unwrap_err().contains("loopback"), "{text}");
        }
        assert!(Compat::default().check(true).unwrap_err().contains("rls="));
        assert_eq!("dapr,elector,rls".parse::<Compat>().unwrap().check(false), Ok(()));
    }
}
