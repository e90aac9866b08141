//! The API's description, made from the handlers and the types they use.

use std::sync::LazyLock;

use actix_web::HttpResponse;
use bytes::Bytes;
use godwit_shared::api::{
    AbortRequest, Calibrations, CommandOptions, CreateVm, DrainRequest, DryRun, Event, MarkRequest,
    MigrateRequest, MigrationView, NodeView, PlacementView, PlanView, ProfileView,
    RebalanceRequest, SimulateRequest, SimulationView, TaskView, TokenRequest, TokenView, VmView,
};
use godwit_shared::model::Problem;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, OpenApi as Document};
use utoipa::{Modify, OpenApi};

use super::{
    cluster, console, events, marks, migrations, nodes, page, placement, plans, tasks, vms,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Godwit coordinator",
        description = "A cluster of QEMU virtual machines. Long actions answer 202 with a task; a refusal is a Problem with a stable code.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        page::index, page::health, document,
        cluster::status, cluster::backup, cluster::place, cluster::vm_schema, events::stream,
        nodes::create_token, nodes::list, nodes::show, nodes::remove, nodes::absent, nodes::cordon, nodes::uncordon,
        marks::mark, placement::simulate, placement::profiles,
        vms::list, vms::create, vms::show, vms::placement, vms::remove, vms::command, vms::migrate, vms::logs,
        console::attach,
        migrations::list, migrations::calibration, migrations::show, migrations::cancel,
        migrations::tune, migrations::resolve,
        plans::list, plans::show, plans::drain, plans::bring_back, plans::rebalance, plans::abort,
        tasks::list, tasks::show, tasks::cancel,
    ),
    components(schemas(
        PlanView, DrainRequest, RebalanceRequest, AbortRequest,
        Problem, MarkRequest, ProfileView, SimulateRequest, SimulationView, VmView, CreateVm, CommandOptions, MigrateRequest, DryRun, TaskView, NodeView,
        MigrationView, Calibrations, PlacementView, TokenRequest, TokenView, Event,
    )),
    modifiers(&Credential),
    tags(
        (name = "cluster", description = "The cluster as a whole"),
        (name = "nodes", description = "Hosts that run VMs"),
        (name = "vms", description = "Virtual machines"),
        (name = "migrations", description = "Moves of VMs between nodes"),
        (name = "plans", description = "Moves that belong together: drains, rebalances"),
        (name = "tasks", description = "Long actions"),
        (name = "events", description = "What happens"),
        (name = "open", description = "Calls that need no credential"),
    ),
)]
struct Description;

/// Adds the bearer token to the document.
struct Credential;

impl Modify for Credential {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document
            .components
            .take()
            .unwrap_or_else(|| ComponentsBuilder::new().build());
        let components = ComponentsBuilder::from(components)
            .security_scheme("admin", SecurityScheme::Http(bearer))
            .build();
        document.components = Some(components);
    }
}

static TEXT: LazyLock<Bytes> = LazyLock::new(|| {
    let document = serde_json::to_vec(&Description::openapi());
    document.map_or_else(|_| Bytes::from_static(b"{}"), Bytes::from)
});

/// The description of this API.
#[utoipa::path(
    get, path = "/api/openapi.json", tag = "open",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub(super) async fn document() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(TEXT.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::{V1, routes};

    fn described() -> Value {
        serde_json::from_slice(&TEXT).unwrap()
    }

    #[test]
    fn every_call_is_described_and_nothing_else() {
        let mut served = BTreeSet::new();
        let both = routes::open().into_iter().map(|p| (String::new(), p));
        for (prefix, path) in both.chain(routes::v1().into_iter().map(|p| (V1.to_owned(), p))) {
            for method in path.methods() {
                let method = method.as_str().to_ascii_lowercase();
                served.insert((format!("{prefix}{}", path.path), method));
            }
        }
        let document = described();
        let mut listed = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                listed.insert((path.clone(), method.clone()));
            }
        }
        assert_eq!(served, listed);
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = described();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut missing = BTreeSet::new();
        let mut look = vec![&document];
        while let Some(value) = look.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let name = reference.strip_prefix("#/components/schemas/").unwrap();
                        if !schemas.contains_key(name) {
                            missing.insert(name.to_owned());
                        }
                    }
                    look.extend(fields.values());
                }
                Value::Array(items) => look.extend(items),
                _ => {}
            }
        }
        assert_eq!(missing, BTreeSet::new());
        for name in ["VmSpec", "VmView", "Problem", "MigrationPolicy", "DiskSpec"] {
            assert!(schemas.contains_key(name), "{name}");
        }
    }

    #[test]
    fn every_call_but_the_open_ones_asks_for_the_credential() {
        let document = described();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for operation in methods.as_object().unwrap().values() {
                let guarded = operation.get("security").is_some();
                assert_eq!(guarded, path.starts_with(V1), "{path}");
            }
        }
    }
}
