//! Events, as the lines of a stream: each is printed when it comes, so the
//! columns have fixed widths.

use godwit_shared::api::Event;
use godwit_shared::model::{NodeId, VmName};

use crate::output::Ui;
use crate::output::problem::clean;
use crate::output::table::shorten;

/// One event in one line.
pub(crate) fn line(event: &Event, ui: &Ui) -> String {
    let about = about(event);
    let text = format!(
        "{:>6}  {}  {:<16}  {about:<16}  {}",
        event.seq,
        event.at,
        event.kind,
        event.message.replace('\n', " ")
    );
    let text = clean(&text);
    match ui.width {
        Some(width) => shorten(text.trim_end(), usize::from(width)),
        None => text.trim_end().to_owned(),
    }
}

/// What it is about: the VM, else the node.
fn about(event: &Event) -> &str {
    let vm = event.vm.as_ref().map(VmName::as_str);
    let node = event.node.as_ref().map(NodeId::as_str);
    vm.or(node).unwrap_or("-")
}
