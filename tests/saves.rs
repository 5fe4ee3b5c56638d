//! How many saves of a manifest are lost: the reader of standalone mode in virtual time,
//! beside every usual way to save a file. Each save pauses anywhere in it, for up to three
//! seconds (a `git stash` for up to 25), and the reader looks at any moment.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says so when something is wrong, and tells its figures"
)]

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serinus::{
    api::prompt_release::Phase,
    app::standalone::Standalone,
    gateway::{Gateway, GatewayConfig},
};
use tempfile::TempDir;

/// What the releases of these tests refer to.
const FIXED: &str = include_str!("fixtures/standalone.yaml");
/// Between two looks, in milliseconds.
const LOOK: u64 = 250;
/// After a save nothing happens for so long.
const REST: u64 = 1500;

/// So that the beginning of the text is a valid manifest, too.
fn release(prompt: &str, annotation: &str, save: usize) -> String {
    format!(
        "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelease\nmetadata:\n  name: r\n{annotation}\
         spec:\n  promptRef:\n    name: {prompt}\n  backendRef:\n    name: model\n  policyRef:\n    \
         name: quick\n# save {save}\n"
    )
}

/// A pause before it in milliseconds, and a change of the disk.
type Step = (u64, Box<dyn Fn()>);

/// One save of `text` to `path`.
struct Save<'a> {
    path: PathBuf,
    text: String,
    random: &'a mut StdRng,
}

impl Save<'_> {
    /// From one millisecond to three seconds, as many short ones as long ones.
    fn pause(&mut self) -> u64 {
        3000_f64.powf(self.random.random::<f64>()) as u64
    }

    fn step(&mut self, act: impl Fn() + 'static) -> Step {
        (self.pause(), Box::new(act))
    }

    fn cut(&mut self) -> (String, String) {
        let at = self.random.random_range(0..=self.text.len());
        let (first, rest) = self.text.split_at(at);
        (first.to_owned(), rest.to_owned())
    }

    fn truncate(&mut self) -> Step {
        let path = self.path.clone();
        self.step(move || drop(File::create(&path).unwrap()))
    }

    fn unlink(&mut self) -> Step {
        let path = self.path.clone();
        self.step(move || fs::remove_file(&path).unwrap())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Step {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.step(move || fs::rename(&from, &to).unwrap())
    }

    /// In two parts, appended.
    fn write(&mut self, path: &Path) -> Vec<Step> {
        let (first, rest) = self.cut();
        [first, rest]
            .map(|part| {
                let path = path.to_owned();
                self.step(move || {
                    let mut file = File::options().create(true).append(true).open(&path).unwrap();
                    file.write_all(part.as_bytes()).unwrap();
                })
            })
            .into()
    }
}

