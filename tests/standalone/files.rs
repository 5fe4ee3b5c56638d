//! Which files are read, where the state is, and what is told of what is not in force.

use std::{fs, os::unix::fs::symlink};

use serinus::{api::prompt_release::Phase, app::standalone};
use tempfile::TempDir;

use super::{FIXED, FIXED_PROMPT, Place, gateway, release};

impl Place {
    /// The folder as at the very first start, with other files in it.
    fn anew(change: impl FnOnce(&Self)) -> Self {
        let mut place = Self::new();
        place.process = None;
        for file in ["state.json", "state.json.before", "state.json.in-force"] {
            let _ = fs::remove_file(place.path(file));
        }
        change(&place);
        place.restart();
        place.seconds(3);
        place
    }

    /// What is wrong, without that nobody may ask.
    fn text(&self) -> String {
        let text = self.gateway.notices().text();
        text.lines().filter(|line| !line.contains("NoClientKey")).collect::<Vec<_>>().join("\n")
    }

    /// Why the route is not served.
    fn why(&self, route: &str) -> String {
        self.gateway.notices().of_route(route, |own| own == "default").unwrap_or_default()
    }
}

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
                Some(file) => standalone::StateLocation::named(file),
                None => standalone::StateLocation::of(&link, place.now).unwrap(),
            };
            let gateway = place.gateway.clone();
            let opened = standalone::Standalone::open(&link, at.file.clone(), gateway, place.now);
            place.process = Some(opened.unwrap().with_state_at(at));
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

#[test]
fn a_manifest_is_read_whatever_the_case_of_its_ending() {
    for name in ["R.YAML", "r.Yml", "release.JSON", "release.json"] {
        let mut place = Place::new();
        place.seconds(3);
        let before = place.kept();
        fs::rename(place.path("release.yaml"), place.path(name)).unwrap();
        place.seconds(60);
        assert_eq!((place.kept(), place.text()), (before, String::new()), "{name}");
        assert_eq!(place.served(), ["default/r"], "{name}");
    }
}

#[test]
fn json_is_a_manifest_and_other_json_is_left_alone() {
    let json = |prompt: &str| {
        format!(
            "{{\"apiVersion\": \"serinus.dev/v1alpha1\", \"kind\": \"PromptRelease\", \"metadata\": \
             {{\"name\": \"r\"}},\n\t\"spec\": {{\"promptRef\": {{\"name\": \"{prompt}\"}},\n\t\
             \"backendRef\": {{\"name\": \"model\"}}, \"policyRef\": {{\"name\": \"quick\"}}}}}}"
        )
    };
    let mut place = Place::anew(|place| {
        fs::remove_file(place.path("release.yaml")).unwrap();
        place.write("release.json", &json("v1"));
        for (name, text) in [("a.json", "{\"a\": 1}"), ("b.json", "[1, {"), ("c.json", "[]")] {
            place.write(name, text);
        }
        place.write("large.json", &format!("{{\"a\": \"{}\"}}", "x".repeat(3 << 20)));
        fs::create_dir(place.path("data")).unwrap();
        place.write("data/d.json", "{\"rows\": []}");
    });
    assert_eq!((place.served(), place.text()), (vec!["default/r".to_owned()], String::new()));
    // What was a manifest stays in force when it is one no more.
    for spoilt in ["", "{\"a\": 1}", "{\"apiVersion\": \"serinus.dev/v1", "{"] {
        place.write("release.json", spoilt);
        place.seconds(60);
        place.restart();
        place.seconds(60);
        assert_eq!(place.served(), ["default/r"], "{spoilt}");
        assert!(place.text().contains("release.json"), "{spoilt}: {}", place.text());
    }
    place.write("release.json", &json("v2"));
    place.seconds(3);
    assert_eq!((place.status().phase, place.text()), (Phase::Progressing, String::new()));
    // A folder with nothing but other files is one without manifests: nothing is deleted.
    for name in ["release.json", "fixed.yaml"] {
        fs::remove_file(place.path(name)).unwrap();
    }
    place.seconds(90);
    assert_eq!(place.served(), ["default/r"]);
    assert!(place.text().contains("EmptyFolder"), "{}", place.text());
}

