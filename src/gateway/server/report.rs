//! The report of what was counted: to operators with a proof, to people without.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
};

use super::{Shared, plain::json_answer};
use crate::{
    api::keys::SIGNATURE_HEADER,
    gateway::identity::admit_person,
    openai::error::ApiError,
    signals::{
        proof::{ASKED_HEADER, Proof, Request},
        report::{LEADER_HEADER, Wanted},
    },
};

impl Shared {
    pub(super) fn report(&self, head: &Parts) -> Result<Response<Body>, ApiError> {
        let gateway = &self.gateway;
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let (Some(asked), Some(signature)) = (text(ASKED_HEADER), text(SIGNATURE_HEADER)) else {
            admit_person(gateway.config.people.as_ref(), &head.headers)?;
            return json_answer(&gateway.report(false));
        };
        let request = Request {
            method: head.method.as_str(),
            target: head.uri.path_and_query().map_or("", |target| target.as_str()),
            leader: text(LEADER_HEADER).unwrap_or_default(),
        };
        let Some(proof) = gateway.config.request_keys.proof(&request, asked, signature) else {
            let message = "this gateway does not know the key that signed the question: operators \
                and gateways must read the same --request-id-secret";
            gateway.refused_question(message);
            return Err(ApiError::new(401, "not_an_operator", message));
        };
        let admitted = gateway.asked.admit(&proof, (gateway.config.clock)());
        let (status, body) = match admitted {
            Ok(()) => {
                let wanted = Wanted::of_query(head.uri.query().unwrap_or_default());
                let report = gateway.report_since(!request.leader.is_empty(), wanted);
                (200, serde_json::to_vec(&report))
            }
            Err(error) => {
                gateway.refused_question(&error.message);
                (error.status, serde_json::to_vec(&error.body()))
            }
        };
        let body = body.map_err(|e| ApiError::new(500, "internal_error", e.to_string()))?;
        proven(status, body, &proof)
    }
}

fn proven(status: u16, body: Vec<u8>, proof: &Proof) -> Result<Response<Body>, ApiError> {
    let failed = |why: String| ApiError::new(500, "internal_error", why);
    let mut headers = vec![];
    for (name, value) in proof.headers(status, &body) {
        headers.push((name, HeaderValue::try_from(value).map_err(|e| failed(e.to_string()))?));
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).map_err(|e| failed(e.to_string()))?;
    response.headers_mut().extend(
        headers.into_iter().map(|(name, value)| (header::HeaderName::from_static(name), value)),
    );
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}
