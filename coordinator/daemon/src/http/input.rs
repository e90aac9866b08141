//! What a request says, checked where it enters.

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, web};
use godwit_shared::api::CreateVm;
use godwit_shared::model::{NodeId, Problem, VmSpec, codes};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::problem::Refusal;

/// Largest body, in bytes. A VM's spec may have 256 KiB.
pub(super) const MAX_BODY: usize = 512 * 1024;

/// Reads a JSON body; an empty one means the defaults.
pub(super) async fn body_or_default<T: DeserializeOwned + Default>(
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<T, Refusal> {
    match json(request, payload).await? {
        None => Ok(T::default()),
        Some(value) => Ok(read(value)?),
    }
}

/// That the name of what is to be decided about was typed; `first` says what to
/// do before.
pub(super) fn confirmed(typed: &str, kind: &str, name: &str, first: &str) -> Result<(), Problem> {
    if typed == name {
        return Ok(());
    }
    let text = format!("`confirm` is `{typed}`, and the {kind}'s name is {name}");
    Err(Problem::new(codes::CONFIRMATION_NEEDED, text)
        .field("confirm")
        .value(typed)
        .remedy(format!("{first}, then type the {kind}'s name")))
}

/// Reads a JSON body that has to be there.
pub(super) async fn body<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<T, Refusal> {
    match json(request, payload).await? {
        None => Err(invalid("", "the body is empty")
            .remedy("/api/openapi.json says what it takes")
            .into()),
        Some(value) => Ok(read(value)?),
    }
}

/// Reads the body that defines a VM. Every problem of it is reported at once.
pub(super) async fn create_vm(
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<CreateVm, Refusal> {
    let Some(value) = json(request, payload).await? else {
        return Err(invalid("", "the body is empty")
            .remedy("send {\"spec\": {...}}")
            .into());
    };
    Ok(read_create_vm(value)?)
}

fn read_create_vm(value: Value) -> Result<CreateVm, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rest {
        #[serde(default)]
        start: bool,
        #[serde(default)]
        node: Option<NodeId>,
    }
    let Value::Object(mut fields) = value else {
        return Err(invalid("", "the body is not a JSON object").remedy("send {\"spec\": {...}}"));
    };
    let spec = match fields.remove("spec") {
        Some(spec) => VmSpec::from_value(spec).map_err(under_spec),
        None => Err(invalid("spec", "the body has no `spec`")
            .remedy("`godwit schema vm` prints what a spec takes")),
    };
    let rest: Result<Rest, Problem> = read(Value::Object(fields));
    match (spec, rest) {
        (Ok(spec), Ok(Rest { start, node })) => Ok(CreateVm { spec, start, node }),
        (Err(mut first), Err(second)) => {
            first.also.push(second);
            Err(first)
        }
        (Err(problem), Ok(_)) | (Ok(_), Err(problem)) => Err(problem),
    }
}

/// A spec's problems name fields of the spec; in a body it lies under `spec`.
fn under_spec(mut problem: Problem) -> Problem {
    problem.field = Some(match problem.field.as_deref() {
        None | Some("") => "spec".to_owned(),
        Some(field) => format!("spec.{field}"),
    });
    problem.also = problem.also.into_iter().map(under_spec).collect();
    problem
}

async fn json(request: &HttpRequest, payload: web::Payload) -> Result<Option<Value>, Refusal> {
    let bytes = match payload.to_bytes_limited(MAX_BODY).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            return Err(invalid("", &format!("the body cannot be read: {error}"))
                .remedy("send the body that its headers announce")
                .into());
        }
        Err(_) => {
            let problem = invalid("", &format!("the body has more than {MAX_BODY} bytes"));
            let problem = problem.remedy("send one request for each VM");
            return Err(Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, problem));
        }
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    check_type(request)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        invalid("", &format!("the body is not JSON: {error}"))
            .remedy("correct the syntax at that place")
            .into()
    })
}

fn check_type(request: &HttpRequest) -> Result<(), Refusal> {
    let Some(given) = request.headers().get(CONTENT_TYPE) else {
        return Ok(());
    };
    let given = String::from_utf8_lossy(given.as_bytes()).into_owned();
    let essence = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let problem = invalid("content-type", "the body has to be JSON");
    let problem = problem
        .value(given)
        .remedy("send it with content-type: application/json");
    Err(Refusal::with_status(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        problem,
    ))
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        let what = match field.as_str() {
            "" => format!("the body cannot be read: {}", error.inner()),
            field => format!("`{field}` cannot be read: {}", error.inner()),
        };
        invalid(&field, &what).remedy("/api/openapi.json says what the call takes")
    })
}

fn invalid(field: &str, what: &str) -> Problem {
    let problem = Problem::new(codes::BODY_INVALID, what);
    if field.is_empty() {
        problem
    } else {
        problem.field(field)
    }
}

/// A request's query, checked against the parameters that the call takes.
#[derive(Debug)]
pub(super) struct Parameters(Map<String, Value>);

