//! Templates and inputs to messages.
