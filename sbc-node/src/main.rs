//! The node's binary: `sbc-node run --config FILE`, `sbc-node check FILE`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Session Border Controller.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node until SIGTERM; SIGHUP reloads the configuration.
    Run {
        /// The configuration file.
        #[arg(long, short)]
        config: PathBuf,
    },
    /// Check a configuration file: prints every problem with its line, exits 2 if there is any.
    Check { file: PathBuf },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { config } => sbc_node::node::run(&config),
        Command::Check { file } => check(&file),
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    match sbc_node::config::load(file) {
        Ok(_) => {
            println!("{}: ok", file.display());
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in problems {
                eprintln!("{}", sbc_node::node::located(file, &problem));
            }
            ExitCode::from(2)
        }
    }
}
