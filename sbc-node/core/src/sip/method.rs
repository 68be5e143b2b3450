//! Methods and status codes: the closed sets of the registries, with room for what is unknown.
//!
//! What a method means to a call never lives here.

use std::fmt;

macro_rules! methods {
    ($($id:ident $name:literal;)*) => {
        /// A SIP method. Case-sensitive (RFC 3261 §7.1): `invite` is an [`Method::Other`].
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Method { $($id,)* Other(Box<str>) }

        impl Method {
            /// Every method that has an id of its own.
            pub const KNOWN: &'static [Method] = &[$(Method::$id,)*];

            /// The method of a token. The caller has checked that it is one.
            #[inline]
            pub fn new(token: &str) -> Method {
                match token { $($name => Method::$id,)* _ => Method::Other(token.into()) }
            }

            /// As it stands on the wire.
            #[inline]
            pub fn as_str(&self) -> &str {
                match self { $(Method::$id => $name,)* Method::Other(name) => name }
            }
        }
    };
}

methods! {
    Invite "INVITE";
    Ack "ACK";
    Bye "BYE";
    Cancel "CANCEL";
    Register "REGISTER";
    Options "OPTIONS";
    Prack "PRACK";
    Update "UPDATE";
    Info "INFO";
    Subscribe "SUBSCRIBE";
    Notify "NOTIFY";
    Refer "REFER";
    Message "MESSAGE";
    Publish "PUBLISH";
}

impl Method {
    /// Whether the SBC knows the method at all; others get 501 (RFC 3261 §21.5.2).
    pub fn is_known(&self) -> bool {
        !matches!(self, Method::Other(_))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reason phrase that the defining RFC gives to a status code; a generic one otherwise.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Trying",
        180 => "Ringing",
        181 => "Call Is Being Forwarded",
        182 => "Queued",
        183 => "Session Progress",
        199 => "Early Dialog Terminated",
        200 => "OK",
        202 => "Accepted",
        204 => "No Notification",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        305 => "Use Proxy",
        380 => "Alternative Service",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Conditional Request Failed",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        417 => "Unknown Resource-Priority",
        420 => "Bad Extension",
        421 => "Extension Required",
        422 => "Session Interval Too Small",
        423 => "Interval Too Brief",
        424 => "Bad Location Information",
        428 => "Use Identity Header",
        429 => "Provide Referrer Identity",
        430 => "Flow Failed",
        433 => "Anonymity Disallowed",
        436 => "Bad Identity Info",
        437 => "Unsupported Credential",
        438 => "Invalid Identity Header",
        439 => "First Hop Lacks Outbound Support",
        440 => "Max-Breadth Exceeded",
        469 => "Bad Info Package",
        470 => "Consent Needed",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        484 => "Address Incomplete",
        485 => "Ambiguous",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        491 => "Request Pending",
        493 => "Undecipherable",
        494 => "Security Agreement Required",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        555 => "Push Notification Service Not Supported",
        580 => "Precondition Failure",
        600 => "Busy Everywhere",
        603 => "Decline",
        604 => "Does Not Exist Anywhere",
        606 => "Not Acceptable",
        607 => "Unwanted",
        608 => "Rejected",
        _ => match status / 100 {
            1 => "Progress",
            2 => "Success",
            3 => "Redirection",
            4 => "Client Error",
            5 => "Server Error",
            _ => "Global Failure",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_case_sensitive_and_round_trip() {
        for method in Method::KNOWN {
            assert_eq!(&Method::new(method.as_str()), method);
        }
        assert_eq!(Method::new("invite"), Method::Other("invite".into()));
        assert!(!Method::new("NEWMETHOD").is_known());
    }
}
