//! End-to-end tests: a real node between two networks, real peers on both sides.

mod bad_input;
mod bans;
mod basic;
mod bed;
mod border;
mod budgets;
mod cluster;
mod edge;
mod features;
mod floods;
mod guard;
mod kernel;
mod leave;
mod line;
mod members;
mod phones;
mod pods;
mod rebind;
mod ringing;
mod shared;
mod soak;
mod standby;
mod subscribe;
mod three;
mod update;
mod upstream;