#[test]
fn json_without_an_api_version_is_no_manifest_and_a_list_of_manifests_is_told() {
    let others = [
        ("list.json", "{\"kind\": \"video#list\"}".to_owned()),
        ("report.json", "{\"metadata\": {\"name\": \"My Report\"}, \"rows\": []}".to_owned()),
        ("empty.json", String::new()),
        ("large.json", format!("{{\"kind\": \"{}\"}}", "x".repeat(3 << 20))),
        ("sub/report.json", "{\"metadata\": {\"name\": \"My Report\"}}".to_owned()),
    ];
    let mut place = Place::anew(|place| {
        fs::create_dir(place.path("sub")).unwrap();
        others.iter().for_each(|(name, text)| place.write(name, text));
    });
    assert_eq!((place.served().len(), place.text()), (1, String::new()));
    // They do not count as manifests: nothing is deleted when all of these are gone.
    for name in ["release.yaml", "fixed.yaml"] {
        fs::remove_file(place.path(name)).unwrap();
    }
    place.seconds(90);
    assert_eq!(place.served(), ["default/r"]);
    assert!(place.text().contains("EmptyFolder"), "{}", place.text());
    let list = "[{\"apiVersion\": \"serinus.dev/v1alpha1\", \"kind\": \"PromptRelease\"}]";
    let mut place = Place::anew(|place| place.write("list.json", list));
    assert!(place.text().contains("list.json: InvalidManifest: "), "{}", place.text());
    place.write("sub.json", "{}");
    fs::create_dir(place.path("sub")).unwrap();
    place.write("sub/list.json", list);
    place.seconds(70);
    assert!(place.text().contains("sub/: FolderNotRead"), "{}", place.text());
}

#[test]
fn what_looks_like_a_manifest_and_is_not_read_is_told_and_what_is_left_out_on_purpose_is_not() {
    for name in ["r.yaml.txt", "r.yaml ", "r.yalm", "release", "r.yaml.1"] {
        let mut place = Place::anew(|place| {
            fs::rename(place.path("release.yaml"), place.path(name)).unwrap();
            fs::write(place.path("README"), format!("# Releases\n\n    {}", release("v1")))
                .unwrap();
        });
        let told = format!("{name}: FileNotRead: looks like a manifest and is not read");
        assert!(place.text().contains(&told), "{name}: {}", place.text());
        assert_eq!(place.gateway.notices().withheld(), 1);
        fs::rename(place.path(name), place.path("release.yaml")).unwrap();
        place.seconds(3);
        assert_eq!((place.served(), place.text()), (vec!["default/r".to_owned()], String::new()));
    }
    let place = Place::anew(|place| {
        for name in ["r.yaml~", "r.yaml.bak", "r.yaml.orig", "#r.yaml#", ".r.yaml", "r.yaml.OFF"] {
            place.write(name, &release("v2"));
        }
        assert!(
            std::process::Command::new("mkfifo")
                .arg(place.path("pipe"))
                .status()
                .unwrap()
                .success()
        );
    });
    assert_eq!(place.text(), "");
    // One that is there for a moment is on its way to another name.
    let mut place = Place::new();
    place.seconds(3);
    place.write("release.yaml.xyz", &release("v2"));
    place.ticks(3);
    assert_eq!(place.text(), "");
    place.seconds(5);
    assert!(place.text().contains("release.yaml.xyz: FileNotRead"), "{}", place.text());
}

