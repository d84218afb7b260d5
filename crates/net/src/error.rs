//! What can go wrong in the data plane.

/// Why the network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a change of links, addresses or routes.
    #[error("cannot {action}")]
    Netlink {
        /// What was tried.
        action: String,
        /// The kernel's reason.
        #[source]
        source: rtnetlink::Error,
    },
    /// There is no such device.
    #[error("there is no network device `{0}`")]
    NoDevice(String),
    /// The system refused.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The kernel has no WireGuard.
    #[error("the kernel has no WireGuard: load its module (`modprobe wireguard`), or choose another `transit`")]
    NoWireguard,
    /// nftables refused.
    #[error("nftables refused: {0}")]
    Nft(String),
    /// libnftables is not installed.
    #[error("libnftables cannot be loaded (Debian: apt install nftables)")]
    NoNft(#[source] libloading::Error),
}

impl NetError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> NetError {
        let action = action.into();
        move |source| NetError::Io { action, source }
    }

    pub(crate) fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
        let action = action.into();
        move |source| NetError::Netlink { action, source }
    }
}
