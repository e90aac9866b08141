//! Which of several coordinators a call goes to.
//!
//! The credential names some; one of them leads, and the others answer a call
//! for the leader with status 307 and its address. What was found is kept for
//! the next call. Whoever is there has to show a certificate of the cluster's
//! CA before anything is sent, so following costs no trust.

use std::sync::{Mutex, PoisonError};

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Request, Response, StatusCode, Url};

/// The coordinators' addresses.
pub(crate) struct Ways {
    known: Vec<Url>,
    now: Mutex<Url>,
}

impl Ways {
    /// The first one is tried first.
    pub(crate) fn new(first: Url, more: Vec<Url>) -> Self {
        let now = Mutex::new(first.clone());
        let known = std::iter::once(first).chain(more).collect();
        Self { known, now }
    }

    /// Where calls go at present.
    pub(crate) fn now(&self) -> Url {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    }

    /// From now on there.
    pub(crate) fn go(&self, url: Url) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }

    /// The known ones but the present one, the last to be tried first.
    pub(crate) fn others(&self) -> Vec<Url> {
        let now = self.now();
        let others = self.known.iter().filter(|url| **url != now);
        others.rev().cloned().collect()
    }

    /// Goes where the answer points to; false when it is no such answer.
    pub(crate) fn follow(&self, response: &Response) -> bool {
        let leader = leader(response.status(), response.headers());
        leader.map(|url| self.go(url)).is_some()
    }
}

/// The leader's address, in the answer of another coordinator.
pub(crate) fn leader(status: StatusCode, headers: &HeaderMap) -> Option<Url> {
    if status != StatusCode::TEMPORARY_REDIRECT {
        return None;
    }
    let mut url = Url::parse(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    url.set_path("");
    url.set_query(None);
    Some(url).filter(|url| url.scheme() == "https" && url.has_host())
}

/// The same request to another coordinator.
pub(crate) fn towards(request: &Request, base: &Url) -> Option<Request> {
    let mut request = request.try_clone()?;
    let mut url = base.clone();
    url.set_path(request.url().path());
    url.set_query(request.url().query());
    *request.url_mut() = url;
    Some(request)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use reqwest::Method;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn a_call_keeps_its_path_on_its_way_to_the_leader() {
        let mut headers = HeaderMap::new();
        let place = "https://c2:7443/api/v1/vms?x=1";
        headers.insert(LOCATION, place.parse().unwrap());
        let found = leader(StatusCode::TEMPORARY_REDIRECT, &headers).unwrap();
        assert_eq!(found, url("https://c2:7443"));
        assert_eq!(leader(StatusCode::OK, &headers), None);
        let request = Request::new(Method::GET, url("https://c1:7443/api/v1/nodes?y=2"));
        let moved = towards(&request, &found).unwrap();
        assert_eq!(moved.url(), &url("https://c2:7443/api/v1/nodes?y=2"));
        headers.insert(LOCATION, "http://c2/".parse().unwrap());
        assert_eq!(leader(StatusCode::TEMPORARY_REDIRECT, &headers), None);
    }

    #[test]
    fn the_other_addresses_are_tried_in_their_order() {
        let ways = Ways::new(url("https://a"), vec![url("https://b"), url("https://c")]);
        let mut others = ways.others();
        assert_eq!(others.pop(), Some(url("https://b")));
        ways.go(url("https://d"));
        assert_eq!(ways.now(), url("https://d"));
        assert_eq!(ways.others().len(), 3);
    }
}
