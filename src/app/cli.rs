//! The commands.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use super::{
    cost, demo, gateway, migrate, models, operator, policies,
    process::{block_on, listen_on, say, stop_signal, told},
    releases, shell, simulated_model, snapshots, standalone, validate,
};
use crate::{
    api::crd,
    gateway::renderer::{self, Confines},
};

/// Releases prompts and models by evidence.
#[derive(Parser)]
#[command(name = "serinus", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the CustomResourceDefinitions, or write them into a folder.
    Crd {
        /// The folder to write into.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Turn what earlier versions kept as ControllerRevisions into ReleaseSnapshots, once at an
    /// upgrade.
    ConvertSnapshots(snapshots::Options),
    /// What requests have cost, by team, release and revision.
    Cost(cost::Options),
    /// A good prompt is promoted and a bad one rolled back, in about a minute.
    Demo(demo::Options),
    /// Write what moves every release from one model to another, by canaries.
    Migrate(migrate::Options),
    /// Which models are in use, by whom, and until when.
    Models(models::Options),
    /// What a policy can find, how long it takes, and what to change when it can not decide.
    Plan(policies::PlanOptions),
    /// Many virtual canaries: how often a policy rolls back, promotes or has no answer.
    Simulate(policies::SimulateOptions),
    #[command(flatten)]
    Releases(releases::Command),
    /// Check manifests as the API server and the operator would, without either.
    Validate(validate::Options),
    /// Run releases from a folder of manifests, without a cluster.
    Standalone(standalone::Options),
    /// Run the control plane in a cluster.
    Operator(operator::Options),
    /// Run the data plane in a cluster.
    Gateway(gateway::Options),
    /// A simulated model, for trying things out.
    #[command(hide = true)]
    SimulatedModel {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:9000")]
        listen: SocketAddr,
    },
    /// Fill in templates for the gateway that starts it, as its standard input says.
    #[command(hide = true)]
    FillIn {
        /// The most memory, in bytes.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 50))]
        memory: u64,
        /// How far others go first.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=19))]
        nice: i32,
    },
    /// Print what a shell needs to complete commands and arguments.
    Completion(shell::CompletionOptions),
    /// Print the manual page.
    Man(shell::ManOptions),
    /// Print the version.
    Version,
}

/// Parses the arguments and runs the command.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Crd { out } => print_crds(out).map(|()| true),
        Command::ConvertSnapshots(options) => block_on(snapshots::convert(options)),
        Command::Cost(options) => block_on(cost::run(options)).map(|()| true),
        Command::Migrate(options) => block_on(migrate::run(options)).map(|()| true),
        Command::Models(options) => block_on(models::run(options)).map(|()| true),
        Command::Demo(options) => block_on(demo::run(options)),
        Command::Standalone(options) => block_on(standalone::run(options)).map(|()| true),
        Command::Releases(command) => block_on(releases::run(command)),
        Command::Operator(options) => block_on(operator::run(options)).map(|()| true),
        Command::Gateway(options) => block_on(gateway::run(options)).map(|()| true),
        Command::SimulatedModel { listen } => block_on(async move {
            let listener = listen_on(listen).await?;
            simulated_model::serve(listener, stop_signal()).await?;
            Ok(true)
        }),
        Command::FillIn { memory, nice } => {
            renderer::run(Confines { memory, nice }).map(|()| true).map_err(Into::into)
        }
        Command::Plan(options) => policies::plan(&options),
        Command::Simulate(options) => policies::simulate(&options).map(|()| true),
        Command::Validate(options) => validate::run(&options),
        Command::Completion(options) => {
            shell::complete(&options, Cli::command());
            Ok(true)
        }
        Command::Man(options) => shell::man(&options, Cli::command()).map(|()| true),
        Command::Version => {
            println!("serinus {}", env!("CARGO_PKG_VERSION"));
            Ok(true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(format_args!("serinus: {}", told(&error)));
            ExitCode::FAILURE
        }
    }
}

