//! `holdfast lint`.

use crate::support::{classes, holdfast, root, stdout};

#[test]
fn the_examples_have_no_errors() {
    let examples = root().join("examples");
    let output = holdfast(&["lint", "-f", examples.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(stdout(&output).contains("no errors"));
}

#[test]
fn every_error_has_its_line_and_column_and_says_what_to_write() {
    let (_dir, path) = classes(
        "apiVersion: holdfast.dev/v1alpha1\n\
         kind: Lock\n\
         metadata:\n  name: a\n\
         spec:\n  ttlSecond: 5\n\
         ---\n\
         apiVersion: holdfast.dev/v1alpha1\n\
         kind: Lok\n\
         metadata:\n  name: b\n\
         ---\n\
         apiVersion: holdfast.dev/v1alpha1\n\
         kind: Lock\n\
         metadata:\n  name: c\n\
         spec:\n  ttlSeconds: 30\n  maxHoldSeconds: 10\n",
    );
    let output = holdfast(&["lint", "-f", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    let place = |line: u32, column: u32| format!("{}:{line}:{column}: ", path.display());
    assert!(text.contains(&place(6, 3)) && text.contains("did you mean \"ttlSeconds\"?"), "{text}");
    assert!(text.contains(&place(9, 1)) && text.contains("did you mean \"Lock\"?"), "{text}");
}

#[test]
fn rules_between_fields_are_checked_too_and_names_are_unique() {
    let lock = |name: &str, spec: &str| {
        format!(
            "apiVersion: holdfast.dev/v1alpha1\nkind: Lock\nmetadata:\n  name: {name}\nspec:\n{spec}---\n"
        )
    };
    let text = lock("a", "  ttlSeconds: 30\n  maxHoldSeconds: 10\n")
        + &lock("b", "  fairness: Fifo\n")
        + &lock("b", "  ttlSeconds: 5\n");
    let (_dir, path) = classes(&text);
    let output = holdfast(&["lint", "-f", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains(":7:3: spec.maxHoldSeconds"), "{text}");
    assert!(text.contains("spec.fairness"), "{text}");
    assert!(text.contains("Lock \"b\" is at"), "{text}");
}

#[test]
fn a_missing_file_is_an_error_and_not_an_empty_result() {
    let output = holdfast(&["lint", "-f", "/does/not/exist.yaml"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_kind_that_its_backend_cannot_keep_is_an_error_with_a_way_out() {
    let (_dir, path) = classes(
        "apiVersion: holdfast.dev/v1alpha1\nkind: Backend\nmetadata:\n  name: three\n\
         spec:\n  redis:\n    mode: Redlock\n    addresses: ['a:1', 'b:1', 'c:1']\n---\n\
         apiVersion: holdfast.dev/v1alpha1\nkind: Lock\nmetadata:\n  name: a\n\
         spec:\n  backend: three\n---\n\
         apiVersion: holdfast.dev/v1alpha1\nkind: Semaphore\nmetadata:\n  name: b\n\
         spec:\n  permits: 2\n  backend: three\n",
    );
    let output = holdfast(&["lint", "-f", path.to_str().unwrap()]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let place = format!("{}:23:3: ", path.display());
    assert!(text.contains(&place) && text.contains("Redlock keeps locks only"), "{text}");
    assert_eq!(text.matches("yaml:").count(), 1, "{text}");
}
