//! `sbcctl`: the operator's hand on a node, over the management API.
//!
//! `args.rs` is the grammar, `client.rs` the connection, `run.rs` what each command does,
//! `output.rs` and `ladder.rs` how it looks. Exit codes: 0 done, 1 refused or not found,
//! 2 bad usage, 3 node not reachable.

mod args;
mod bans;
mod call;
mod client;
mod cluster;
mod drain;
mod kube;
mod ladder;
mod output;
mod registrations;
mod run;
mod users;

use std::process::ExitCode;

use clap::Parser;

pub use args::Args;

/// Refused by the node: not found, bad argument, problems in a configuration.
const EXIT_REFUSED: u8 = 1;
/// No connection to the node.
const EXIT_UNREACHABLE: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Refused(String),
    #[error("cannot reach the node: {0}")]
    Unreachable(String),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        // Only what arose on our side has a source: a connection refused or cut off.
        let ours = std::error::Error::source(&status).is_some();
        match status.code() {
            tonic::Code::Unavailable => Failure::Unreachable(status.message().to_owned()),
            _ if ours => Failure::Unreachable(status.message().to_owned()),
            _ => Failure::Refused(status.message().to_owned()),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run::run(args)),
        Err(error) => Err(Failure::Refused(error.to_string())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("sbcctl: {failure}");
            ExitCode::from(match failure {
                Failure::Refused(_) => EXIT_REFUSED,
                Failure::Unreachable(_) => EXIT_UNREACHABLE,
            })
        }
    }
}
