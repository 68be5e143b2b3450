//! The operator's binary; everything is in `sbc_node::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sbc_node::cli::main()
}
