//! YAML files to classes, with errors that say where.

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    compile::Class,
    names::{GROUP, VERSION},
    v1alpha1::{Backend, LeaderElection, Lock, RateLimit, Semaphore},
};

/// What a file may hold.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a file has few of them")]
pub enum Object {
    /// A class.
    Class(Class),
    /// A backend.
    Backend(Box<Backend>),
}

/// A text with something wrong in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// Counted from 1.
    pub line: u64,
    /// Counted from 1.
    pub column: u64,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for LoadError {}

/// One document of a file, and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The object.
    pub object: Object,
    /// The document's text, to find fields in.
    text: String,
    first_line: u64,
}

impl Located {
    /// Where a field such as `spec.queue.maxWaiters` is written; the document's start if it is not.
    pub fn locate(&self, field: &str) -> (u64, u64) {
        find_field(&self.text, self.first_line, field)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

/// Reads every document of a text. Objects of other API groups are passed over, as kubectl users
/// keep them in the same file.
///
/// # Errors
/// The first thing wrong of each document.
pub fn load(text: &str) -> Result<Vec<Located>, Vec<LoadError>> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for (first_line, document) in documents(text) {
        match load_document(&document, first_line) {
            Ok(Some(object)) => found.push(Located { object, text: document, first_line }),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn load_document(text: &str, first_line: u64) -> Result<Option<Object>, LoadError> {
    let head: Head = parse(text, first_line)?;
    if !head.api_version.is_empty() && !head.api_version.starts_with(GROUP) {
        return Ok(None);
    }
    let at = |field: &str, message: String| {
        let (line, column) = find_field(text, first_line, field);
        LoadError { line, column, message }
    };
    if head.api_version != format!("{GROUP}/{VERSION}") {
        let message = format!("apiVersion must be {GROUP}/{VERSION}");
        return Err(at("apiVersion", message));
    }
    match head.kind.as_str() {
        "Lock" => Ok(Some(Object::Class(Class::Lock(typed(text, first_line, &Lock::crd())?)))),
        "RateLimit" => {
            Ok(Some(Object::Class(Class::RateLimit(typed(text, first_line, &RateLimit::crd())?))))
        }
        "Semaphore" => {
            Ok(Some(Object::Class(Class::Semaphore(typed(text, first_line, &Semaphore::crd())?))))
        }
        "LeaderElection" => {
            let class = typed(text, first_line, &LeaderElection::crd())?;
            Ok(Some(Object::Class(Class::LeaderElection(class))))
        }
        "Backend" => Ok(Some(Object::Backend(Box::new(typed(text, first_line, &Backend::crd())?)))),
        other => {
            let known = ["Lock", "LeaderElection", "RateLimit", "Semaphore", "Backend"];
            let hint = did_you_mean(other, known);
            Err(at("kind", format!("there is no kind \"{other}\"{hint}")))
        }
    }
}

/// Parses into a type after looking for fields that it does not have.
fn typed<T: DeserializeOwned>(
    text: &str,
    first_line: u64,
    crd: &CustomResourceDefinition,
) -> Result<T, LoadError> {
    let value: Value = parse(text, first_line)?;
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    let schema = serde_json::to_value(schema).unwrap_or_default();
    let spec = &schema["openAPIV3Schema"]["properties"]["spec"];
    if let Some((field, known)) = unknown_field(&value["spec"], spec, "spec") {
        let (line, column) = find_field(text, first_line, &field);
        let name = field.rsplit('.').next().unwrap_or(&field);
        let hint = did_you_mean(name, known.iter().map(String::as_str));
        return Err(LoadError { line, column, message: format!("unknown field {field}{hint}") });
    }
    parse(text, first_line)
}

/// The first field of a value that its schema does not name, and those that it does.
fn unknown_field(value: &Value, schema: &Value, path: &str) -> Option<(String, Vec<String>)> {
    match value {
        Value::Object(fields) => {
            let known = schema["properties"].as_object()?;
            fields.iter().find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                match known.get(name) {
                    Some(schema) => unknown_field(value, schema, &path),
                    None => Some((path, known.keys().cloned().collect())),
                }
            })
        }
        Value::Array(items) => {
            items.iter().find_map(|item| unknown_field(item, &schema["items"], path))
        }
        _ => None,
    }
}

fn parse<T: DeserializeOwned>(text: &str, first_line: u64) -> Result<T, LoadError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location();
        let (line, column) = at.map_or((1, 1), |at| (at.line(), at.column()));
        // The error's own text repeats the location and draws a snippet: keep its first line.
        let message = error.to_string();
        let message = message.lines().next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let message = match message.split_once(": ") {
            Some((place, rest)) if place.starts_with("line ") => rest,
            _ => message,
        };
        LoadError { line: first_line + line - 1, column, message: message.into() }
    })
}

/// Splits at lines that start with `---`; empty documents are left out.
fn documents(text: &str) -> Vec<(u64, String)> {
    let mut documents = vec![(1, String::new())];
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("---") {
            documents.push((i as u64 + 2, String::new()));
        } else if let Some((_, document)) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    documents.retain(|(_, document)| !document.lines().all(blank));
    documents
}

/// Where a path's last field is written: the last name that follows the earlier ones in order.
fn find_field(text: &str, first_line: u64, path: &str) -> (u64, u64) {
    let mut names = path.split('.').map(|name| name.split('[').next().unwrap_or(name)).peekable();
    let mut found = (first_line, 1);
    for (i, line) in text.lines().enumerate() {
        let Some(name) = names.peek() else { break };
        let written = line.trim_start().trim_start_matches("- ").trim_start();
        let key = written.split(':').next().unwrap_or_default().trim_matches(['"', '\'']);
        if key == *name {
            found = (first_line + i as u64, (line.len() - written.len()) as u64 + 1);
            names.next();
        }
    }
    found
}

/// A hint at the nearest known word, when it is near.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known.into_iter().map(|name| (distance(word, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= word.len().div_ceil(2).min(4) => {
            format!("; did you mean \"{name}\"?")
        }
        _ => String::new(),
    }
}

/// The Levenshtein distance, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_error(text: &str) -> String {
        load(text).expect_err("accepted").remove(0).to_string()
    }

    #[test]
    fn errors_name_line_column_and_what_to_write() {
        let head = "apiVersion: holdfast.dev/v1alpha1\nkind: Lock\nmetadata: {name: a}\n";
        assert_eq!(
            first_error(&format!("# x\n---\n{head}spec:\n  ttlSecond: 5\n")),
            "7:3: unknown field spec.ttlSecond; did you mean \"ttlSeconds\"?"
        );
        assert_eq!(
            first_error(&format!("{head}spec:\n  queue:\n    maxWaiter: 5\n")),
            "6:5: unknown field spec.queue.maxWaiter; did you mean \"maxWaiters\"?"
        );
        assert_eq!(
            first_error("apiVersion: holdfast.dev/v1alpha1\nkind: Look\n"),
            "2:1: there is no kind \"Look\"; did you mean \"Lock\"?"
        );
        assert_eq!(
            first_error("apiVersion: holdfast.dev/v1\nkind: Lock\n"),
            "1:1: apiVersion must be holdfast.dev/v1alpha1"
        );
        let wrong = first_error(&format!("{head}spec:\n  ttlSeconds: soon\n"));
        assert!(wrong.starts_with("5:15: "), "{wrong}");
    }

    #[test]
    fn objects_of_other_groups_are_passed_over() {
        let text = "apiVersion: v1\nkind: ConfigMap\n---\n---\n# nothing\n";
        assert_eq!(load(text), Ok(vec![]));
    }
}
