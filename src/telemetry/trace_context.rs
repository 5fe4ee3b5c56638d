//! Where a request stands in a trace: W3C Trace Context, level 1.
//!
//! A request that names its trace goes on in it, and its caller's decision whether the
//! trace is recorded holds. Any other starts a trace of its own. A later attempt (a retry,
//! a fallback, a copy) is a child of the attempt that caused it, so that every trace has
//! one root and reads as what happened.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::audit::record::TraceContext;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `00-<32 hex>-<16 hex>-<2 hex>`
const LENGTH: usize = 55;

/// What the caller told of its own span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub span_id: [u8; 8],
    /// Whether the caller records the trace.
    pub sampled: bool,
}

/// Reads a `traceparent` header; none when it breaks a rule of the specification, which
/// says that such a request starts a new trace.
pub fn parse_traceparent(value: &[u8]) -> Option<Parent> {
    let (head, more) = value.split_at_checked(LENGTH)?;
    let version = byte(head.get(..2)?)?;
    // Later versions may add fields, and must keep these.
    if version == 0xff
        || (version == 0 && !more.is_empty())
        || more.first().is_some_and(|b| *b != b'-')
    {
        return None;
    }
    if [2, 35, 52].iter().any(|at| head.get(*at) != Some(&b'-')) {
        return None;
    }
    let parent = Parent {
        trace_id: bytes(head.get(3..35)?)?,
        span_id: bytes(head.get(36..52)?)?,
        sampled: byte(head.get(53..)?)? & 1 == 1,
    };
    (parent.trace_id != [0; 16] && parent.span_id != [0; 8]).then_some(parent)
}

fn bytes<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = self::byte(pair)?;
    }
    Some(out)
}

fn byte(hex: &[u8]) -> Option<u8> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        // The specification allows lower case only.
        _ => None,
    };
    match hex {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

/// What a gateway decides by: whether it traces, which share, and whether it keeps what
/// was said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tracing {
    /// The share of traces that are recorded when the caller says nothing; none when
    /// traces are off.
    pub ratio: Option<f64>,
    /// How many bytes of the input and of the output a record keeps; none keeps neither.
    pub content_bytes: Option<usize>,
}

impl Tracing {
    /// The first attempt's place in a trace; none when traces are off.
    pub fn start(&self, traceparent: Option<&HeaderValue>) -> Option<TraceContext> {
        let ratio = self.ratio?;
        let span_id = new_span_id();
        if let Some(caller) = traceparent.and_then(|value| parse_traceparent(value.as_bytes())) {
            let Parent { trace_id, span_id: parent, sampled } = caller;
            return Some(TraceContext { trace_id, span_id, parent: Some(parent), sampled });
        }
        let id = rand::random_range(1..=u128::MAX);
        // By 56 bits of the id, as in OpenTelemetry's consistent sampling: another process
        // with the same share decides alike.
        let draw = (id & ((1 << 56) - 1)) as f64 / (1_u64 << 56) as f64;
        let trace_id = id.to_be_bytes();
        Some(TraceContext { trace_id, span_id, parent: None, sampled: draw >= 1.0 - ratio })
    }

    /// How many bytes of input and output the record of this request should keep: nothing
    /// is kept that nobody will read.
    pub fn content_of(&self, trace: Option<&TraceContext>) -> Option<usize> {
        self.content_bytes.filter(|_| trace.is_some_and(|trace| trace.sampled))
    }
}

fn new_span_id() -> [u8; 8] {
    rand::random_range(1..=u64::MAX).to_be_bytes()
}

/// The place of an attempt that another one caused: a retry, a fallback, a copy.
pub fn follow(earlier: &TraceContext) -> TraceContext {
    TraceContext { span_id: new_span_id(), parent: Some(earlier.span_id), ..*earlier }
}

