//! The OpenAPI document is an outside format: it changes only on purpose.

use std::path::Path;

/// Set to write the document anew after a change on purpose.
const UPDATE: &str = "TIRAMI_UPDATE_GOLDEN";

#[test]
fn the_document_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.json");
    let document = tirami_sdk::openapi::document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    // A whole document in a failure message helps nobody; the first line that differs does.
    for (number, (is, was)) in document.lines().zip(golden.lines()).enumerate() {
        assert_eq!(is, was, "line {}; set {UPDATE}=1 if that is meant", number + 1);
    }
    assert_eq!(document.len(), golden.len());
}
