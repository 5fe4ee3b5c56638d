//! The template engine. It works out whatever a template says, and nothing in a process bounds
//! that: instructions are counted, and one of them may compare lists of any depth or repeat a
//! text. So messages that are templates are filled in by processes of their own
//! (`gateway/renderer`), which are told a [`Work`] and answer with [`Done`].

use std::{borrow::Cow, io, sync::LazyLock};

use minijinja::{
    Environment, ErrorKind, UndefinedBehavior,
    machinery::{Instruction, get_compiled_template},
    value::Serde,
};
use minijinja_contrib::{add_to_environment, pycompat::unknown_method_callback};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Rendering stops after so many template instructions: a template can loop.
const FUEL: u64 = 1_000_000;
/// The messages of a prompt are at most so long, filled in.
pub const LARGEST: usize = 32 << 20;
/// So many compiled templates an engine keeps at most, with so many bytes of source together.
const MOST_KEPT: usize = 128;
const MOST_SOURCE: usize = 1 << 20;

/// Compiles, and fills in what only puts values between words.
pub(super) static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(environment);

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    // The rest of what Jinja2 has and MiniJinja leaves out, but nothing that differs from one
    // request to the next; and methods as Python has them, `text.upper()`.
    add_to_environment(&mut environment);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment
}

/// Templates of one prompt, to be filled in for one request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Work<'a> {
    /// Each with its place among the messages, from 0.
    pub templates: Vec<(usize, Cow<'a, str>)>,
    /// The inputs.
    pub variables: Cow<'a, Value>,
    /// So many bytes they may have together.
    pub most: usize,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// The texts, in their order.
    Texts(Vec<String>),
    /// A template can not be filled in with these inputs.
    Failed {
        /// Which message, from 0.
        index: usize,
        /// What is wrong, for example which variable is undefined.
        message: String,
    },
    /// They run through too many instructions.
    OutOfFuel,
}

/// An engine that keeps what it has compiled.
pub struct Engine {
    /// Each template by its source.
    environment: Environment<'static>,
    kept: usize,
    bytes: usize,
}

impl Default for Engine {
    fn default() -> Self {
        Self { environment: environment(), kept: 0, bytes: 0 }
    }
}

impl Engine {
    /// Fills in. Takes as long, and as much memory, as the templates want.
    pub fn fill_in(&mut self, work: &Work<'_>) -> Done {
        let mut left = work.most;
        let mut texts = Vec::with_capacity(work.templates.len());
        for (index, source) in &work.templates {
            match self.one(source, &work.variables, left) {
                Ok(text) => {
                    left = left.saturating_sub(text.len());
                    texts.push(text);
                }
                Err(e) if e.kind() == ErrorKind::OutOfFuel => return Done::OutOfFuel,
                Err(e) => return Done::Failed { index: *index, message: describe(&e) },
            }
        }
        Done::Texts(texts)
    }

    fn one(
        &mut self,
        source: &str,
        variables: &Value,
        most: usize,
    ) -> Result<String, minijinja::Error> {
        if self.environment.get_template(source).is_err() {
            if self.kept >= MOST_KEPT || self.bytes + source.len() > MOST_SOURCE {
                *self = Self::default();
            }
            self.environment.add_template_owned(source.to_owned(), source.to_owned())?;
            self.kept += 1;
            self.bytes += source.len();
        }
        fill(&self.environment.get_template(source)?, variables, most)
    }
}

