//! The definitions under `crds/` are exactly what the types generate.

use std::{fs, path::Path};

use serinus::api::crd;

#[test]
fn the_checked_in_definitions_are_what_the_types_generate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    for (file, definition) in crd::all() {
        let fresh = crd::to_yaml(&definition).unwrap();
        let path = folder.join(file);
        if std::env::var_os("SERINUS_REFRESH").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &fresh).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == fresh, "crds/{file} is stale: run `make generate` and read the diff");
    }
}
