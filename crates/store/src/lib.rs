//! Where the core's records are kept. It decides nothing and does not know what a record means: keys and bytes, and
//! transactions that are durable when they return, fenced by the epoch of the controller that writes.

mod embedded;
mod etcd;
mod journal;
mod memory;

pub use embedded::EmbeddedStore;
pub use etcd::{Election, EtcdConfig, EtcdError, EtcdStore, Leadership};
pub use memory::MemoryStore;

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The value under the key is now this.
    Put(String, Vec<u8>),
    /// There is nothing under the key.
    Delete(String),
}

/// Why the store did not do what it was asked for. Nothing of the transaction was done then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another controller has taken over.
    #[error("the store belongs to the controller of epoch {current}, and this one is of epoch {own}")]
    Fenced {
        /// The epoch of the one that writes.
        own: u64,
        /// The epoch that is in force.
        current: u64,
    },
    /// Another process has the store open.
    #[error("the store {0} is in use by another process")]
    InUse(String),
    /// The engine or the disk below it failed.
    #[error("the store cannot {action}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// The engine's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A store.
pub trait Store: Send {
    /// Takes the store over: from now on only who has taken it over with the epoch that is returned, one higher than any
    /// before and not below `least`, may write. What is loaded after this is all that was ever committed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn take_over(&mut self, least: u64) -> Result<u64, StoreError>;

    /// Shows each key and its value to `see`, in the order of the keys, and holds no more of them than it has to.
    ///
    /// # Errors
    /// [`StoreError::Engine`]; some may have been shown then.
    fn scan(&self, see: &mut dyn FnMut(&str, &[u8])) -> Result<(), StoreError>;

    /// All keys and values, in the order of the keys.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut all = Vec::new();
        self.scan(&mut |key, value| all.push((key.to_owned(), value.to_vec())))?;
        Ok(all)
    }

    /// Does all of `writes`, in order, or nothing. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was done then.
    fn commit(&mut self, epoch: u64, writes: &[Write]) -> Result<(), StoreError>;
}
