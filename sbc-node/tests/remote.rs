//! Management over TCP: only with a certificate of the operator's own authority.

mod process;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use process::{Node, sbcctl};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes `NAME.pem` and `NAME.key` for 127.0.0.1.
    fn issue(&self, dir: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn status(dir: &Path, address: SocketAddr, who: &str) -> i32 {
    let file = |name: String| dir.join(name).display().to_string();
    let endpoint = format!("https://{address}");
    let (ca, cert, key) =
        (file("ca.pem".into()), file(format!("{who}.pem")), file(format!("{who}.key")));
    let tls = ["--endpoint", &endpoint, "--ca", &ca, "--cert", &cert, "--key", &key];
    sbcctl(&[&tls[..], &["status"]].concat()).0
}

#[test]
fn an_operator_with_our_certificate_gets_in_and_a_stranger_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    std::fs::write(dir.path().join("ca.pem"), &ours.pem).unwrap();
    ours.issue(dir.path(), "node");
    ours.issue(dir.path(), "operator");
    theirs.issue(dir.path(), "stranger");
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = dir.path().display();
    let admin = format!(
        "listen = \"{address}\"\n\
         tls = {{ ca = \"{at}/ca.pem\", certificate = \"{at}/node.pem\", key = \"{at}/node.key\" }}"
    );
    let node = Node::start_managed(&admin);
    assert_eq!(status(dir.path(), address, "operator"), 0);
    assert_eq!(status(dir.path(), address, "stranger"), 3);
    node.stop();
}
