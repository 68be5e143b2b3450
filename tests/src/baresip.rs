//! baresip as a phone with real audio: it plays a tone, records what it hears, and the test
//! compares the two by frequency.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::net::run;
use crate::proc::Proc;

/// A baresip with one account, answering by itself.
pub struct Baresip {
    pub proc: Proc,
    dir: PathBuf,
}

/// What a phone is given.
pub struct Phone<'a> {
    pub user: &'a str,
    /// Address and port to listen on, as baresip wants it (`10.1.0.1:5060`, `[fd00::1]:5060`).
    pub listen: &'a str,
    pub transport: &'a str,
    /// Tone it plays, in hertz.
    pub tone_hz: u32,
    /// Further account parameters, each with its leading `;`.
    pub params: &'a str,
    /// URI to call at start.
    pub dial: Option<&'a str>,
    /// Ends by itself after so many seconds, hanging up.
    pub quit_after_s: u32,
}

impl Baresip {
    /// A phone that registers nowhere.
    pub fn start(ns: &str, dir: &Path, phone: &Phone) -> Baresip {
        let host = phone.listen.rsplit_once(':').map_or(phone.listen, |(host, _)| host);
        let (user, transport, params) = (phone.user, phone.transport, phone.params);
        let account = format!("<sip:{user}@{host};transport={transport}>;regint=0{params}");
        Baresip::start_as(ns, dir, phone, &account, "")
    }

    /// A phone with an account of its own words, and more lines for its configuration.
    pub fn start_as(
        ns: &str,
        dir: &Path,
        phone: &Phone,
        account: &str,
        config_lines: &str,
    ) -> Baresip {
        let dir = dir.join(phone.user);
        std::fs::create_dir_all(&dir).expect("phone directory");
        let path = dir.to_string_lossy().into_owned();
        let tone = phone.tone_hz;
        run("sox", &format!("-n -r 8000 -c 1 -b 16 {path}/in.wav synth 60 sine {tone}"));
        let config = format!(
            "poll_method epoll\nsip_listen {listen}\nsip_trans_def {transport}\n\
             audio_source aufile,{path}/in.wav\naudio_player aubridge,nobody\n\
             audio_buffer 20-160\nrtp_ports 10000-10100\nrtcp_mux no\n\
             module_path /usr/lib/baresip/modules\nmodule g711.so\nmodule aufile.so\n\
             module aubridge.so\nmodule sndfile.so\nsnd_path {path}\n\
             module_app account.so\nmodule_app menu.so\n{config_lines}",
            listen = phone.listen,
            transport = phone.transport,
        );
        std::fs::write(dir.join("config"), config).expect("config");
        let account = format!("{account};answermode=auto;audio_codecs=PCMA/8000/1\n");
        std::fs::write(dir.join("accounts"), account).expect("accounts");
        std::fs::write(dir.join("contacts"), "").expect("contacts");
        let mut args = vec!["-f".to_owned(), path, "-t".to_owned(), phone.quit_after_s.to_string()];
        if let Some(uri) = phone.dial {
            args.extend(["-e".to_owned(), format!("/dial {uri}")]);
        }
        let proc = Proc::start(ns, &dir, phone.user, Path::new("baresip"), &args);
        proc.wait_output("baresip is ready", std::time::Duration::from_secs(10));
        Baresip { proc, dir }
    }

    /// Main frequency in hertz of what the phone heard, and how many seconds of it.
    pub fn heard(&self) -> (f64, f64) {
        let file = std::fs::read_dir(&self.dir)
            .expect("phone directory")
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| p.to_string_lossy().ends_with("-dec.wav"))
            .expect("the phone recorded nothing");
        let out = Command::new("sox").arg(file).args(["-n", "stat"]).output().expect("sox");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let field = |name: &str| -> f64 {
            text.lines()
                .find(|l| l.starts_with(name))
                .and_then(|l| l.split_whitespace().last()?.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        (field("Rough"), field("Length"))
    }

    /// Asserts that at least `seconds` of the tone `hz` were heard.
    pub fn assert_heard(&self, hz: f64, seconds: f64) {
        let (frequency, length) = self.heard();
        assert!((frequency - hz).abs() < hz * 0.05, "heard {frequency} Hz instead of {hz} Hz");
        assert!(length >= seconds, "heard {length} s, expected at least {seconds} s");
    }
}
