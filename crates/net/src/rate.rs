//! How fast a guest may send and receive: a token bucket on its tap for what it receives, and one on a device of its own,
//! through which its packets are led, for what it sends.

use futures_util::StreamExt;
use rtnetlink::packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::{Handle, LinkIfb};

use crate::address::{RATE_PREFIX, TAP_PREFIX};
use crate::error::NetError;
use crate::links::Links;

/// How long a packet waits at the most before it is dropped, in milliseconds.
const LATENCY: u64 = 50;
/// What may be sent at once: this many milliseconds of the rate, within bounds.
const BURST: u64 = 5;
const BURST_BYTES: (u64, u64) = (16 << 10, 512 << 10);

/// The kernel's names of what a token bucket is told (linux/pkt_sched.h).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// Rates are counted with Ethernet's headers.
const LINKLAYER_ETHERNET: u8 = 1;

/// The device through which packets from a tap are led.
fn device_of(tap: &str) -> String {
    format!("{RATE_PREFIX}{}", tap.strip_prefix(TAP_PREFIX).unwrap_or(tap))
}

impl Links {
    /// Lets the guest behind a tap send and receive so many bits a second. May be repeated.
    ///
    /// # Errors
    /// [`NetError`], also when the kernel lacks `sch_tbf`, `ifb`, `cls_u32` or `act_mirred`.
    pub async fn limit_rate(&self, tap: &str, bits_per_second: u64) -> Result<(), NetError> {
        let fail = || NetError::netlink(format!("limit the rate of {tap}"));
        let (mut handle, tap_index) = (self.handle().clone(), self.index(tap).await?);
        bucket(&mut handle, tap_index, bits_per_second).await.map_err(fail())?;
        let through = device_of(tap);
        if self.index(&through).await.is_err() {
            handle.link().add(LinkIfb::new(&through).up().build()).execute().await.map_err(fail())?;
        }
        // Each step by itself: an earlier try may have ended after any of them.
        let (index, tap_index) = (self.index(&through).await?, tap_index as i32);
        match handle.qdisc().add(tap_index).ingress().execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {}
            other => other.map_err(fail())?,
        }
        let all = u16::to_be(libc::ETH_P_ALL as u16);
        let filter = handle.traffic_filter(tap_index).add().parent(0xffff_0000).priority(1).protocol(all);
        match filter.redirect(index).map_err(fail())?.execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {}
            other => other.map_err(fail())?,
        }
        bucket(&mut handle, self.index(&through).await?, bits_per_second).await.map_err(fail())
    }

    /// Lets the guest behind a tap send and receive as fast as it can, whatever was said before.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn lift_rate(&self, tap: &str) -> Result<(), NetError> {
        if self.get(&device_of(tap)).await?.is_none() {
            return Ok(());
        }
        let (mut handle, index) = (self.handle().clone(), self.index(tap).await?);
        for parent in [TcHandle::ROOT, TcHandle::INGRESS] {
            let mut message = TcMessage::with_index(index as i32);
            message.header.parent = parent;
            match ask(&mut handle, RouteNetlinkMessage::DelQueueDiscipline(message), 0).await {
                // An earlier try may have got as far as this.
                Err(rtnetlink::Error::NetlinkError(error))
                    if [-libc::ENOENT, -libc::EINVAL].contains(&error.raw_code()) => {}
                other => other.map_err(NetError::netlink(format!("lift the rate of {tap}")))?,
            }
        }
        self.forget_rate(tap).await
    }

    /// Takes back what [`limit_rate`](Links::limit_rate) made beside the tap.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn forget_rate(&self, tap: &str) -> Result<(), NetError> {
        self.delete(&device_of(tap)).await
    }
}

/// Puts a token bucket at a device's end, in place of what is there.
async fn bucket(handle: &mut Handle, index: u32, bits_per_second: u64) -> Result<(), rtnetlink::Error> {
    let rate = bits_per_second / 8;
    let burst = (rate * BURST / 1000).clamp(BURST_BYTES.0, BURST_BYTES.1);
    let limit = rate * LATENCY / 1000 + burst;
    // struct tc_tbf_qopt: two of struct tc_ratespec (the second for a peak rate, which there is none of), then three numbers.
    let mut parameters = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(u32::try_from(limit).unwrap_or(u32::MAX).to_ne_bytes());
    parameters.extend([0; 8]);
    let burst = burst as u32;
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
    let mut options = vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters)),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst.to_ne_bytes().to_vec())),
    ];
    if rate > u64::from(u32::MAX) {
        options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec())));
    }
    message.attributes.push(TcAttribute::Options(options));
    ask(handle, RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Asks the kernel for a change that the library has no request for.
async fn ask(handle: &mut Handle, message: RouteNetlinkMessage, flags: u16) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut answers = handle.request(request)?;
    while let Some(answer) = answers.next().await {
        if let rtnetlink::packet_core::NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}
