//! Which files of a folder that a visitor gave are the bundle's: the folder may hold it, or lie around it.

/// The file that makes a folder a bundle.
const MANIFEST: &str = "manifest.json";

/// The path of the bundle's folder inside the given one, with a slash at the end unless it is the given one itself: where
/// the manifest is that lies least deep. `None` without any.
pub fn bundle_inside<'p>(paths: impl IntoIterator<Item = &'p str>) -> Option<&'p str> {
    let holders = paths.into_iter().filter_map(|path| {
        let holder = path.strip_suffix(MANIFEST)?;
        (holder.is_empty() || holder.ends_with('/')).then_some(holder)
    });
    holders.min_by_key(|holder| (holder.matches('/').count(), *holder))
}

/// What a visitor reads when a folder holds no bundle.
pub fn no_bundle(name: &str, files: usize) -> String {
    let name = quoted(name);
    match files {
        0 => format!("{name} is empty: there is no {MANIFEST} in it."),
        1 => format!("{name} holds one file, and it is no {MANIFEST}."),
        _ => format!("{name} holds {files} files, none of them a {MANIFEST}."),
    }
}

/// A name in a sentence. A direction of writing of its own ends with it (U+2068, U+2069).
pub fn quoted(name: &str) -> String {
    format!("“\u{2068}{name}\u{2069}”")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_found_at_the_top_below_it_and_nowhere() {
        assert_eq!(bundle_inside(["cc.safetensors", "manifest.json"]), Some(""));
        assert_eq!(bundle_inside(["log.txt", "run/bundle/manifest.json", "run/bundle/files/a"]), Some("run/bundle/"));
        assert_eq!(bundle_inside(["a/b/manifest.json", "z/manifest.json"]), Some("z/"));
        assert_eq!(bundle_inside(["my-manifest.json", "manifest.json.bak"]), None);
    }

    #[test]
    fn a_folder_without_a_bundle_is_described() {
        assert!(no_bundle("photos", 12).contains("12 files"));
        assert!(no_bundle("photos", 1).contains("one file"));
    }
}
