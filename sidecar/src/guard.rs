//! Who may talk to a server on localhost: programs of this pod, not pages in a browser on it.
//!
//! A web page can make a browser send requests to localhost (cross-site requests, DNS rebinding). Its
//! requests carry a foreign Host, an Origin, or Sec-Fetch-Site; programs' requests do not.

use axum::http::{HeaderMap, Method, Request, header};
use holdfast_wire::Code;

use crate::error::Failure;

/// Refuses what comes from a browser page or was meant for another host.
///
/// # Errors
/// 421, 403 or 415.
pub fn check<B>(request: &Request<B>) -> Result<(), Failure> {
    let headers = request.headers();
    check_host(headers)?;
    if headers.contains_key(header::ORIGIN) || is_cross_site(headers) {
        let why = "requests of web pages are refused; call from the app's own process";
        return Err(Failure::new(Code::Forbidden, why));
    }
    if request.method() == Method::POST && has_body(headers) && !is_json(headers) {
        let why = "a body must be JSON, with content-type: application/json; \
                   or send the fields as query parameters";
        return Err(Failure::new(Code::NotJson, why));
    }
    Ok(())
}

fn check_host(headers: &HeaderMap) -> Result<(), Failure> {
    // HTTP/1.0 and Unix-socket clients may send none.
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let name = host.to_str().unwrap_or_default();
    let name = match name.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => name.split(':').next().unwrap_or_default(),
    };
    match name {
        "localhost" | "127.0.0.1" | "::1" | "" => Ok(()),
        _ => {
            let why = "the Host header must be localhost, 127.0.0.1 or [::1]";
            Err(Failure::new(Code::Misdirected, why))
        }
    }
}

fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
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
