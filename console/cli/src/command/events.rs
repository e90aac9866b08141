//! `godwit events`: a look back, or a stream without end.

use std::time::Duration;

use godwit_shared::api::{ClusterStatus, Event};

use crate::args::{EventsArgs, Format};
use crate::client::Client;
use crate::client::events::{EventStream, Happening};
use crate::failure::{Exit, Failure};
use crate::output::problem::clean;
use crate::output::{Item, Ui, views};
use crate::progress::ctrl_c;

/// Events of a look back, unless told otherwise.
const BACK: u64 = 100;

/// Events before the new ones when following.
const BACK_FOLLOWING: u64 = 10;

/// How long a look back waits for an event that the coordinator says it has.
const STALL: Duration = Duration::from_secs(10);

pub(super) async fn run(args: &EventsArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let status: Item<ClusterStatus> = client.one("/cluster").await?;
    let newest = status.view.last_event;
    let after = args.after.unwrap_or_else(|| {
        let back = if args.follow { BACK_FOLLOWING } else { BACK };
        newest.saturating_sub(args.last.unwrap_or(back))
    });
    let stream = EventStream::after(client, after);
    if args.follow {
        let mut interrupt = ctrl_c()?;
        return tokio::select! {
            end = follow(stream, ui) => end,
            _ = interrupt.recv() => Err(Failure::silent(Exit::Interrupted)),
        };
    }
    look_back(stream, after, newest, ui).await
}

async fn look_back(
    mut stream: EventStream<'_>,
    after: u64,
    newest: u64,
    ui: &Ui,
) -> Result<(), Failure> {
    if newest <= after {
        ui.note("there are no such events");
        return Ok(());
    }
    while let Ok(next) = tokio::time::timeout(STALL, stream.next()).await {
        match next? {
            Happening::Event(event) => {
                print(&event, ui)?;
                if event.view.seq >= newest {
                    break;
                }
            }
            other => remark(&other, ui),
        }
    }
    Ok(())
}

async fn follow(mut stream: EventStream<'_>, ui: &Ui) -> Result<(), Failure> {
    loop {
        match stream.next().await? {
            Happening::Event(event) => print(&event, ui)?,
            other => remark(&other, ui),
        }
    }
}

fn remark(happening: &Happening, ui: &Ui) {
    match happening {
        Happening::Event(_) => {}
        Happening::Gap(words) => {
            ui.note(&format!(
                "(older events are not kept any more) {}",
                clean(words)
            ));
        }
        Happening::Lost => ui.note("(the connection was lost; going on as soon as it is back)"),
    }
}

fn print(event: &Item<Event>, ui: &Ui) -> Result<(), Failure> {
    match ui.format {
        Format::Table => ui.print(&views::event_line(&event.view, ui)),
        Format::Json => ui.print(&event.raw.to_string()),
        Format::Yaml => {
            ui.print("---")?;
            ui.value(&event.raw)
        }
        Format::Name => ui.print(&event.view.seq.to_string()),
    }
}