type Way = fn(&mut Save<'_>) -> Vec<Step>;

fn ways() -> Vec<(&'static str, Way)> {
    vec![
        ("write in place, in two parts", |save| {
            let (first, rest) = save.cut();
            let (path, end) = (save.path.clone(), save.text.len() as u64);
            let at = first.len() as u64;
            let over = path.clone();
            let one = save.step(move || {
                File::options()
                    .write(true)
                    .open(&over)
                    .unwrap()
                    .write_all(first.as_bytes())
                    .unwrap();
            });
            let two = save.step(move || {
                let mut file = File::options().write(true).open(&path).unwrap();
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(rest.as_bytes()).unwrap();
                file.set_len(end).unwrap();
            });
            vec![one, two]
        }),
        ("truncate, then write (shell >)", |save| {
            let (path, text) = (save.path.clone(), save.text.clone());
            let empty = save.truncate();
            vec![empty, save.step(move || fs::write(&path, &text).unwrap())]
        }),
        ("cp: truncate, then two parts", |save| {
            let path = save.path.clone();
            let mut steps = vec![save.truncate()];
            steps.extend(save.write(&path));
            steps
        }),
        ("mv over it", |save| {
            let beside = save.path.with_extension("new");
            let mut steps = save.write(&beside);
            let path = save.path.clone();
            steps.push(save.rename(&beside, &path));
            steps
        }),
        ("editor: old one renamed, new one written", |save| {
            let (path, old) = (save.path.clone(), save.path.with_extension("yaml~"));
            let mut steps = vec![save.rename(&path, &old)];
            steps.extend(save.write(&path));
            steps.push(save.step(move || fs::remove_file(&old).unwrap()));
            steps
        }),
        ("Emacs: lock link, then renamed over", |save| {
            let lock = save.path.with_file_name(".#release.yaml");
            let (beside, path) = (save.path.with_extension("tmp"), save.path.clone());
            let made = lock.clone();
            let mut steps = vec![save.step(move || symlink("ada@host.1", &made).unwrap())];
            steps.extend(save.write(&beside));
            steps.push(save.rename(&beside, &path));
            steps.push(save.step(move || fs::remove_file(&lock).unwrap()));
            steps
        }),
        ("git checkout: unlinked, then written", |save| {
            let path = save.path.clone();
            let mut steps = vec![save.unlink()];
            steps.extend(save.write(&path));
            steps
        }),
        ("git stash and pop: away for up to 25 s", |save| {
            let (path, away) = (save.path.clone(), save.random.random_range(1000..25_000));
            let mut steps = vec![save.unlink()];
            let mut back = save.write(&path);
            // Git writes a file in one go.
            back[0].0 = away;
            back[1].0 = 0;
            steps.extend(back);
            steps
        }),
        ("mounted volume: link swapped", |save| {
            let folder = save.path.with_file_name(format!("..{}", save.random.random::<u32>()));
            let (path, text) = (save.path.clone(), save.text.clone());
            let (data, new) = (path.with_file_name("..data"), path.with_file_name("..new"));
            vec![save.step(move || {
                fs::create_dir(&folder).unwrap();
                fs::write(folder.join("release.yaml"), &text).unwrap();
                symlink(folder.file_name().unwrap(), &new).unwrap();
                let before = fs::read_link(&data).ok();
                fs::rename(&new, &data).unwrap();
                if !path.is_symlink() {
                    fs::remove_file(&path).unwrap();
                    symlink("..data/release.yaml", &path).unwrap();
                }
                if let Some(before) = before {
                    fs::remove_dir_all(path.with_file_name(before)).unwrap();
                }
            })]
        }),
    ]
}

/// What went wrong in a number of saves.
#[derive(Debug, Default, PartialEq, Eq)]
struct Losses {
    /// State lost: another uid, a first release, a failure that is not known any more.
    state: usize,
    /// The route was not served at some look.
    route: usize,
    /// A half content that reads as a whole one was in force.
    half: usize,
    /// The new content was not in force at the end.
    content: usize,
}

struct World {
    folder: TempDir,
    standalone: Standalone,
    gateway: Arc<Gateway>,
    /// Milliseconds.
    now: u64,
    next_look: u64,
    losses: Losses,
}

impl World {
    /// A release of which v2 has failed, and that still names it.
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("fixed.yaml"), FIXED).unwrap();
        fs::write(folder.path().join("release.yaml"), release("v1", "", 0)).unwrap();
        let gateway = Gateway::new(GatewayConfig {
            control_loss_timeout: Duration::from_secs(1_000_000),
            ..GatewayConfig::new(|| Timestamp::UNIX_EPOCH)
        });
        let state = folder.path().join(".serinus/state.json");
        let standalone =
            Standalone::open(folder.path(), state, gateway.clone(), Timestamp::UNIX_EPOCH).unwrap();
        Self { folder, standalone, gateway, now: 0, next_look: 0, losses: Losses::default() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("release.yaml")
    }

    fn look(&mut self) -> bool {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_millis(self.now.try_into().unwrap());
        let news = self.standalone.tick(now).unwrap();
        news.iter().any(|n| n.reason == "FirstRelease")
    }

    /// Until `end`, with what the looks in between have seen.
    fn run_to(&mut self, end: u64, each: impl Fn(&mut Self, bool)) {
        while self.next_look <= end {
            self.now = self.next_look;
            let first = self.look();
            each(self, first);
            self.next_look += LOOK;
        }
        self.now = end;
    }

    fn fail_v2(&mut self) -> String {
        self.run_to(1000, |_, _| {});
        fs::write(self.path(), release("v2", "", 0)).unwrap();
        self.run_to(3000, |_, _| {});
        let status = self.standalone.releases()[0].status.clone().unwrap();
        let revision = status.canary.unwrap().variant.revision;
        let annotation = format!("  annotations:\n    serinus.dev/abort: {revision} by=ada\n");
        fs::write(self.path(), release("v2", &annotation, 0)).unwrap();
        self.run_to(5000, |_, _| {});
        annotation
    }

    fn save(&mut self, way: Way, annotation: &str, count: usize, random: &mut StdRng) {
        let text = release("v2", annotation, count);
        let steps = way(&mut Save { path: self.path(), text, random });
        let check = |world: &mut Self, first: bool| {
            let releases = world.standalone.releases();
            let spec = releases.first().map(|r| r.spec.policy_ref.is_some());
            let status = releases.first().and_then(|r| r.status.clone()).unwrap_or_default();
            let known = status.phase == Phase::RolledBack && status.failed_revision.is_some();
            world.losses.state += usize::from(first || !known);
            world.losses.half += usize::from(spec == Some(false));
            world.losses.route += usize::from(world.gateway.report(false).releases.is_empty());
        };
        for (pause, act) in steps {
            self.run_to(self.now + pause, check);
            act();
        }
        self.run_to(self.now + REST + random.random_range(0..LOOK), check);
    }
}

/// The losses of `count` saves in each way.
fn losses(count: usize) -> Vec<(&'static str, Losses)> {
    let one = |(name, way): (&'static str, Way)| {
        let mut random = StdRng::seed_from_u64(14);
        let mut world = World::new();
        let annotation = world.fail_v2();
        for save in 0..count {
            world.save(way, &annotation, save, &mut random);
        }
        // The last one is a change, which must arrive.
        let last = release("v1", &annotation, count);
        fs::remove_file(world.path()).unwrap();
        fs::write(world.path(), last).unwrap();
        world.run_to(world.now + REST, |_, _| {});
        let spec = &world.standalone.releases()[0].spec;
        world.losses.content += usize::from(spec.prompt_ref.name != "v1");
        println!("{name}: {:?}", world.losses);
        (name, world.losses)
    };
    ways().into_iter().map(one).collect()
}

#[test]
fn no_way_to_save_a_file_loses_state_or_the_route() {
    for (way, losses) in losses(100) {
        assert_eq!((losses.state, losses.route, losses.content), (0, 0, 0), "{way}: {losses:?}");
    }
}

#[test]
#[ignore = "some minutes: cargo test --test saves -- --ignored --nocapture"]
fn ten_thousand_saves_in_each_way_lose_nothing() {
    for (way, losses) in losses(10_000) {
        assert_eq!((losses.state, losses.route, losses.content), (0, 0, 0), "{way}: {losses:?}");
    }
}
