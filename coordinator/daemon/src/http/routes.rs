//! Every call of the API.

use actix_web::http::header::ALLOW;
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, Resource, Route, web};
use godwit_shared::model::{Problem, codes};

use super::problem::Refusal;
use super::{
    cluster, console, events, marks, migrations, nodes, openapi, page, placement, plans, tasks, vms,
};

/// One path with its methods.
pub(super) struct Path {
    pub(super) path: &'static str,
    methods: Vec<(Method, Route)>,
}

fn at(path: &'static str) -> Path {
    Path {
        path,
        methods: Vec::new(),
    }
}

impl Path {
    fn get(mut self, route: Route) -> Self {
        self.methods.push((Method::GET, route));
        self
    }

    fn post(mut self, route: Route) -> Self {
        self.methods.push((Method::POST, route));
        self
    }

    fn delete(mut self, route: Route) -> Self {
        self.methods.push((Method::DELETE, route));
        self
    }

    /// The methods that the path takes.
    pub(super) fn methods(&self) -> Vec<Method> {
        self.methods
            .iter()
            .map(|(method, _)| method.clone())
            .collect()
    }

    /// For actix. `under` is where the path lies, for messages.
    pub(super) fn into_resource(self, under: &'static str) -> Resource {
        let allowed = self
            .methods()
            .iter()
            .map(Method::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let mut resource = web::resource(self.path);
        for (method, route) in self.methods {
            resource = resource.route(route.method(method));
        }
        let full = format!("{under}{}", self.path);
        resource.default_service(web::to(move |request: HttpRequest| {
            let answer = wrong_method(&request, &full, &allowed);
            async move { answer }
        }))
    }
}

/// Calls that need no credential.
pub(super) fn open() -> Vec<Path> {
    vec![
        at("/").get(web::route().to(page::index)),
        at("/healthz").get(web::route().to(page::health)),
        at("/api/openapi.json").get(web::route().to(openapi::document)),
    ]
}

/// Calls under [`super::V1`]. A path with fewer variables comes first.
pub(super) fn v1() -> Vec<Path> {
    vec![
        at("/cluster").get(web::route().to(cluster::status)),
        at("/cluster/backup").get(web::route().to(cluster::backup)),
        at("/place").post(web::route().to(cluster::place)),
        at("/placement/simulate").post(web::route().to(placement::simulate)),
        at("/placement/profiles").get(web::route().to(placement::profiles)),
        at("/schema/vm").get(web::route().to(cluster::vm_schema)),
        at("/events").get(web::route().to(events::stream)),
        at("/tokens").post(web::route().to(nodes::create_token)),
        at("/nodes").get(web::route().to(nodes::list)),
        at("/nodes/{node}")
            .get(web::route().to(nodes::show))
            .delete(web::route().to(nodes::remove)),
        at("/nodes/{node}/absent").post(web::route().to(nodes::absent)),
        at("/nodes/{node}/cordon").post(web::route().to(nodes::cordon)),
        at("/nodes/{node}/uncordon").post(web::route().to(nodes::uncordon)),
        at("/nodes/{node}/drain").post(web::route().to(plans::drain)),
        at("/nodes/{node}/return").post(web::route().to(plans::bring_back)),
        at("/rebalance").post(web::route().to(plans::rebalance)),
        at("/plans").get(web::route().to(plans::list)),
        at("/plans/{id}").get(web::route().to(plans::show)),
        at("/plans/{id}/abort").post(web::route().to(plans::abort)),
        at("/nodes/{node}/marks").post(web::route().to(marks::mark)),
        at("/vms")
            .get(web::route().to(vms::list))
            .post(web::route().to(vms::create)),
        at("/vms/{vm}")
            .get(web::route().to(vms::show))
            .delete(web::route().to(vms::remove)),
        at("/vms/{vm}/console").get(web::route().to(console::attach)),
        at("/vms/{vm}/placement").get(web::route().to(vms::placement)),
        at("/vms/{vm}/logs").get(web::route().to(vms::logs)),
        at("/vms/{vm}/migrate").post(web::route().to(vms::migrate)),
        at("/vms/{vm}/{command}").post(web::route().to(vms::command)),
        at("/migrations").get(web::route().to(migrations::list)),
        at("/migrations/calibration").get(web::route().to(migrations::calibration)),
        at("/migrations/{id}").get(web::route().to(migrations::show)),
        at("/migrations/{id}/cancel").post(web::route().to(migrations::cancel)),
        at("/migrations/{id}/tune").post(web::route().to(migrations::tune)),
        at("/migrations/{id}/resolve").post(web::route().to(migrations::resolve)),
        at("/tasks").get(web::route().to(tasks::list)),
        at("/tasks/{id}").get(web::route().to(tasks::show)),
        at("/tasks/{id}/cancel").post(web::route().to(tasks::cancel)),
    ]
}

/// The answer to a path that is none.
pub(super) async fn not_found(request: HttpRequest) -> Result<HttpResponse, Refusal> {
    let path = request.path().to_owned();
    Err(
        Problem::new(codes::NOT_FOUND, format!("there is no `{path}`"))
            .field("path")
            .value(path)
            .remedy("/api/openapi.json lists every call")
            .into(),
    )
}

fn wrong_method(request: &HttpRequest, path: &str, allowed: &str) -> HttpResponse {
    let method = request.method();
    let problem = Problem::new(codes::NOT_FOUND, format!("{path} does not take {method}"))
        .field("method")
        .value(method.as_str())
        .remedy(format!("it takes {allowed}"));
    let refusal = Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, problem);
    let mut response = actix_web::ResponseError::error_response(&refusal);
    if let Ok(allowed) = allowed.parse() {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}
