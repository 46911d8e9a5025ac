//! The rules of keeping a bundle's files between visits: what a file is called there, what to do with one that is only
//! partly there, and which files nobody needs any more. Knows names and numbers, not storage.

use serde_json::Value;
use std::collections::BTreeSet;

/// What a file found in the store is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// As long as it must be; its hash decides.
    Whole,
    /// The beginning of it; the rest is to be fetched from this byte on.
    Beginning(u64),
    /// Longer than it must be: not this file.
    Foreign,
}

/// Judges a stored file by its length.
pub fn found(length: u64, expected: u64) -> Found {
    match length {
        _ if length == expected => Found::Whole,
        _ if length < expected => Found::Beginning(length),
        _ => Found::Foreign,
    }
}

/// The first byte of what a server sends when it was asked for everything from byte `from` on, or `None` when there is
/// nothing from there on. `range` is the answer's `Content-Range`, which servers of another origin may hide.
pub fn begins_at(status: u16, range: Option<&str>, from: u64) -> Option<u64> {
    match (status, range) {
        (206, Some(range)) => range.strip_prefix("bytes ")?.split('-').next()?.parse().ok(),
        (206, None) => Some(from),
        (416, _) => None,
        _ => Some(0),
    }
}

/// Every hash that a manifest names, whatever version of the format it is.
pub fn hashes_of(manifest: &[u8]) -> BTreeSet<String> {
    let mut hashes = BTreeSet::new();
    if let Ok(manifest) = serde_json::from_slice(manifest) {
        gather(&manifest, &mut hashes);
    }
    hashes
}

fn gather(value: &Value, hashes: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(hash) if key == "sha256" => drop(hashes.insert(hash.to_owned())),
                    _ => gather(value, hashes),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, hashes)),
        _ => {}
    }
}

/// The stored files that no known manifest names.
pub fn unneeded<'n>(stored: &'n [String], manifests: &[Vec<u8>]) -> Vec<&'n str> {
    let needed: BTreeSet<String> = manifests.iter().flat_map(|manifest| hashes_of(manifest)).collect();
    stored.iter().map(String::as_str).filter(|name| !needed.contains(*name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_file_is_judged_by_its_length() {
        assert_eq!(found(5, 5), Found::Whole);
        assert_eq!(found(0, 5), Found::Beginning(0));
        assert_eq!(found(4, 5), Found::Beginning(4));
        assert_eq!(found(6, 5), Found::Foreign);
    }

    #[test]
    fn a_server_that_ignores_or_shifts_a_range_is_understood() {
        assert_eq!(begins_at(206, Some("bytes 100-199/200"), 100), Some(100));
        assert_eq!(begins_at(206, Some("bytes 64-199/200"), 100), Some(64));
        assert_eq!(begins_at(206, None, 100), Some(100));
        assert_eq!(begins_at(200, None, 100), Some(0));
        assert_eq!(begins_at(416, Some("bytes */200"), 300), None);
        assert_eq!(begins_at(206, Some("lines 3-4"), 100), None);
    }

    #[test]
    fn only_files_that_no_manifest_names_are_given_up() {
        let first = br#"{"files": [{"path": "a", "sha256": "aa"}], "parts": {"sha256": 7}}"#.to_vec();
        let second = br#"{"shards": {"x": {"file": {"sha256": "bb"}}}}"#.to_vec();
        let stored = ["aa", "bb", "cc"].map(str::to_owned);
        assert_eq!(unneeded(&stored, &[first.clone(), second]), ["cc"]);
        assert_eq!(unneeded(&stored, &[first, b"not JSON".to_vec()]), ["bb", "cc"]);
    }
}
