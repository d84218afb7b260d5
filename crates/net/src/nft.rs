//! nftables, in process: libnftables is loaded at run time, so that a change costs a tenth of a millisecond instead of
//! the twenty that starting `nft` takes. A script is one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use crate::error::NetError;
use crate::plan::ruleset::{Present, Ruleset, TABLE};
use crate::plan::{ANSWERED, ARP_TABLE, LEASED, MOVED, Plan, learned_set6};

const LIBRARY: &str = "libnftables.so.1";

type Context = *mut c_void;

/// Lists without elements (`NFT_CTX_OUTPUT_TERSE`).
const TERSE: c_uint = 1 << 11;

/// How long clients may need to learn that a public address has moved.
const MOVES_SECONDS: u32 = 10;

/// While it runs, the library keeps the devices' names and numbers for the whole process: threads in several network namespaces would
/// be given each other's.
static TURN: Mutex<()> = Mutex::new(());

/// A handle on the nftables of the network namespace that this process was in when it was made.
pub struct Nft {
    context: Context,
    run: unsafe extern "C" fn(Context, *const c_char) -> c_int,
    error: unsafe extern "C" fn(Context) -> *const c_char,
    output: unsafe extern "C" fn(Context) -> *const c_char,
    flags: unsafe extern "C" fn(Context, c_uint),
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
            let buffer_output = *library
                .get::<unsafe extern "C" fn(Context) -> c_int>(b"nft_ctx_buffer_output")
                .map_err(NetError::NoNft)?;
            let run = *library.get(b"nft_run_cmd_from_buffer").map_err(NetError::NoNft)?;
            let error = *library.get(b"nft_ctx_get_error_buffer").map_err(NetError::NoNft)?;
            let output = *library.get(b"nft_ctx_get_output_buffer").map_err(NetError::NoNft)?;
            let flags = *library.get(b"nft_ctx_output_set_flags").map_err(NetError::NoNft)?;
            let free = *library.get(b"nft_ctx_free").map_err(NetError::NoNft)?;
            let context = new(0);
            if context.is_null() || buffer(context) != 0 || buffer_output(context) != 0 {
                return Err(NetError::Nft("no context".to_owned()));
            }
            Ok(Nft { context, run, error, output, flags, free, _library: library })
        }
    }

    /// Carries out a script, whole or not at all.
    ///
    /// # Errors
    /// [`NetError::Nft`] with the library's words.
    pub fn apply(&mut self, script: &str) -> Result<(), NetError> {
        self.run(script).map(drop)
    }

    /// Carries out a script, and returns what it prints.
    ///
    /// # Errors
    /// [`NetError::Nft`] with the library's words.
    pub fn run(&mut self, script: &str) -> Result<String, NetError> {
        let script = CString::new(script).map_err(|error| NetError::Nft(error.to_string()))?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context lives as long as `self`, and the script ends with a zero.
        let (status, words, printed) = unsafe {
            let status = (self.run)(self.context, script.as_ptr());
            (status, text((self.error)(self.context)), text((self.output)(self.context)))
        };
        if status == 0 { Ok(printed) } else { Err(NetError::Nft(words.trim().to_owned())) }
    }

    /// What is in a table; nothing if there is no such table.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn present(&mut self, table: &str) -> Result<Present, NetError> {
        Ok(Present::read(&self.listing(table)?.unwrap_or_default()))
    }

    /// A table without the elements of its sets, of which there may be a million; if there is such a table. Every command that
    /// names a table has the library ask for all elements of all tables, and this one does not.
    fn listing(&mut self, table: &str) -> Result<Option<String>, NetError> {
        self.set_flags(TERSE);
        let listed = self.run("list ruleset");
        self.set_flags(0);
        let (listed, head) = (listed?, format!("table {table} {{"));
        let lines = listed.lines().skip_while(|line| *line != head).take_while(|line| *line != "}");
        let lines: Vec<&str> = lines.collect();
        Ok((!lines.is_empty()).then(|| lines.join("\n")))
    }

    fn set_flags(&self, flags: c_uint) {
        // SAFETY: the context lives as long as `self`.
        unsafe { (self.flags)(self.context, flags) };
    }

    /// Whether the kernel can hand packets on as they come in, which is not in every kernel (`CONFIG_NFT_FWD_NETDEV`).
    ///
    /// # Errors
    /// [`NetError::Nft`] with what it lacks.
    pub fn try_handing_on(&mut self) -> Result<(), NetError> {
        let table = "netdev mayfly_trial";
        self.apply(&format!(
            "add table {table}\nadd chain {table} trial {{ type filter hook ingress device \"lo\" priority 0; policy accept; }}\n\
             add rule {table} trial ip daddr 192.0.2.1 fwd ip to 192.0.2.1 device \"lo\"\ndelete table {table}\n"
        ))
    }

    /// Says which public addresses this host is about to lose to another, where it has followed a plan before.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn give_up(&mut self, before: &Plan, wanted: &Plan) -> Result<(), NetError> {
        let lost = before.vips.difference(&wanted.vips).filter(|address| address.is_ipv4());
        self.learn(MOVED, &lost.copied().collect::<Vec<_>>(), MOVES_SECONDS)
    }

    /// The script that leads to a plan's rules from those that the kernel holds, or from whatever there is if that is not known.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn script(&mut self, before: Option<&Plan>, wanted: &Plan) -> Result<String, NetError> {
        Ok(match before {
            Some(before) => wanted.rules.change(&before.rules) + &wanted.spread.change(&before.spread),
            None => {
                let mut whole = |rules: &Ruleset| Ok(rules.whole(&self.present(rules.table)?));
                whole(&wanted.rules)? + &whole(&wanted.spread)?
            }
        })
    }

    /// How many packets and bytes each named counter has seen.
    ///
    /// # Errors
    /// [`NetError::Nft`], also when there is no table.
    pub fn counters(&mut self) -> Result<BTreeMap<String, (u64, u64)>, NetError> {
        let listed = self.listing(TABLE)?.ok_or_else(|| NetError::Nft(format!("there is no table {TABLE}")))?;
        Ok(read_counters(&listed))
    }

    /// Opens `addresses` for `seconds` in a set of such addresses, whose elements come and go with time.
    ///
    /// # Errors
    /// [`NetError::Nft`], also when there is no such set any more.
    pub fn learn(&mut self, set: &str, addresses: &[IpAddr], seconds: u32) -> Result<(), NetError> {
        self.refresh((TABLE, set), addresses, &format!("{seconds}s"))
    }

    /// An element that is there keeps its old time when it is added again, so it has to go first.
    fn refresh(&mut self, (table, set): (&str, &str), addresses: &[IpAddr], time: &str) -> Result<(), NetError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let list = |suffix: &str| addresses.iter().map(|one| format!("{one}{suffix}")).collect::<Vec<_>>().join(", ");
        let (plain, timed) = (list(""), list(&format!(" timeout {time}")));
        self.apply(&format!(
            "add element {table} {set} {{ {timed} }}\ndelete element {table} {set} {{ {plain} }}\n\
             add element {table} {set} {{ {timed} }}\n"
        ))
    }

    /// Lets the kernel pass packets of these DIPs, and answer for these VIPs by ARP, for so many milliseconds from now, and no longer.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn lease(&mut self, dips: &[IpAddr], vips: &BTreeSet<IpAddr>, millis: u64) -> Result<(), NetError> {
        let (older, newer): (Vec<IpAddr>, Vec<IpAddr>) = dips.iter().partition(|address| address.is_ipv4());
        let time = format!("{millis}ms");
        // Each is tried whatever becomes of the others: the kernel may have no set for the newer yet.
        let older = self.refresh((TABLE, LEASED), &older, &time);
        let vips: Vec<IpAddr> = vips.iter().filter(|vip| vip.is_ipv4()).copied().collect();
        let answered = self.refresh((ARP_TABLE, ANSWERED), &vips, &time);
        let newer = self.refresh((TABLE, &learned_set6(LEASED)), &newer, &time);
        older.and(answered).and(newer)
    }

    /// Takes all DIPs off the network at once, those with `ipv6` too.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn revoke(&mut self, ipv6: bool) -> Result<(), NetError> {
        // Each is tried whatever becomes of the other; without IPv6, there may be a set for it or none.
        let older = self.apply(&format!("flush set {TABLE} {LEASED}\n"));
        let newer = self.apply(&format!("flush set {TABLE} {}\n", learned_set6(LEASED)));
        older.and(if ipv6 { newer } else { Ok(()) })
    }
}

