//! Logs to stderr, with a filter that can be changed while the daemon runs.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::Arc;

use godwit_shared::model::{Problem, codes};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt as lines, reload};

/// What is logged until the settings are read.
const FIRST: &str = "warn";

/// Changes what is logged.
#[derive(Clone)]
pub struct LogControl(Arc<Swap>);

type Swap = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").finish_non_exhaustive()
    }
}

impl LogControl {
    /// Starts logging.
    pub fn start() -> Result<Self, Problem> {
        let (filter, handle) = reload::Layer::new(EnvFilter::new(FIRST));
        let colours = std::io::stderr().is_terminal()
            // The convention of no-color.org.
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let stderr = lines::layer()
            .with_writer(std::io::stderr)
            .with_ansi(colours);
        let logs = tracing_subscriber::registry().with(filter).with(stderr);
        logs.try_init().map_err(Problem::internal)?;
        Ok(Self(Arc::new(move |filter| handle.reload(filter))))
    }

    /// Replaces the filter.
    pub fn set(&self, text: &str) -> Result<(), Problem> {
        (self.0)(filter(text)?).map_err(Problem::internal)
    }
}

/// Reads a filter: a level, or levels by module.
pub fn filter(text: &str) -> Result<EnvFilter, Problem> {
    EnvFilter::builder().parse(text).map_err(|error| {
        let what = format!("`log` cannot be `{text}`: {error}");
        Problem::new(codes::CONFIG_INVALID, what).field("log").value(text).remedy(
            "give a level (error, warn, info, debug, trace), or levels by module such as `info,godwit_coordinator=debug`",
        )
    })
}
