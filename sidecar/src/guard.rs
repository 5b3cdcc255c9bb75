//! Who may talk to a server on localhost: programs of this pod, not pages in a browser on it.
//!
//! A web page can make a browser send requests to localhost (cross-site requests, DNS rebinding). Its
//! requests carry a foreign Host, an Origin, or Sec-Fetch-Site; programs' requests do not.

use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use holdfast_wire::Code;

use crate::error::Failure;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what comes from a browser page or was meant for another host.
///
/// # Errors
/// 421, 403 or 415.
pub fn check<B>(request: &Request<B>) -> Result<(), Failure> {
    let (mut has_body, mut kind) = (false, None);
    // Once over all of them: a request has few, and a look-up each would cost more.
    for (name, value) in request.headers() {
        if name == header::HOST {
            check_host(value)?;
        } else if name == header::ORIGIN || is_cross_site(name, value) {
            let why = "requests of web pages are refused; call from the app's own process";
            return Err(Failure::new(Code::Forbidden, why));
        } else if name == header::TRANSFER_ENCODING {
            has_body = true;
        } else if name == header::CONTENT_LENGTH {
            has_body |= value != "0";
        } else if name == header::CONTENT_TYPE {
            kind = kind.or(Some(value));
        }
    }
    if has_body && request.method() == Method::POST && !kind.is_some_and(is_json) {
        let why = "a body must be JSON, with content-type: application/json; \
                   or send the fields as query parameters";
        return Err(Failure::new(Code::NotJson, why));
    }
    Ok(())
}

/// HTTP/1.0 and Unix-socket clients may send none.
fn check_host(host: &HeaderValue) -> Result<(), Failure> {
    let (name, end) = match host.as_bytes() {
        [b'[', v6 @ ..] => (v6, b']'),
        name => (name, b':'),
    };
    match memchr::memchr(end, name).map_or(name, |end| &name[..end]) {
        b"localhost" | b"127.0.0.1" | b"::1" | b"" => Ok(()),
        _ => {
            let why = "the Host header must be localhost, 127.0.0.1 or [::1]";
            Err(Failure::new(Code::Misdirected, why))
        }
    }
}

fn is_cross_site(name: &HeaderName, value: &HeaderValue) -> bool {
    *name == SEC_FETCH_SITE && !matches!(value.as_bytes(), b"same-origin" | b"none")
}

fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(headers: &[(&str, &str)]) -> Option<Code> {
        let mut request = Request::post("/v1/locks/a/acquire");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap()).err().map(|failure| failure.0.code)
    }

    #[test]
    fn pages_and_foreign_hosts_are_refused_and_programs_are_not() {
        assert_eq!(verdict(&[("host", "127.0.0.1:4140")]), None);
        assert_eq!(verdict(&[("host", "[::1]:4140")]), None);
        assert_eq!(verdict(&[("host", "localhost")]), None);
        assert_eq!(verdict(&[("host", "evil.example:4140")]), Some(Code::Misdirected));
        assert_eq!(verdict(&[("host", "localhost.evil.example")]), Some(Code::Misdirected));
        assert_eq!(verdict(&[("origin", "http://localhost:3000")]), Some(Code::Forbidden));
        assert_eq!(verdict(&[("sec-fetch-site", "cross-site")]), Some(Code::Forbidden));
        assert_eq!(verdict(&[("content-length", "2")]), Some(Code::NotJson));
        let json = ("content-type", "application/json; charset=utf-8");
        assert_eq!(verdict(&[("content-length", "2"), json]), None);
    }
}
