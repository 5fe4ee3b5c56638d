//! Prices and usage to money.
