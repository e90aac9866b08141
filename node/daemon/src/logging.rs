//! Logs to stderr, with a filter that can be changed while the daemon runs.

use std::io::IsTerminal as _;
use std::sync::Arc;

use godwit_shared::model::{Problem, codes};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged until the settings are read.
const FIRST_FILTER: &str = "info";

/// Changes what is logged.
#[derive(Clone)]
pub struct LogControl(Arc<Reload>);

type Reload = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogControl").finish_non_exhaustive()
    }
}

impl LogControl {
    /// Starts logging to stderr.
    pub fn start() -> Result<Self, Problem> {
        let (filter, handle) = reload::Layer::new(EnvFilter::new(FIRST_FILTER));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(colours());
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .try_init()
            .map_err(Problem::internal)?;
        Ok(Self(Arc::new(move |filter| handle.reload(filter))))
    }

    /// Replaces the filter.
    pub fn set_filter(&self, text: &str) -> Result<(), Problem> {
        let filter = parse_filter(text)?;
        (self.0)(filter).map_err(Problem::internal)
    }
}

/// Reads a filter: a level, or levels by module.
pub fn parse_filter(text: &str) -> Result<EnvFilter, Problem> {
    EnvFilter::builder().parse(text).map_err(|error| {
        Problem::new(
            codes::CONFIG_INVALID,
            format!("`log` cannot be `{text}`: {error}"),
        )
        .field("log")
        .value(text)
        .remedy(
            "give a level (error, warn, info, debug, trace), or levels by module such as `info,godwit_node::uplink=debug`",
        )
    })
}

/// By the convention of no-color.org.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