#[test]
fn a_route_whose_release_is_in_a_file_that_can_not_be_used_says_so_to_who_asks_for_it() {
    let good = release("v1").replace("spec: {", "spec:\n  route: shop\n  ").replace("}}\n", "}\n");
    let good = good.replace("}, b", "}\n  b").replace("}, p", "}\n  p");
    assert!(serinus::api::manifest::parse(&good).is_ok(), "{good}");
    // The message of the release itself is told; any other may quote what the reader may not read.
    let (own, cut, second) = (
        "release.yaml: InvalidManifest: ",
        "release.yaml, document 1: InvalidManifest: see /readyz?verbose on the admin port",
        "release.yaml, document 2: InvalidManifest: see /readyz?verbose on the admin port",
    );
    for (what, bad, told) in [
        ("indentation", good.replace("  policyRef", " policyRef"), cut),
        ("a key that is twice", format!("{good}  backendRef: {{name: other}}\n"), cut),
        ("a tab", good.replace("  policyRef", "\tpolicyRef"), cut),
        ("another version", good.replace("v1alpha1", "v1"), own),
        ("another kind", good.replace("PromptRelease", "PromtRelease"), own),
        ("a field is missing", good.replace("  backendRef: {name: model}\n", ""), own),
        ("a name that Kubernetes refuses", good.replace("name: r}", "name: R_1}"), own),
        ("another document", format!("{good}---\nkind: nothing\n"), second),
        ("no document after this one", format!("{good}---\n@\n"), second),
    ] {
        let place = Place::anew(|place| place.write("release.yaml", &bad));
        let why = place.why("shop");
        assert!(why.starts_with(told), "{what}: {why}");
        assert_eq!(why.contains("/readyz"), told != own, "{what}: {why}");
        assert_eq!(place.why("other"), "", "{what}");
        assert_eq!(place.gateway.notices().of_route("shop", |_| false), None, "{what}");
        assert_eq!(place.gateway.notices().withheld(), 1, "{what}");
    }
    // Not UTF-8 from some byte on, and a name alone.
    let place = Place::anew(|place| {
        fs::write(place.path("release.yaml"), [good.as_bytes(), b"# caf\xe9\n"].concat()).unwrap();
    });
    assert!(place.text().contains("is not UTF-8") && place.why("shop") == cut, "{}", place.text());
    let unnamed = good.replace("metadata: {name: r}\n", "");
    let place = Place::anew(|place| place.write("release.yaml", &unnamed));
    assert_eq!((place.why("shop").as_str(), place.gateway.notices().withheld()), ("", 1));
    // The last valid content serves: there is nothing to explain.
    let mut place = Place::new();
    place.seconds(3);
    place.write("release.yaml", &good.replace("v1alpha1", "v1"));
    place.seconds(3);
    assert_eq!(place.served(), ["default/r"]);
}

#[test]
fn why_a_route_is_not_served_quotes_no_document_of_others() {
    let theirs = FIXED_PROMPT.replace("name: v1", "name: p, namespace: theirs");
    let theirs = theirs.replace("role: user", "role: hidden-text");
    // In the file of the release, in another one, and where no name is known.
    let unknown = "metadata: {namespace: theirs}\nspec: {hidden-text: 1, hidden-text: 2}\n";
    for (release_file, other_file) in [
        (format!("{}---\n{theirs}", release("v1")), String::new()),
        (release("v1"), format!("{theirs}---\n{FIXED_PROMPT}")),
        (release("v1"), unknown.to_owned()),
    ] {
        let place = Place::anew(|place| {
            place.write("release.yaml", &release_file);
            place.write("fixed.yaml", &FIXED.replace("name: v1}", "name: v0}"));
            if !other_file.is_empty() {
                place.write("other.yaml", &other_file);
            }
        });
        let why = place.why("r");
        assert!(place.text().contains("hidden-text"), "{}", place.text());
        assert!(!why.is_empty() && !why.contains("hidden-text"), "{why}");
    }
    // The rest of a document that is cut may name another namespace.
    let place = Place::anew(|place| {
        let cut = release("v1").replace("{name: r}", "\n  name: r\n  labels: [\n  namespace: a");
        place.write("release.yaml", &cut);
    });
    assert_eq!(place.why("r"), "", "{}", place.text());
}