impl Parameters {
    /// Reads the query; `known` are the names that the call takes.
    pub(super) fn of(request: &HttpRequest, known: &[&str]) -> Result<Self, Problem> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(|error| {
                Problem::new(
                    codes::QUERY_INVALID,
                    format!("the query cannot be read: {error}"),
                )
                .remedy("give it as name=value&name=value")
            })?;
        let mut found = Map::new();
        for (name, value) in pairs.into_inner() {
            if !known.contains(&name.as_str()) {
                return Err(unknown(&name, known));
            }
            if found.insert(name.clone(), Value::String(value)).is_some() {
                return Err(wrong(&name, "", "is given twice", "give it once"));
            }
        }
        Ok(Self(found))
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// A whole number, at most `most`.
    pub(super) fn number(&self, name: &str, most: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if number <= most => Ok(Some(number)),
            Ok(_) => Err(wrong(
                name,
                text,
                "is too much",
                &format!("give at most {most}"),
            )),
            Err(_) => Err(wrong(name, text, "is not a whole number", "give 0 or more")),
        }
    }

    /// `true` or `false`; a name alone means `true`.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Problem> {
        match self.text(name) {
            None => Ok(default),
            Some("" | "true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(text) => Err(wrong(
                name,
                text,
                "is neither true nor false",
                "give true or false",
            )),
        }
    }

    /// One of a few words; the first is the default.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
        let names: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let Some(text) = self.text(name).or(names.first().copied()) else {
            return Err(Problem::internal("a parameter without choices"));
        };
        let found = choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, choice)| *choice);
        found.ok_or_else(|| {
            wrong(
                name,
                text,
                "is not one of its values",
                &format!("give {}", names.join(" or ")),
            )
        })
    }
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let remedy = match known {
        [] => "this call takes none".to_owned(),
        known => format!("this call takes {}", known.join(", ")),
    };
    Problem::new(
        codes::QUERY_INVALID,
        format!("there is no parameter `{name}`"),
    )
    .field(name)
    .value(name)
    .remedy(remedy)
}

fn wrong(name: &str, value: &str, what: &str, remedy: &str) -> Problem {
    Problem::new(codes::QUERY_INVALID, format!("`{name}` {what}"))
        .field(name)
        .value(value)
        .remedy(remedy)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use actix_web::test::TestRequest;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_body_that_defines_no_vm_says_where() {
        let spec = json!({"name": "a", "memory": "64MiB"});
        for (body, code, field) in [
            (json!([]), codes::BODY_INVALID, None),
            (json!({}), codes::BODY_INVALID, Some("spec")),
            (json!({"spec": 1}), codes::SPEC_SYNTAX, Some("spec")),
            (
                json!({"spec": {"name": "A", "memory": 64}}),
                codes::SPEC_INVALID,
                Some("spec.name"),
            ),
            (
                json!({"spec": {"nam": "a", "memory": 64}}),
                codes::SPEC_UNKNOWN_FIELD,
                Some("spec.nam"),
            ),
            (
                json!({"spec": spec, "start": "yes"}),
                codes::BODY_INVALID,
                Some("start"),
            ),
            (
                json!({"spec": spec, "node": "N_1"}),
                codes::BODY_INVALID,
                Some("node"),
            ),
            (
                json!({"spec": spec, "strat": true}),
                codes::BODY_INVALID,
                Some("strat"),
            ),
        ] {
            let problem = read_create_vm(body.clone()).unwrap_err();
            let got = (problem.code.as_ref(), problem.field.as_deref());
            assert_eq!(got, (code, field), "{body} {problem:?}");
            assert!(problem.remedy.is_some(), "{body}");
        }
        let good = read_create_vm(json!({"spec": spec, "start": true, "node": "n1"})).unwrap();
        assert!(good.start && good.node.is_some());
    }

    #[test]
    fn problems_of_spec_and_body_come_together() {
        let body = json!({"spec": {"name": "a", "memry": 1, "cpus": 2}, "node": "N"});
        let problem = read_create_vm(body).unwrap_err();
        let fields: Vec<_> = problem
            .also
            .iter()
            .filter_map(|p| p.field.as_deref())
            .collect();
        assert_eq!(problem.field.as_deref(), Some("spec.memry"));
        assert_eq!(fields, ["spec.cpus", "node"]);
    }

    #[test]
    fn a_query_is_read_strictly() {
        let of = |query: &str| {
            let request = TestRequest::with_uri(&format!("/x?{query}")).to_http_request();
            let parameters = Parameters::of(&request, &["lines", "kind", "watch"])?;
            let lines = parameters.number("lines", 100)?;
            let kind = parameters.choice("kind", &[("serial", 1), ("qemu", 2)])?;
            Ok::<_, Problem>((lines, kind, parameters.flag("watch", false)?))
        };
        assert_eq!(of("").unwrap(), (None, 1, false));
        assert_eq!(of("lines=7&kind=qemu&watch").unwrap(), (Some(7), 2, true));
        for (query, field) in [
            ("lines=-1", "lines"),
            ("lines=101", "lines"),
            ("lines=1&lines=2", "lines"),
            ("kind=both", "kind"),
            ("watch=maybe", "watch"),
            ("line=1", "line"),
        ] {
            let problem = of(query).unwrap_err();
            assert_eq!(problem.code, codes::QUERY_INVALID);
            assert_eq!(problem.field.as_deref(), Some(field), "{query}");
        }
    }
}