/// Fills in a template, up to so many bytes.
pub(super) fn fill(
    template: &minijinja::Template<'_, '_>,
    variables: &Value,
    most: usize,
) -> Result<String, minijinja::Error> {
    let mut filled = Bounded { bytes: vec![], most, full: false };
    let told = template.render_captured_to(Serde(variables), &mut filled).map(|_| ());
    let of = |detail| minijinja::Error::new(ErrorKind::InvalidOperation, detail);
    if filled.full {
        let most = LARGEST >> 20;
        return Err(of(format!("filled in, the prompt has more than {most} MiB: send less")));
    }
    told?;
    String::from_utf8(filled.bytes).map_err(|_| of("what it writes is no text".to_owned()))
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most.saturating_sub(self.bytes.len()) {
            self.full = true;
            return Err(io::Error::other("full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first filter, test, function or method that a template uses and that does not exist, in
/// words: a request that gets there would fail. Inputs are JSON values, so only the methods of
/// texts, lists and objects exist. A template with macros may hold them anywhere: its methods are
/// not checked.
pub(super) fn unknown(template: &minijinja::Template<'_, '_>) -> Option<String> {
    let compiled = get_compiled_template(template);
    let all = std::iter::once(&compiled.instructions).chain(compiled.blocks.values());
    let each = all.flat_map(|one| (0..).map_while(|at| one.get(at)));
    let each: Vec<_> = each.collect();
    // What a template makes itself may be called: macros, and what holds them.
    let made = |name: &str| {
        ["loop", "caller", "super"].contains(&name)
            || each.iter().any(|i| matches!(i, Instruction::StoreLocal(made) if *made == name))
    };
    let makes_macros = each.iter().any(|i| matches!(i, Instruction::BuildMacro(..)));
    each.iter().find_map(|instruction| {
        let (what, name, examples) = match instruction {
            Instruction::ApplyFilter(name, ..) => ("filter", name, vec![format!("0|{name}")]),
            Instruction::PerformTest(name, ..) => ("test", name, vec![format!("0 is {name}")]),
            Instruction::CallFunction(name, _) if !made(name) => {
                ("function", name, vec![format!("{name}()")])
            }
            Instruction::CallMethod(name, _) if !makes_macros && !OF_LOOPS.contains(name) => {
                let of = ["''", "[]", "{}", "cycler([0])", "namespace()"];
                ("method", name, of.iter().map(|of| format!("{of}.{name}()")).collect())
            }
            _ => return None,
        };
        let is_unknown = |example: &String| {
            let tried = ENGINE.compile_expression(example).and_then(|tried| tried.eval(()));
            tried.is_err_and(|error| UNKNOWN.contains(&error.kind()))
        };
        examples.iter().all(is_unknown).then(|| format!("there is no {what} named {name}"))
    })
}

/// The methods of `loop`, which exists only within a loop.
const OF_LOOPS: [&str; 2] = ["cycle", "changed"];
/// The errors that say that a name does not exist.
const UNKNOWN: [ErrorKind; 4] = [
    ErrorKind::UnknownFilter,
    ErrorKind::UnknownTest,
    ErrorKind::UnknownFunction,
    ErrorKind::UnknownMethod,
];

/// What is wrong and where.
pub(super) fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
    error.detail().map_or_else(|| format!("{}{line}", error.kind()), |d| format!("{d}{line}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_compiled_is_kept_up_to_a_bound_and_changes_nothing() {
        let mut engine = Engine::default();
        for round in 0..3 {
            for n in 0..MOST_KEPT + 20 {
                let sources =
                    [format!("{{% if true %}}{n} {{{{ a }}}}{{% endif %}}"), "{{ a }}".into()];
                let templates = sources.into_iter().map(Cow::Owned).enumerate().collect();
                let variables = Cow::Owned(json!({"a": round}));
                let done = engine.fill_in(&Work { templates, variables, most: 100 });
                assert_eq!(done, Done::Texts(vec![format!("{n} {round}"), round.to_string()]));
                assert!(engine.kept <= MOST_KEPT);
            }
        }
    }

    #[test]
    fn all_messages_together_have_one_bound() {
        let of = |most| {
            let templates = vec![(2, "{{ a }}".into()), (5, "{{ a }}{{ a }}".into())];
            let variables = Cow::Owned(json!({"a": "four"}));
            Engine::default().fill_in(&Work { templates, variables, most })
        };
        assert_eq!(of(12), Done::Texts(vec!["four".to_owned(), "fourfour".to_owned()]));
        assert!(matches!(of(11), Done::Failed { index: 5, .. }));
        assert!(matches!(of(3), Done::Failed { index: 2, .. }));
    }
}
