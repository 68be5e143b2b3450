//! Compiles every file under `proto/` with protox (no protoc needed) and keeps the descriptors
//! for gRPC reflection.

use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = Path::new("proto");
    println!("cargo::rerun-if-changed=proto");
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    let descriptors = protox::compile(&files, [dir])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Raft messages stay opaque bytes: never copied into a Vec, never converted.
        .bytes(".")
        // `sbcctl --output json` prints the replies of the management API as they are.
        .type_attribute(".sbc.admin.v1", "#[derive(serde::Serialize)]")
        .field_attribute("TraceEvent.message", "#[serde(skip)]")
        .compile_fds(descriptors)?;
    Ok(())
}