/// # Safety
/// `words` is null, or ends with a zero and is not changed meanwhile.
#[expect(unsafe_code, reason = "libnftables returns C strings")]
unsafe fn text(words: *const c_char) -> String {
    // SAFETY: as the caller promises.
    if words.is_null() { String::new() } else { unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned() }
}

fn read_counters(listing: &str) -> BTreeMap<String, (u64, u64)> {
    let mut counters = BTreeMap::new();
    let mut name = None;
    for line in listing.lines().map(str::trim) {
        if let Some(one) = line.strip_prefix("counter ").and_then(|line| line.strip_suffix(" {")) {
            name = Some(one.to_owned());
        }
        let words: Vec<&str> = line.split(' ').collect();
        if let (["packets", packets, "bytes", bytes], Some(name)) =
            (words.as_slice(), name.take_if(|_| words.len() == 4))
            && let (Ok(packets), Ok(bytes)) = (packets.parse(), bytes.parse())
        {
            counters.insert(name, (packets, bytes));
        }
    }
    counters
}

#[expect(unsafe_code, reason = "the context was made by the library")]
impl Drop for Nft {
    fn drop(&mut self) {
        // SAFETY: it was made by `nft_ctx_new` and is freed once.
        unsafe { (self.free)(self.context) };
    }
}
