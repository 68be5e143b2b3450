//! Protobuf messages and gRPC services, generated at build time. Nothing is written by hand here.
