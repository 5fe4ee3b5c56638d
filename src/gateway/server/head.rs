//! What of a request's head the protocol's implementation leaves to us. Where two readers of
//! the same bytes could take them for different requests (a proxy in front, and this
//! gateway), neither guess is right: such a request is refused and its connection closed.

use axum::http::{
    HeaderMap, Method, Version,
    header::{HOST, TRANSFER_ENCODING},
    request::Parts,
    uri::Authority,
};

use crate::openai::error::ApiError;

/// Checks a head.
///
/// # Errors
/// The request is refused, and nothing that follows on its connection can be trusted.
pub(super) fn check(head: &Parts) -> Result<(), ApiError> {
    if head.method == Method::CONNECT {
        let error = ApiError::only("GET, HEAD, POST");
        let message = "this is no proxy: send requests to the gateway's own paths".to_owned();
        return Err(ApiError { message, ..error });
    }
    host(&head.headers, head.version)?;
    transfer_encoding(&head.headers)
}

/// One host, and one that could be (RFC 9112, section 3.2).
fn host(headers: &HeaderMap, version: Version) -> Result<(), ApiError> {
    let refused = |what: &str| {
        let message = format!("{what}: send the header host once, with the gateway's name");
        Err(ApiError::new(400, "invalid_host", message).at("host"))
    };
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (None, _) => refused("the request names no host"),
        (Some(_), Some(_)) => refused("the request names more than one host"),
        (Some(host), None) => {
            let host = host.as_bytes();
            let is_one = Authority::try_from(host).is_ok_and(|name| could_be(&name));
            if host.is_empty() || is_one { Ok(()) } else { refused("the host is none") }
        }
    }
}

/// A name or an address, and perhaps a port.
fn could_be(name: &Authority) -> bool {
    let port = name.as_str().strip_prefix(name.host());
    port.is_some_and(|port| port.len() <= 1 || name.port_u16().is_some())
}

/// A body is sent in chunks or as it is; what else may be done to it on its way is not
/// understood (RFC 9112, section 6.1).
fn transfer_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(first) = codings.next() else { return Ok(()) };
    if codings.next().is_none() && first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let all = headers.get_all(TRANSFER_ENCODING).iter();
    let mut words = all.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let chunked = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(b"chunked");
    let (status, what) = if words.all(chunked) {
        (400, "transfer-encoding says chunked more than once")
    } else {
        (501, "of transfer-encoding only chunked is understood")
    };
    let message = format!("{what}: send the body with content-length, or chunked");
    Err(ApiError::new(status, "unsupported_transfer_encoding", message).at("transfer-encoding"))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn refused(method: &str, version: Version, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0).err().map(|error| error.status)
    }

    #[test]
    fn a_request_names_one_host_and_chunks_its_body_or_does_not() {
        let new = |headers: &[(&str, &str)]| refused("POST", Version::HTTP_11, headers);
        for host in ["g", "g:80", "[::1]:8080", "127.0.0.1", "", "a_b.example"] {
            assert_eq!(new(&[("host", host)]), None, "{host}");
        }
        for host in ["a b", "a/b", "me@g", "a, b", "g:x", "a?b"] {
            assert_eq!(new(&[("host", host)]), Some(400), "{host}");
        }
        assert_eq!(new(&[]), Some(400));
        assert_eq!(new(&[("host", "a"), ("host", "a")]), Some(400));
        assert_eq!(refused("GET", Version::HTTP_10, &[]), None);
        assert_eq!(refused("GET", Version::HTTP_10, &[("host", "a"), ("host", "b")]), Some(400));
        assert_eq!(refused("CONNECT", Version::HTTP_11, &[("host", "g")]), Some(405));
        for (codings, status) in [
            (&["chunked"][..], None),
            (&[" CHUNKED "], None),
            (&["chunked, chunked"], Some(400)),
            (&["chunked", "chunked"], Some(400)),
            (&["gzip, chunked"], Some(501)),
            (&["gzip", "chunked"], Some(501)),
            (&["identity"], Some(501)),
            (&["chunked;q=1"], Some(501)),
            (&[""], Some(501)),
        ] {
            let mut headers = vec![("host", "g")];
            headers.extend(codings.iter().map(|coding| ("transfer-encoding", *coding)));
            assert_eq!(new(&headers), status, "{codings:?}");
        }
    }
}
