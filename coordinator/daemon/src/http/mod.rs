//! The operators' side: REST over HTTPS.
//!
//! [`routes`] is the one list of calls; the server, its answers to wrong
//! methods and the test that compares it with the OpenAPI document all use it.
//! Handlers parse at the edge ([`input`]), look through the
//! [`crate::cluster::Reader`] or feed one input, and answer; a refusal is a
//! [`problem::Refusal`]. Nothing here decides anything about the cluster.

mod answer;
mod auth;
mod cluster;
mod console;
mod door;
mod events;
mod input;
mod marks;
mod migrations;
mod nodes;
mod openapi;
mod page;
mod placement;
mod plans;
mod problem;
mod routes;
mod survey;
mod tasks;
mod vms;
mod watches;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use godwit_shared::model::{Problem, codes};
use godwit_shared::pki::CaFingerprint;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::backup::Backups;
use crate::cluster::ClusterHandle;
use crate::credential::TokenHash;
use crate::follower::Follower;
pub use door::Door;
pub use watches::Watches;

/// Threads that answer. Views are made under a read lock, so they do not wait
/// for each other.
const WORKERS: usize = 2;
/// Where the calls of the first version begin.
pub const V1: &str = "/api/v1";

/// What the handlers share.
#[derive(Debug)]
pub struct Api {
    /// The cluster.
    pub cluster: ClusterHandle,
    /// Whose requests are let in.
    pub admin: TokenHash,
    /// Who watches migrations.
    pub watches: Watches,
    /// Makes backups.
    pub backups: Backups,
    /// The coordinator's addresses, for join tokens.
    pub addresses: Vec<String>,
    /// The CA, for join tokens.
    pub ca: CaFingerprint,
    /// Set when the daemon stops, or ceases to lead: long answers end.
    pub stop: CancellationToken,
    /// Set where another coordinator leads, or may: [`Self::cluster`] is a copy.
    pub follower: Option<Arc<Follower>>,
}

/// What the handlers share whoever leads.
#[derive(Debug, Clone)]
pub struct ApiParts {
    /// Whose requests are let in.
    pub admin: TokenHash,
    /// Makes backups.
    pub backups: Backups,
    /// The coordinators' addresses, for join tokens.
    pub addresses: Vec<String>,
    /// The CA, for join tokens.
    pub ca: CaFingerprint,
}

impl ApiParts {
    /// The API of a coordinator that leads, or is the only one.
    pub fn leader(&self, cluster: &ClusterHandle, stop: CancellationToken) -> Api {
        self.with(cluster.clone(), stop, None)
    }

    /// The API of one that does not.
    pub fn follower(&self, follower: &Arc<Follower>, stop: CancellationToken) -> Api {
        let copy = follower.handle().clone();
        self.with(copy, stop, Some(Arc::clone(follower)))
    }

    fn with(
        &self,
        cluster: ClusterHandle,
        stop: CancellationToken,
        follower: Option<Arc<Follower>>,
    ) -> Api {
        Api {
            watches: Watches::new(cluster.clone()),
            cluster,
            admin: self.admin.clone(),
            backups: self.backups.clone(),
            addresses: self.addresses.clone(),
            ca: self.ca,
            stop,
            follower,
        }
    }
}

/// Serves the API on a socket that is bound already.
pub fn serve(listener: TcpListener, tls: ServerConfig, door: Arc<Door>) -> Result<Server, Problem> {
    let door = web::Data::from(door);
    let app = move || {
        App::new()
            .app_data(door.clone())
            .configure(configure)
            .wrap(from_fn(door::enter))
    };
    let server = HttpServer::new(app)
        .workers(WORKERS)
        .disable_signals()
        .shutdown_timeout(2)
        .client_request_timeout(Duration::from_secs(10))
        .keep_alive(Duration::from_secs(75))
        .listen_rustls_0_23(listener, tls)
        .map_err(|error| {
            Problem::new(codes::HOST_IO, format!("the API cannot be served: {error}"))
                .field("api")
                .remedy("give --api another address or port")
        })?;
    Ok(server.run())
}

/// Puts every call in its place.
pub(crate) fn configure(app: &mut web::ServiceConfig) {
    for resource in routes::open() {
        app.service(resource.into_resource(""));
    }
    let mut api = web::scope(V1)
        .wrap(from_fn(door::direct))
        .wrap(from_fn(auth::admit));
    for resource in routes::v1() {
        api = api.service(resource.into_resource(V1));
    }
    app.service(api.default_service(web::to(routes::not_found)));
    app.default_service(web::to(routes::not_found));
}
