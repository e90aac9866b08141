//! Problems as HTTP answers.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use godwit_shared::model::{Problem, codes};

/// A refusal: the problem as JSON, under a status that follows from its code.
#[derive(Debug)]
pub(super) struct Refusal {
    problem: Problem,
    status: StatusCode,
}

impl Refusal {
    /// With another status than the code's own.
    pub(super) fn with_status(status: StatusCode, problem: Problem) -> Self {
        Self { problem, status }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self {
            status: status_of(&problem.code),
            problem,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header(("WWW-Authenticate", "Bearer"));
        }
        response.json(&self.problem)
    }
}

/// The status that goes with a code.
pub(super) fn status_of(code: &str) -> StatusCode {
    match code {
        codes::UNAUTHENTICATED => StatusCode::UNAUTHORIZED,
        codes::NOT_FOUND => StatusCode::NOT_FOUND,
        codes::ALREADY_EXISTS
        | codes::STATE_CONFLICT
        | codes::BUSY
        | codes::NO_NODE_FITS
        | codes::NODE_NOT_EMPTY
        | codes::LEASE_LOST
        | codes::NODE_NAME_TAKEN
        | codes::NODE_REVOKED
        | codes::INSUFFICIENT_RESOURCES
        | codes::MIGRATION_BLOCKED
        | codes::MIGRATION_FAILED
        | codes::MIGRATION_CANCELLED
        | codes::CANCELLED
        | codes::GUEST_AGENT
        | codes::QEMU_COMMAND
        | codes::QEMU_GONE => StatusCode::CONFLICT,
        codes::NODE_UNREACHABLE
        | codes::CONNECTION_LOST
        | codes::OVERLOADED
        | codes::NOT_LEADER
        | codes::NO_LEADER => StatusCode::SERVICE_UNAVAILABLE,
        codes::TIMEOUT | codes::QEMU_TIMEOUT => StatusCode::GATEWAY_TIMEOUT,
        codes::PROTOCOL
        | codes::VERSION_MISMATCH
        | codes::QEMU_START
        | codes::FENCE_FAILED
        | codes::HOST_IO => StatusCode::BAD_GATEWAY,
        codes::INTERNAL | codes::STORE | codes::STORE_DAMAGED => StatusCode::INTERNAL_SERVER_ERROR,
        // What is left says that something was given in a wrong form.
        _ => StatusCode::BAD_REQUEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_gave_wrong_is_a_400_and_our_faults_are_not() {
        for code in [
            codes::SPEC_INVALID,
            codes::BODY_INVALID,
            codes::QUERY_INVALID,
            codes::ID_INVALID,
        ] {
            assert_eq!(status_of(code), StatusCode::BAD_REQUEST);
        }
        assert_eq!(
            status_of(codes::INTERNAL),
            StatusCode::INTERNAL_SERVER_ERROR
        );
        assert_eq!(
            status_of(codes::NODE_UNREACHABLE),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert!(
            codes::ALL
                .iter()
                .all(|code| status_of(code).as_u16() >= 400)
        );
    }
}
