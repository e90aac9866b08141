//! Nothing secret is written down; whole lines come back, others are told.
#![allow(clippy::unwrap_used, clippy::panic)]

use godwit_shared::model::{BootMillis, Problem, UnixMillis};
use godwit_shared::wire::uplink::{NodeMessage, NodeReply};

use super::line::{Damage, FIRST, Lines};
use super::*;
use crate::input::{SessionId, Ticket};

fn message(outcome: Result<NodeReply, Problem>) -> Taken {
    let answer = match &outcome {
        Ok(NodeReply::Log(text)) => Ok(Answer::Log(text.clone())),
        _ => Err(Problem::internal("another")),
    };
    Taken {
        clocks: Clocks {
            now: UnixMillis(7),
            steady: BootMillis(7),
        },
        input: Input::Message {
            node: "node-1".parse().unwrap(),
            session: SessionId(1),
            message: NodeMessage::Reply {
                request: 3,
                outcome,
            },
        },
        outcome: Ok(Output::Done),
        effects: vec![Effect::Answer {
            ticket: Ticket(1),
            outcome: answer,
        }],
    }
}

#[test]
fn what_a_guest_printed_is_not_recorded() {
    let taken = message(Ok(NodeReply::Log("login: root\npassword: hunter2".into())));
    let line = line::of(&taken.entry(1).unwrap()).unwrap();
    let line = String::from_utf8(line).unwrap();
    assert!(!line.contains("hunter2"), "{line}");
    assert_eq!(line.matches(REDACTED).count(), 2, "{line}");
}

#[test]
fn an_entry_comes_back_and_an_end_that_is_cut_off_is_none() {
    let entry = message(Ok(NodeReply::Done)).entry(1).unwrap();
    let mut file = FIRST.as_bytes().to_vec();
    file.extend(line::of(&entry).unwrap());
    let whole = file.len();
    file.extend(line::of(&entry).unwrap());
    for end in whole..file.len() {
        let mut lines = Lines::of(&file[..end]).unwrap();
        assert_eq!(lines.next_entry().unwrap().as_ref(), Some(&entry));
        assert_eq!(lines.next_entry().unwrap(), None);
        assert_eq!(lines.cut_off(), end - whole);
    }
}

#[test]
fn every_flipped_bit_of_a_line_is_found() {
    let entry = message(Ok(NodeReply::Done)).entry(1).unwrap();
    let mut file = FIRST.as_bytes().to_vec();
    file.extend(line::of(&entry).unwrap());
    for at in FIRST.len()..file.len() - 1 {
        let mut other = file.clone();
        other[at] ^= 1 << (at % 7);
        let found = Lines::of(&other).unwrap().next_entry();
        assert!(matches!(found, Err(Damage::Line { line: 2, .. })), "{at}");
    }
    assert!(matches!(Lines::of(b"#!/bin/sh\n"), Err(Damage::Other)));
}
