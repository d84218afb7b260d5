//! nftables, in process: libnftables is loaded at run time, so that a change costs a tenth of a millisecond instead of
//! the twenty that starting `nft` takes. A script is one transaction.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::net::Ipv4Addr;

use libloading::Library;

use crate::error::NetError;

const LIBRARY: &str = "libnftables.so.1";

type Context = *mut c_void;

/// A handle on the nftables of the network namespace that this process was in when it was made.
pub struct Nft {
    context: Context,
    run: unsafe extern "C" fn(Context, *const c_char) -> c_int,
    error: unsafe extern "C" fn(Context) -> *const c_char,
    free: unsafe extern "C" fn(Context),
    // Has to outlive the functions above.
    _library: Library,
}

// SAFETY: a context has no ties to a thread; it is only used through `&mut`.
#[expect(unsafe_code, reason = "a raw pointer is not Send by itself")]
unsafe impl Send for Nft {}

#[expect(unsafe_code, reason = "libnftables has a C interface only; its header nftables/libnftables.h gives the types")]
impl Nft {
    /// Loads the library.
    ///
    /// # Errors
    /// [`NetError::NoNft`] when it is not installed.
    pub fn load() -> Result<Nft, NetError> {
        // SAFETY: the names and signatures are those of libnftables.h, unchanged since its first version; loading the
        // library runs no code of note.
        unsafe {
            let library = Library::new(LIBRARY).map_err(NetError::NoNft)?;
            let new =
                *library.get::<unsafe extern "C" fn(c_uint) -> Context>(b"nft_ctx_new").map_err(NetError::NoNft)?;
            let buffer = *library
                .get::<unsafe extern "C" fn(Context) -> c_int>(b"nft_ctx_buffer_error")
                .map_err(NetError::NoNft)?;
            let run = *library.get(b"nft_run_cmd_from_buffer").map_err(NetError::NoNft)?;
            let error = *library.get(b"nft_ctx_get_error_buffer").map_err(NetError::NoNft)?;
            let free = *library.get(b"nft_ctx_free").map_err(NetError::NoNft)?;
            let context = new(0);
            if context.is_null() || buffer(context) != 0 {
                return Err(NetError::Nft("no context".to_owned()));
            }
            Ok(Nft { context, run, error, free, _library: library })
        }
    }

    /// Carries out a script, whole or not at all.
    ///
    /// # Errors
    /// [`NetError::Nft`] with the library's words.
    pub fn apply(&mut self, script: &str) -> Result<(), NetError> {
        let script = CString::new(script).map_err(|error| NetError::Nft(error.to_string()))?;
        // SAFETY: the context lives as long as `self`, and the script ends with a zero.
        let (status, words) = unsafe {
            let status = (self.run)(self.context, script.as_ptr());
            let words = (self.error)(self.context);
            let words =
                if words.is_null() { String::new() } else { CStr::from_ptr(words).to_string_lossy().into_owned() };
            (status, words)
        };
        if status == 0 { Ok(()) } else { Err(NetError::Nft(words.trim().to_owned())) }
    }

    /// Lets the kernel pass packets of these DIPs for so many milliseconds from now, and no longer.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn lease(&mut self, dips: &[Ipv4Addr], millis: u64) -> Result<(), NetError> {
        if dips.is_empty() {
            return Ok(());
        }
        let list = |suffix: &str| dips.iter().map(|dip| format!("{dip}{suffix}")).collect::<Vec<_>>().join(", ");
        let (plain, timed) = (list(""), list(&format!(" timeout {millis}ms")));
        // An element that is there keeps its old time when it is added again, so it has to go first.
        self.apply(&format!(
            "add element inet mayfly leased {{ {timed} }}\ndelete element inet mayfly leased {{ {plain} }}\n\
             add element inet mayfly leased {{ {timed} }}\n"
        ))
    }

    /// Takes all DIPs off the network at once.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn revoke(&mut self) -> Result<(), NetError> {
        self.apply("flush set inet mayfly leased\n")
    }
}

#[expect(unsafe_code, reason = "the context was made by the library")]
impl Drop for Nft {
    fn drop(&mut self) {
        // SAFETY: it was made by `nft_ctx_new` and is freed once.
        unsafe { (self.free)(self.context) };
    }
}
