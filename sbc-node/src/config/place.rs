//! What may stand in `${…}`: how one file serves every node of a cluster, wherever it runs.
//!
//! ```text
//! ${NAME}             the environment variable NAME
//! ${NAME[ordinal]}    of the list in NAME, separated by commas, the entry of this node: sbc-2 has 2
//! ${file:PATH}        the first line of a file, as an init step or a mounted volume leaves it
//! ${device:NAME}      the IPv4 address of a network device; ${device6:NAME} its IPv6 address, not the
//!                     one of its link
//! ```
//!
//! Nothing is guessed: what is not set, empty, not there or too short a list is an error. Everything
//! else in `${…}` is left alone, for translations use `${1}` and `${name}`.

use std::net::IpAddr;

use super::Surroundings;

/// The value of what stands between the braces; `None` when it is not for us.
pub(super) fn value(name: &str, around: &Surroundings<'_>) -> Option<Result<String, String>> {
    if let Some(path) = name.strip_prefix("file:") {
        return Some(first_line(path, around));
    }
    if let Some(device) = name.strip_prefix("device:") {
        return Some(device_address(device, false));
    }
    if let Some(device) = name.strip_prefix("device6:") {
        return Some(device_address(device, true));
    }
    if let Some(list) = name.strip_suffix("[ordinal]").filter(|list| is_variable(list)) {
        return Some(entry(list, around));
    }
    is_variable(name).then(|| variable(name, around))
}

fn variable(name: &str, around: &Surroundings<'_>) -> Result<String, String> {
    let value = (around.env)(name);
    let value = value.ok_or_else(|| format!("the environment variable {name} is not set"))?;
    match value.is_empty() {
        true => Err(format!("the environment variable {name} is empty")),
        false => Ok(value),
    }
}

fn entry(name: &str, around: &Surroundings<'_>) -> Result<String, String> {
    let list = variable(name, around)?;
    let host = around.hostname;
    let ordinal: usize = host
        .rsplit_once('-')
        .and_then(|(_, digits)| digits.parse().ok())
        .ok_or_else(|| format!("the host name {host} ends in no ordinal (as sbc-0 does)"))?;
    let entries = list.split(',').count();
    let found = list.split(',').nth(ordinal).map(str::trim).filter(|entry| !entry.is_empty());
    let missing = || format!("{name} has {entries} entries, none for ordinal {ordinal} of {host}");
    found.map(str::to_owned).ok_or_else(missing)
}

fn first_line(path: &str, around: &Surroundings<'_>) -> Result<String, String> {
    let full = around.base.join(path);
    let text = std::fs::read_to_string(&full)
        .map_err(|e| format!("cannot read {}: {e}", full.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    match line.is_empty() {
        true => Err(format!("the first line of {} is empty", full.display())),
        false => Ok(line.to_owned()),
    }
}

fn device_address(device: &str, v6: bool) -> Result<String, String> {
    let all = nix::ifaddrs::getifaddrs().map_err(|e| format!("network devices: {e}"))?;
    let mut known = false;
    for entry in all.filter(|entry| entry.interface_name == device) {
        known = true;
        let Some(address) = entry.address else { continue };
        let found = match v6 {
            false => address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())),
            true => address
                .as_sockaddr_in6()
                .map(|a| a.ip())
                .filter(|ip| !ip.is_unicast_link_local())
                .map(IpAddr::V6),
        };
        if let Some(found) = found {
            return Ok(found.to_string());
        }
    }
    let family = if v6 { "IPv6" } else { "IPv4" };
    match known {
        true => Err(format!("the network device {device} has no {family} address")),
        false => Err(format!("there is no network device {device}")),
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_where_they_say_or_are_errors() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("address"), "203.0.113.9\nmore\n").expect("write");
        std::fs::write(dir.path().join("empty"), "\n").expect("write");
        let env = |name: &str| match name {
            "POD_IP" => Some("10.0.0.1".to_owned()),
            "LIST" => Some("192.0.2.1, 192.0.2.2,,192.0.2.4".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let at = |hostname: &str, name: &str| {
            let around =
                Surroundings { base: dir.path(), env: &env, hostname, cores: 1, interfaces: &[] };
            value(name, &around)
        };
        let ok = |text: &str| Some(Ok(text.to_owned()));
        assert_eq!(at("sbc-1", "POD_IP"), ok("10.0.0.1"));
        assert_eq!(at("sbc-1", "LIST[ordinal]"), ok("192.0.2.2"));
        assert_eq!(at("a-b-3", "LIST[ordinal]"), ok("192.0.2.4"));
        assert_eq!(at("sbc-1", "file:address"), ok("203.0.113.9"));
        for (host, name, message) in [
            ("sbc-1", "NO_SUCH", "the environment variable NO_SUCH is not set"),
            ("sbc-1", "EMPTY", "the environment variable EMPTY is empty"),
            ("sbc-2", "LIST[ordinal]", "LIST has 4 entries, none for ordinal 2 of sbc-2"),
            ("sbc-9", "LIST[ordinal]", "LIST has 4 entries, none for ordinal 9 of sbc-9"),
            ("host", "LIST[ordinal]", "the host name host ends in no ordinal (as sbc-0 does)"),
        ] {
            assert_eq!(at(host, name), Some(Err(message.to_owned())));
        }
        let missing = at("sbc-1", "file:nowhere").expect("ours").expect_err("not there");
        assert!(missing.starts_with("cannot read "), "{missing}");
        let empty = at("sbc-1", "file:empty").expect("ours").expect_err("empty");
        assert!(empty.ends_with("/empty is empty"), "{empty}");
        assert_eq!(at("sbc-1", "device:lo"), ok("127.0.0.1"));
        let missing = Some(Err("there is no network device nosuch0".to_owned()));
        assert_eq!(at("sbc-1", "device:nosuch0"), missing);
        for other in ["1", "name", "name[ordinal]", ""] {
            assert_eq!(at("sbc-1", other), None);
        }
    }
}
