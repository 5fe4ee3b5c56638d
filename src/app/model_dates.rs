//! The flag that says when models end.

use std::{path::PathBuf, sync::Arc};

use anyhow::anyhow;

use crate::signals::model_dates::ModelDates;

/// Files that others keep.
#[derive(Debug, clap::Args)]
#[group(id = "dates")]
pub struct Options {
    /// A file that says when models end, for models of which neither spec.retiresOn nor the
    /// server says it: LiteLLM's list of models (`deprecation_date`), or a product of
    /// endoflife.date's API v1, as JSON. It may change at any time. Several may be named.
    #[arg(long, value_name = "FILE")]
    model_dates: Vec<PathBuf>,
}

impl Options {
    /// Reads the files.
    ///
    /// # Errors
    /// One can not be read, or has no date of a model.
    pub fn build(&self) -> anyhow::Result<Arc<ModelDates>> {
        ModelDates::open(self.model_dates.clone()).map_err(|why| anyhow!("--model-dates: {why}"))
    }
}
