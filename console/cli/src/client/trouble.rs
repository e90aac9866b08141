//! Why a call was not answered: nobody there, somebody else there, too slow.

use std::error::Error;
use std::io;

use godwit_shared::model::{Problem, codes};
use reqwest::Url;
use rustls::CertificateError;

use crate::failure::Failure;

/// Every error of a chain in one line, without repetitions.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = error.source();
    }
    text
}

/// The problem behind an error of the transport.
pub(crate) fn of(error: &(dyn Error + 'static), base: &Url) -> Failure {
    match certificate(error) {
        Some(why) => mistrust(&why, base),
        None => unreachable(&root_cause(error), base),
    }
}

/// The coordinator took the call and said nothing in time.
pub(crate) fn no_answer(base: &Url) -> Failure {
    unreachable("it did not answer in time", base)
}

/// The same of a call that changes something: it may have, or still will.
pub(crate) fn unsure(base: &Url) -> Failure {
    Problem::new(
        codes::TIMEOUT,
        format!(
            "the coordinator at {} did not answer in time; it may still be done",
            shown(base)
        ),
    )
    .value(shown(base))
    .remedy("look first at the state of what was asked for, with `godwit vm list` and `godwit task list`")
    .into()
}

fn unreachable(why: &str, base: &Url) -> Failure {
    Problem::new(
        codes::COORDINATOR_UNREACHABLE,
        format!("the coordinator at {} cannot be reached: {why}", shown(base)),
    )
    .value(shown(base))
    .remedy("see that godwit-coordinator runs there and that this host may connect to it; VMs and migrations go on without it")
    .into()
}

/// The certificate's fault, if TLS refused the other side. An `io::Error` names
/// as its source the source of what it wraps, so that is looked at by itself.
fn certificate(error: &(dyn Error + 'static)) -> Option<CertificateError> {
    if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
        return Some(why.clone());
    }
    let wrapped = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    wrapped
        .and_then(|inner| certificate(inner))
        .or_else(|| error.source().and_then(certificate))
}

fn mistrust(why: &CertificateError, base: &Url) -> Failure {
    let (what, remedy) = match why {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "its certificate is for other addresses",
            "use an address that it was told with --api or --advertise, or add this one there",
        ),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => (
            "its certificate is not valid now",
            "compare the clocks of both hosts",
        ),
        _ => (
            "its certificate is not from this credential's cluster",
            "use the admin.toml of that cluster: --credential FILE, or copy it anew if the cluster was made anew",
        ),
    };
    Problem::new(
        codes::CA_MISMATCH,
        format!(
            "what answers at {} is not to be trusted: {what}",
            shown(base)
        ),
    )
    .value(shown(base))
    .remedy(remedy)
    .into()
}

/// The innermost error, in the system's words where it has some.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::TimedOut) => "no answer".to_owned(),
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "the connection was closed".to_owned()
        }
        _ => last.to_string(),
    }
}

/// The URL without the slash that the parser adds.
fn shown(base: &Url) -> String {
    base.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn only_a_change_without_an_answer_may_still_be_done() {
        let base = Url::parse("https://127.0.0.1:7443").unwrap();
        let failure = unsure(&base);
        assert_eq!(failure.code(), Some(codes::TIMEOUT));
        assert_eq!(failure.exit(), Exit::TimedOut);
        assert!(failure.message().unwrap().ends_with("it may still be done"));
        assert_eq!(no_answer(&base).exit(), Exit::Unreachable);
    }
}
