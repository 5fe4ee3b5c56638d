//! The OpenAI wire format.
