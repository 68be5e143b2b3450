//! The kernel relay in network namespaces, with real packets, for each kernel way.

mod call;
mod frame;
mod netns;
mod rewrite;
