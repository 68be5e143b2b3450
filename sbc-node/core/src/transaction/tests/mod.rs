//! Tests of the transaction layer on a virtual clock.

mod figures;
mod harness;
mod layer_client;
mod layer_server;
mod loss;
mod matching;