/// The header that tells the backend of this attempt's span.
pub fn traceparent(trace: &TraceContext) -> HeaderValue {
    let mut text = String::with_capacity(LENGTH);
    text.push_str("00-");
    for (id, end) in [(&trace.trace_id[..], '-'), (&trace.span_id[..], '-')] {
        for byte in id {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push(end);
    }
    text.push_str(if trace.sampled { "01" } else { "00" });
    // Hexadecimal digits are a valid value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Passes the trace on to the backend: this attempt's span and the caller's `tracestate`,
/// or both headers as they came when traces are off.
pub fn propagate(trace: Option<&TraceContext>, from: &HeaderMap, to: &mut HeaderMap) {
    let Some(caller) = from.get(&TRACEPARENT) else {
        if let Some(trace) = trace {
            to.insert(TRACEPARENT, traceparent(trace));
        }
        return;
    };
    let valid = parse_traceparent(caller.as_bytes()).is_some();
    match trace {
        Some(trace) => to.insert(TRACEPARENT, traceparent(trace)),
        None => to.insert(TRACEPARENT, caller.clone()),
    };
    // It belongs to the caller's trace; of an invalid one it means nothing.
    if valid {
        for state in from.get_all(&TRACESTATE) {
            to.append(TRACESTATE, state.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn on(ratio: f64) -> Tracing {
        Tracing { ratio: Some(ratio), content_bytes: None }
    }

    #[test]
    fn the_specifications_example_is_read_and_goes_on() {
        let header = HeaderValue::from_static(EXAMPLE);
        let trace = on(0.0).start(Some(&header)).unwrap();
        assert_eq!(trace.trace_id[..4], [0x4b, 0xf9, 0x2f, 0x35]);
        assert_eq!(trace.parent, Some([0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        assert!(trace.sampled, "the caller's decision holds");
        let told = traceparent(&trace);
        assert!(told.to_str().unwrap().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        let read = parse_traceparent(told.as_bytes()).unwrap();
        assert_eq!((read.trace_id, read.span_id), (trace.trace_id, trace.span_id));
    }

    #[test]
    fn a_caller_that_does_not_record_is_followed_too() {
        let header =
            HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
        assert!(!on(1.0).start(Some(&header)).unwrap().sampled);
    }

    #[test]
    fn what_breaks_a_rule_starts_another_trace() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
        ] {
            assert_eq!(parse_traceparent(wrong.as_bytes()), None, "{wrong}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        assert!(parse_traceparent(later.as_bytes()).is_some(), "of a later version it is read");
    }

    #[test]
    fn the_ratio_is_the_share_of_recorded_traces() {
        let recorded = |ratio| {
            let draw = |_: &usize| on(ratio).start(None).unwrap().sampled;
            (0..4000).filter(draw).count()
        };
        assert_eq!(recorded(0.0), 0);
        assert_eq!(recorded(1.0), 4000);
        // Ten standard deviations.
        assert!((726..=1274).contains(&recorded(0.25)), "{}", recorded(0.25));
        assert_eq!(Tracing::default().start(None), None, "off");
    }

    #[test]
    fn a_later_attempt_is_a_child_of_the_one_before() {
        let first = on(1.0).start(None).unwrap();
        let second = follow(&first);
        assert_eq!((second.trace_id, second.parent), (first.trace_id, Some(first.span_id)));
        assert_ne!(second.span_id, first.span_id);
    }

    #[test]
    fn the_callers_state_is_passed_on_with_its_trace_only() {
        let headers = |parent: &'static str| {
            HeaderMap::from_iter([
                (TRACEPARENT, HeaderValue::from_static(parent)),
                (TRACESTATE, HeaderValue::from_static("a=1")),
                (TRACESTATE, HeaderValue::from_static("b=2")),
            ])
        };
        let (valid, wrong) = (headers(EXAMPLE), headers("wrong"));
        let trace = on(1.0).start(valid.get(TRACEPARENT)).unwrap();
        let mut to = HeaderMap::new();
        propagate(Some(&trace), &valid, &mut to);
        assert_eq!(to.get_all(TRACESTATE).iter().count(), 2);
        assert_eq!(to[TRACEPARENT], traceparent(&trace));
        let mut to = HeaderMap::new();
        propagate(None, &valid, &mut to);
        assert_eq!(to[TRACEPARENT], EXAMPLE, "traces are off: as it came");
        let mut to = HeaderMap::new();
        propagate(Some(&trace), &wrong, &mut to);
        assert_eq!((to.len(), &to[TRACEPARENT]), (1, &traceparent(&trace)));
    }

    #[test]
    fn content_is_kept_only_for_traces_that_are_recorded() {
        let tracing = Tracing { content_bytes: Some(9), ..on(1.0) };
        let trace = tracing.start(None).unwrap();
        assert_eq!(tracing.content_of(Some(&trace)), Some(9));
        assert_eq!(tracing.content_of(Some(&TraceContext { sampled: false, ..trace })), None);
        assert_eq!(on(1.0).content_of(Some(&trace)), None);
    }
}
