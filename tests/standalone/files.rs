//! Where the state is.

use std::{fs, os::unix::fs::symlink};

use serinus::{api::prompt_release::Phase, app::standalone};
use tempfile::TempDir;

use super::{FIXED, Place, gateway, release};

#[test]
fn a_deploy_that_moves_a_link_while_the_process_is_down_starts_a_canary() {
    for old_place in [false, true] {
        let deploys = TempDir::new().unwrap();
        let link = deploys.path().join("current");
        for (version, prompt) in [("1", "v1"), ("2", "v2")] {
            let folder = deploys.path().join(version);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("fixed.yaml"), FIXED).unwrap();
            fs::write(folder.join("release.yaml"), release(prompt)).unwrap();
        }
        symlink("1", &link).unwrap();
        let mut place = Place::new();
        let run = |place: &mut Place, file: Option<std::path::PathBuf>| {
            place.process = None;
            place.gateway = gateway();
            let at = match file {
                Some(file) => standalone::Place::named(file),
                None => standalone::Place::of(&link, place.now).unwrap(),
            };
            let gateway = place.gateway.clone();
            let opened = standalone::Standalone::open(&link, at.file.clone(), gateway, place.now);
            place.process = Some(opened.unwrap().at_place(at));
            place.ticks(4)
        };
        // As an earlier version kept it, inside what the link leads to.
        let before = old_place.then(|| link.join(".serinus/state.json"));
        run(&mut place, before);
        let stable = place.status().stable;
        assert!(stable.is_some());
        if old_place {
            let news = run(&mut place, None);
            assert!(news.iter().any(|n| n.starts_with("StateMoved")), "{news:?}");
        }
        place.process = None;
        symlink("2", deploys.path().join("next")).unwrap();
        fs::rename(deploys.path().join("next"), &link).unwrap();
        run(&mut place, None);
        let status = place.status();
        assert_eq!((status.phase, status.stable), (Phase::Progressing, stable), "{old_place}");
    }
}
