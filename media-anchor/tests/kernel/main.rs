//! The kernel relay in network namespaces, with real packets, for each kernel way.

mod anchored;
mod bans;
mod call;
mod changes;
mod frame;
mod moves;
mod netns;
mod privileges;
mod rewrite;
mod takeover;
