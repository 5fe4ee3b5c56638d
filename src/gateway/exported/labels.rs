//! The labels of each kind of series.

use std::{fmt::Write, sync::Arc};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::audit::record::TraceContext;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Attempt {
    pub release: Arc<str>,
    pub revision: Arc<str>,
    pub role: &'static str,
    pub reason: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Checked {
    pub release: Arc<str>,
    pub revision: Arc<str>,
    pub traffic: &'static str,
    pub check: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Dropped {
    pub release: Arc<str>,
    pub revision: Arc<str>,
    pub why: &'static str,
}

/// What the conventions ask for, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Asked {
    pub gen_ai_operation_name: &'static str,
    pub gen_ai_provider_name: Arc<str>,
    pub gen_ai_request_model: Arc<str>,
    pub release: Arc<str>,
    pub revision: Arc<str>,
    pub traffic: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Ended {
    #[prometheus(flatten)]
    pub asked: Asked,
    /// Empty of what went well, as if there was no such label.
    pub error_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TokenType {
    #[prometheus(flatten)]
    pub asked: Asked,
    pub gen_ai_token_type: &'static str,
}

/// The exemplar: a trace that had such a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Trace {
    trace_id: Hex<16>,
    span_id: Hex<8>,
}

impl From<TraceContext> for Trace {
    fn from(trace: TraceContext) -> Self {
        Self { trace_id: Hex(trace.trace_id), span_id: Hex(trace.span_id) }
    }
}

/// Written only when it is scraped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> EncodeLabelValue for Hex<N> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.iter().try_for_each(|byte| write!(encoder, "{byte:02x}"))
    }
}
