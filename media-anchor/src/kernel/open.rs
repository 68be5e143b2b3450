//! Choosing the way at start: TC eBPF, nftables, or none, and the reason in a sentence.
//!
//! How a way works is none of this file's business.

use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, Fault};
use super::ebpf::{Ebpf, LoadError};
use super::network::Stack;
use super::nft::Nft;
use super::relay::{Relay, Settings};
use super::report::Report;
use crate::plan_types::Offload;

/// What `kernel = "…"` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Way {
    /// TC eBPF where it can be had, else nftables, else userspace.
    #[default]
    Auto,
    Ebpf,
    Nftables,
    Off,
}

/// What the kernel relay is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    pub way: Way,
    /// Name of our table in the netdev family; whatever is in it is replaced.
    pub table: String,
    /// Flows (one direction of one component each) at most, per family in the kernel's tables.
    pub flows_max: u32,
    /// Devices to look at besides those that the flows' addresses name: where the addresses of a
    /// standby will be.
    pub devices: Vec<String>,
    /// How often the kernel's elements are compared with the flows.
    pub audit_every: Duration,
}

impl Default for KernelConfig {
    fn default() -> Self {
        KernelConfig {
            way: Way::Auto,
            table: "sbc_media".to_owned(),
            flows_max: 262_144,
            devices: Vec::new(),
            audit_every: Duration::from_secs(60),
        }
    }
}

/// The kernel relay, if any, and where its status is read.
pub struct Opened {
    /// `None`: relay in userspace.
    pub offload: Option<Box<dyn Offload>>,
    pub report: Arc<Report>,
}

/// Opens the kernel relay in the calling thread's network namespace. It never fails: without any
/// kernel way the reason is in the report, and is logged once.
pub fn open(config: &KernelConfig) -> Opened {
    let report = Arc::new(Report::default());
    let (backend, reason) = choose(config);
    let opened = backend.map(|backend| match Stack::open() {
        Ok(stack) => Ok((backend, stack)),
        Err(error) => Err(format!("{} needs route look-ups: {error}", backend.name())),
    });
    let (way, reason, ready) = match opened {
        Some(Ok((backend, stack))) => (backend.name(), reason, Some((backend, stack))),
        Some(Err(reason)) => ("off", reason, None),
        None => ("off", reason, None),
    };
    tracing::info!(way, reason, "kernel relay");
    report.update(|status| {
        status.way = way;
        status.reason = reason;
    });
    let offload = ready.map(|(backend, stack)| {
        let settings = Settings {
            flows_max: usize::try_from(config.flows_max).unwrap_or(usize::MAX),
            devices: config.devices.clone(),
            audit_every: config.audit_every,
            check_every: Duration::from_secs(1),
            retry_after: Duration::from_secs(30),
        };
        let relay = Relay::new(backend, Box::new(stack), settings, Arc::clone(&report));
        Box::new(relay) as Box<dyn Offload>
    });
    Opened { offload, report }
}

/// The first way that works, and why that one.
fn choose(config: &KernelConfig) -> (Option<Box<dyn Backend>>, String) {
    match config.way {
        Way::Off => (None, "switched off in the configuration".to_owned()),
        Way::Nftables => match nftables(config) {
            Ok(backend) => (Some(backend), "asked for in the configuration".to_owned()),
            Err(fault) => (None, format!("nftables: {fault}")),
        },
        Way::Ebpf => match ebpf(config) {
            Ok(backend) => (Some(backend), "asked for in the configuration".to_owned()),
            Err(why) => (None, format!("ebpf: {why}")),
        },
        Way::Auto => match ebpf(config) {
            Ok(backend) => (Some(backend), "the fastest way that works here".to_owned()),
            Err(why) => match nftables(config) {
                Ok(backend) => (Some(backend), format!("ebpf does not work here: {why}")),
                Err(fault) => (None, format!("ebpf: {why}; nftables: {fault}")),
            },
        },
    }
}

fn nftables(config: &KernelConfig) -> Result<Box<dyn Backend>, Fault> {
    Ok(Box::new(Nft::open(&config.table, config.flows_max)?))
}

fn ebpf(config: &KernelConfig) -> Result<Box<dyn Backend>, LoadError> {
    Ok(Box::new(Ebpf::open(config.flows_max)?))
}
