//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use nslookout::kubernetes::laptop;
use nslookout::{agent, alive, check, config::Config, correlator, explain, run, status::Status};
use tokio::task::LocalSet;

/// Tells whether a cluster's DNS works, and if not, who suffers, why, and what mends it.
///
/// Exit code: 0 healthy, 1 unhealthy, 2 could not look, 64 bad usage or configuration.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: one object, schema nslookout/1.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One shot: does DNS work here, as musl and as glibc see it? And if not, why?
    ///
    /// Example: nslookout check --server 10.96.0.10
    Check {
        /// Name server to ask instead of those in resolv.conf: an address, port 53 unless given. May be repeated.
        #[arg(long, value_parser = check::server)]
        server: Vec<SocketAddr>,
        /// A name to look up that the server forwards or knows.
        #[arg(long, default_value = "example.com")]
        name: String,
        /// The longest it may take, in seconds, 8 at least: a sick DNS takes that long to be sure of. A healthy one is
        /// told sooner.
        #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(8..=3600))]
        seconds: u64,
    },
    /// Everything in one process: probes, conntrack, drops, CoreDNS's metrics, verdicts, alerts.
    ///
    /// Example: nslookout run --config config/nslookout.yaml
    Run {
        /// The configuration; without it the defaults.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// One part of what `run` does, on one node of a cluster, for a correlator.
    ///
    /// Example: nslookout agent prober --config config/nslookout.yaml
    Agent {
        #[command(subcommand)]
        part: Agent,
    },
    /// Verdicts and alerts from what the agents of all nodes send.
    ///
    /// Example: nslookout correlator --config config/nslookout.yaml
    Correlator {
        /// The configuration; without it the defaults.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Does the agent or correlator of this machine run, and can it tell? For kubelet's probes.
    ///
    /// Exit code: 0 it does, 1 it hangs, 2 nobody answers. Example: nslookout alive
    Alive {
        /// Its unix socket, `alive.socket` of its configuration.
        #[arg(long, default_value = nslookout::config::DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// The state of DNS as a running nslookout sees it: one on this machine, or the one in a cluster.
    ///
    /// With --kubeconfig, --context or --namespace the cluster is asked, with --api that address. With none of them: the
    /// nslookout of this machine (127.0.0.1:9853), and if none answers, the cluster of KUBECONFIG or ~/.kube/config. A
    /// cluster is asked through the API server's port-forward; the host in the kubeconfig is resolved by this machine's
    /// name servers, and credential plugins work.
    ///
    /// Example: nslookout status --context production
    Status {
        /// Address and port of its API.
        #[arg(long, value_parser = run::api_address, conflicts_with_all = ["kubeconfig", "context", "namespace"])]
        api: Option<SocketAddr>,
        /// The kubeconfig of the cluster; by default those of KUBECONFIG, or ~/.kube/config.
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
        /// A context of the kubeconfig; by default its current one.
        #[arg(long)]
        context: Option<String>,
        /// Where nslookout is installed; by default `nslookout`, or else wherever its correlator is found.
        #[arg(long, short)]
        namespace: Option<String>,
    },
    /// What a cause means, what proves it, what mends it. Without a cause: the list.
    ///
    /// Example: nslookout explain insert-race
    Explain {
        /// The cause's id.
        cause: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Agent {
    /// Lookups as applications make them, from the pods' network. Needs no privilege.
    Prober {
        /// The configuration; without it the defaults.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// The node's conntrack and the DNS packets that its kernel drops. Needs the host's network.
    Node {
        /// The configuration; without it the defaults.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = !error.use_stderr();
            drop(error.print());
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NSLOOKOUT_LOG")
                .unwrap_or_else(|_| "info,kube_runtime=error".into()),
        )
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let mut builder = match &cli.command {
        // TLS and unpacking for a whole cluster are worth threads; all else is bound to be small.
        Command::Correlator { .. } => tokio::runtime::Builder::new_multi_thread(),
        Command::Check { .. }
        | Command::Run { .. }
        | Command::Agent { .. }
        | Command::Alive { .. }
        | Command::Status { .. }
        | Command::Explain { .. } => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(LocalSet::new().run_until(dispatch(cli)))
}

async fn dispatch(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Check { server, name, seconds } => {
            match check::check(&server, &name, Duration::from_secs(seconds)).await {
                Ok(status) => print_status(&status, cli.output),
                Err(error) => fail(&error),
            }
        }
        Command::Run { config } => with(config, run::run).await,
        Command::Correlator { config } => with(config, correlator::run).await,
        Command::Agent { part: Agent::Prober { config } } => {
            with(config, |config| agent::run(config, agent::Part::Prober)).await
        }
        Command::Agent { part: Agent::Node { config } } => {
            with(config, |config| agent::run(config, agent::Part::Node)).await
        }
        Command::Alive { socket } => match alive::ask(&socket).await {
            Ok(alive) => {
                let verdict = if alive.alive { "alive" } else { "HANGS" };
                match cli.output {
                    Output::Table => println!("{verdict}: {}, {}", alive.part, alive.state),
                    Output::Json => println!("{}", serde_json::to_string(&alive).unwrap_or_default()),
                }
                if alive.alive { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => fail(&format!("nobody answers: {error}")),
        },
        Command::Status { api, kubeconfig, context, namespace } => {
            let cluster = laptop::Cluster { kubeconfig, context, namespace };
            match ask_status(api, &cluster).await {
                Ok(status) => print_status(&status, cli.output),
                Err(error) => fail(&error),
            }
        }
        Command::Explain { cause: None } => {
            print!("{}", explain::list());
            ExitCode::SUCCESS
        }
        Command::Explain { cause: Some(id) } => match (correlate::cause(&id), cli.output) {
            (Some(cause), Output::Table) => {
                print!("{}", explain::page(cause));
                ExitCode::SUCCESS
            }
            (Some(cause), Output::Json) => {
                println!("{:#}", explain::json(cause));
                ExitCode::SUCCESS
            }
            (None, _) => {
                eprintln!("nslookout: no cause is called {id:?}; these are:\n{}", explain::list());
                ExitCode::from(USAGE)
            }
        },
    }
}

/// The status of whom the arguments name; without any, of the nslookout here, or else of the kubeconfig's cluster.
async fn ask_status(api: Option<SocketAddr>, cluster: &laptop::Cluster) -> Result<Status, String> {
    if *cluster == laptop::Cluster::default() {
        let here = run::ask_status(api.unwrap_or(nslookout::config::DEFAULT_LISTEN)).await;
        match here {
            Ok(status) => return Ok(status),
            Err(error) if api.is_some() => return Err(format!("{error:#}")),
            Err(error) if !laptop::has_kubeconfig() => {
                return Err(format!("{error:#}; and no kubeconfig names a cluster to ask"));
            }
            Err(_) => {}
        }
    }
    let answer = laptop::ask(cluster).await.map_err(|error| error.to_string())?;
    eprintln!("asked {}", answer.by);
    Ok(answer.status)
}

/// Runs a command that goes by a configuration.
async fn with<F: Future<Output = anyhow::Result<()>>>(
    config: Option<PathBuf>,
    command: impl FnOnce(Config) -> F,
) -> ExitCode {
    let config = match config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path)) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("nslookout: {mistakes}");
            return ExitCode::from(USAGE);
        }
    };
    match command(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn print_status(status: &Status, output: Output) -> ExitCode {
    match output {
        Output::Table => print!("{}", status.verdict()),
        Output::Json => match serde_json::to_string_pretty(status) {
            Ok(json) => println!("{json}"),
            Err(error) => return fail(&error),
        },
    }
    ExitCode::from(status.exit_code())
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("nslookout: {error}");
    ExitCode::from(COULD_NOT_LOOK)
}

const COULD_NOT_LOOK: u8 = 2;
const USAGE: u8 = 64;