#[test]
fn an_object_that_is_there_and_not_in_force_is_not_said_to_be_missing() {
    let tabs = FIXED.replace("spec: {steps", "spec:\n\tsteps");
    for (what, change, told) in [
        (
            "twice",
            ("copy.yaml", FIXED_PROMPT.replace("one", "another")),
            "PromptVersion v1 is defined twice, in copy.yaml and fixed.yaml: neither is used",
        ),
        (
            "another document of its file",
            ("fixed.yaml", tabs.clone()),
            "PromptVersion v1 is in fixed.yaml, which is not in force: correct it",
        ),
        (
            "a file that ends before it",
            ("fixed.yaml", format!("a: [\n---\n{FIXED}")),
            "PromptVersion v1 does not exist: create it, or change spec.promptRef.name; it may be in \
             fixed.yaml, which is not in force: correct it as its own message says",
        ),
        (
            "a file that can not be read",
            ("fixed.yaml", format!("{FIXED}# {}\n", "x".repeat(2 << 20))),
            "it may be in fixed.yaml, which is not in force: correct it as its own message says",
        ),
    ] {
        let mut place = Place::anew(|place| place.write(change.0, &change.1));
        assert!(place.why("r").contains(told), "{what}: {}", place.text());
        assert!(place.status().conditions.iter().any(|c| c.message.contains(told)), "{what}");
        // Mended, it is served.
        let _ = fs::remove_file(place.path(change.0));
        place.write("fixed.yaml", FIXED);
        place.seconds(3);
        assert_eq!((place.text(), place.served().len()), (String::new(), 1), "{what}");
    }
    let mut place = Place::anew(|place| {
        fs::remove_file(place.path("fixed.yaml")).unwrap();
        for name in ["a.yaml", "b.yaml", "c.yaml", "d.yaml"] {
            place.write(name, "oops: [");
        }
    });
    let several =
        "it may be in a.yaml or b.yaml or c.yaml or one of 1 more, which are not in force";
    assert!(place.why("r").contains(several), "{}", place.text());
    // As files come and go, so does what is said.
    for name in ["a.yaml", "b.yaml", "c.yaml", "d.yaml"] {
        fs::remove_file(place.path(name)).unwrap();
    }
    place.write("fixed.txt", FIXED);
    place.seconds(6);
    let misnamed = "it may be in fixed.txt, which is not in force: correct it";
    assert!(place.why("r").contains(misnamed), "{}", place.text());
    fs::create_dir(place.path("sub")).unwrap();
    fs::rename(place.path("fixed.txt"), place.path("sub/fixed.yaml")).unwrap();
    place.seconds(70);
    assert!(place.why("r").contains("it may be in sub/, which is not"), "{}", place.text());
}

#[test]
fn a_policy_a_fallback_and_a_secret_may_be_in_a_file_that_can_not_be_used() {
    let keyed = FIXED.replacen("v1}}", "v1, apiKeySecretRef: {name: no-such, key: token}}}", 1);
    let named = "backendRef: {name: model}, fallbackBackendRefs: [{name: other}]";
    let mut place = Place::anew(|place| {
        place.write("fixed.yaml", &keyed);
        place.write_release(&release("v1").replace("backendRef: {name: model}", named));
        place.write("z.yaml", "oops: [");
    });
    let text = place.text();
    let maybe = "; it may be in z.yaml, which is not in force: correct it";
    assert!(text.contains(&format!("start again{maybe}")), "{text}");
    place.write("fixed.yaml", &FIXED.replace("name: quick", "name: slow"));
    // The policy goes with its last definition.
    place.seconds(40);
    let text = place.text();
    assert!(text.contains(&format!("spec.policyRef.name{maybe}")), "{text}");
    assert!(text.contains(&format!("spec.fallbackBackendRefs{maybe}")), "{text}");
    fs::remove_file(place.path("z.yaml")).unwrap();
    place.seconds(3);
    assert!(!place.text().contains("it may be"), "{}", place.text());
}

#[test]
fn a_state_in_the_folder_of_manifests_is_no_manifest_whatever_its_name() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("fixed.yaml"), FIXED).unwrap();
    fs::write(folder.path().join("release.yaml"), release("v1")).unwrap();
    for name in ["state.json", "state.yaml", "release"] {
        let mut place = Place::new();
        let gateway = place.gateway.clone();
        let file = folder.path().join(name);
        let opened = standalone::Standalone::open(folder.path(), file, gateway, place.now);
        place.process = Some(opened.unwrap());
        place.seconds(5);
        assert_eq!((place.text(), place.served().len()), (String::new(), 1), "{name}");
        place.process = None;
        for entry in fs::read_dir(folder.path()).unwrap().flatten() {
            let own = entry.file_name().to_string_lossy().starts_with(name);
            if own && entry.path().is_dir() {
                // What is asked for at the command line.
                fs::remove_dir(entry.path()).unwrap();
            } else if own && entry.file_name() != "release.yaml" {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}