fn print_crds(out: Option<PathBuf>) -> anyhow::Result<()> {
    for (file, definition) in crd::all() {
        let text = crd::to_yaml(&definition)?;
        match &out {
            Some(folder) => std::fs::write(folder.join(file), text)?,
            None => println!("---\n{text}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{any::TypeId, sync::Arc};

    use clap::{CommandFactory, Parser, error::ErrorKind};
    use tokio::task::JoinSet;

    use super::Cli;
    use crate::{
        api::{GoDuration, url::tests::WITH},
        app::{identity, prometheus, telemetry},
    };

    /// Those of the flags that are addresses.
    #[derive(Parser)]
    struct Addresses {
        #[command(flatten)]
        clients: identity::Options,
        #[command(flatten)]
        prometheus: prometheus::Options,
        #[command(flatten)]
        telemetry: telemetry::Options,
    }

    impl Addresses {
        /// What is wrong with them.
        fn problem(&self) -> Option<String> {
            let clients = self.clients.build(vec![], &mut JoinSet::new()).err();
            let prometheus = self.prometheus.build().err();
            let telemetry = self.telemetry.start(Arc::default()).err();
            Some(format!("{:#}", clients.or(prometheus).or(telemetry)?))
        }
    }

    #[tokio::test]
    async fn no_flag_takes_credentials_in_any_spelling_or_repeats_them() {
        let problem = |flag: &str, url: &str| {
            let mut arguments = vec!["serinus".to_owned(), format!("--{flag}={url}")];
            if flag == "oidc-issuer" {
                arguments.extend(["--oidc-audience=a", "--oidc-routes=*"].map(str::to_owned));
            }
            Addresses::try_parse_from(arguments).unwrap_or_else(|e| panic!("{e}")).problem()
        };
        for flag in ["prometheus-url", "otlp-endpoint", "otlp-traces-endpoint", "oidc-issuer"] {
            for url in WITH {
                let told = problem(flag, url).unwrap_or_default();
                assert!(told.contains("password") && !told.contains("love"), "{url:?}: {told}");
            }
            assert_eq!(problem(flag, "https://host:8443/a"), None);
            let told = problem(flag, "ftp://host?key=lovelace").unwrap();
            assert!(told.contains("ftp://host?[redacted]"), "{told}");
        }
    }

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    /// For these, 0 is a valid value.
    const NOTHING: [&str; 12] = [
        "access-log-ratio",
        "cache-memory",
        "check-failures",
        "drain-seconds",
        "error-rate",
        "feedback",
        "grace-seconds",
        "intraclass-correlation",
        "nice",
        "score",
        "seed",
        "trace-ratio",
    ];
    /// For these, every number is valid.
    const ANY: [&str; 1] = ["seed"];

    #[test]
    fn every_number_of_every_command_is_refused_where_nothing_could_work_with_it() {
        let whole = [
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i32>(),
            TypeId::of::<i64>(),
        ];
        let (mut walked, mut wrong) = (vec![], vec![]);
        let command = Cli::command();
        for sub in command.get_subcommands() {
            for (argument, name) in sub.get_arguments().filter_map(|a| Some((a, a.get_long()?))) {
                let kind = argument.get_value_parser().type_id();
                let mut bad = vec!["", "x", "-1", "nan", "1 2"];
                let nothing = !NOTHING.contains(&name);
                let most = !ANY.contains(&name);
                if whole.iter().any(|number| kind == *number) {
                    bad.extend(["1.5", "99999999999999999999999"]);
                    bad.extend(nothing.then_some("0"));
                    bad.extend(most.then_some("18446744073709551615"));
                } else if kind == TypeId::of::<f64>() || kind == TypeId::of::<f32>() {
                    bad.extend(["inf", "-inf", "-0.5", "1e999", "1e300"]);
                    bad.extend(nothing.then_some(["0", "-0", "1e-320"]).into_iter().flatten());
                } else if kind == TypeId::of::<GoDuration>() {
                    bad.extend(["1", "-1s", "1000000000000h", "0s", "0.0001ms"]);
                } else {
                    continue;
                }
                walked.push(name);
                for value in bad {
                    let given = ["serinus", sub.get_name(), &format!("--{name}={value}")]
                        .map(str::to_owned);
                    let refused = Cli::try_parse_from(given).err().map(|error| error.kind());
                    // Of some arguments clap calls an empty value a missing one.
                    if !matches!(
                        refused,
                        Some(ErrorKind::ValueValidation | ErrorKind::InvalidValue)
                    ) {
                        wrong.push(format!("{} --{name}={value}", sub.get_name()));
                    }
                }
            }
        }
        assert_eq!(wrong, [""; 0]);
        for name in ["rate", "rps", "runs", "since", "otlp-interval", "drain-seconds", "memory"] {
            assert!(walked.contains(&name), "{name} is not among {walked:?}");
        }
    }
}
