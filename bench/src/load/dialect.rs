//! In which words each server is spoken to, and what its words mean.

use bench::{frame, words};

/// How a server wants to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// A bare WebSocket with our JSON: open once it is upgraded.
    Plain,
    /// The product: it greets, and is ready when it has told what there was before.
    AlienAlert,
    /// Passes on what it is given: the event is made by the load.
    Nchan,
    /// Engine.IO's and Socket.IO's own packets around the JSON.
    SocketIo,
}

/// What a message is to the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The socket is open and hears events from here on.
    Ready,
    Alert,
    Pong,
    /// Whatever else a server tells.
    Other,
}

impl Dialect {
    pub fn path(self) -> &'static str {
        match self {
            Self::SocketIo => "/socket.io/?EIO=4&transport=websocket",
            _ => "/ws",
        }
    }

    /// An upgraded socket has more to wait for.
    pub fn greets(self) -> bool {
        matches!(self, Self::AlienAlert | Self::SocketIo)
    }

    #[inline]
    pub fn word(self, text: &[u8]) -> Word {
        let begins = |start: &str| text.starts_with(start.as_bytes());
        match self {
            Self::SocketIo if begins(r#"42["alert""#) => Word::Alert,
            Self::SocketIo if begins(r#"42["pong""#) => Word::Pong,
            Self::SocketIo if begins("40{") => Word::Ready,
            Self::SocketIo => Word::Other,
            _ if begins(r#"{"type":"alert""#) => Word::Alert,
            _ if begins(r#"{"type":"pong""#) => Word::Pong,
            Self::AlienAlert if begins(r#"{"type":"refresh-store""#) => Word::Ready,
            _ => Word::Other,
        }
    }

    /// What must be answered, and how, for the socket to stay.
    pub fn answer(self, text: &[u8]) -> Option<&'static str> {
        match text {
            // Engine.IO's opening: ask for the one namespace.
            [b'0', ..] if self == Self::SocketIo => Some("40"),
            [b'2'] if self == Self::SocketIo => Some("3"),
            _ => None,
        }
    }

    /// The frames of `count` alerts.
    pub fn alerts(self, count: usize) -> Vec<u8> {
        const DATA: &str = r#"{"place":"Amsterdam"}"#;
        let alert = || match self {
            Self::SocketIo => format!(r#"42["alert",{{"data":{DATA}}}]"#),
            Self::Plain | Self::AlienAlert => format!(r#"{{"type":"alert","data":{DATA}}}"#),
            Self::Nchan => {
                let data = serde_json::from_str(DATA).expect("valid JSON");
                words::alert(&words::client_id(), data)
            }
        };
        (0..count).flat_map(|_| frame::from_client(frame::TEXT, alert().as_bytes())).collect()
    }

    /// The frame of a ping that the server's program answers, not its protocol.
    pub fn ping(self) -> Vec<u8> {
        let ping = if self == Self::SocketIo { r#"42["ping"]"# } else { r#"{"type":"ping"}"# };
        frame::from_client(frame::TEXT, ping.as_bytes())
    }
}
