//! libvirt's calls that the safe layer lacks: events, and addresses whose
//! memory is given back. The only unsafe code of this driver.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// Whom to ask for a guest's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The DHCP server of libvirt's own network.
    Lease,
    /// The agent in the guest.
    Agent,
    /// The host's table of neighbours.
    Arp,
}

/// One card's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Card {
    /// The card's own address, where it is told.
    pub mac: String,
    /// What it was given.
    pub addresses: Vec<IpAddr>,
}

/// The addresses of a running domain (`virDomainInterfaceAddresses`).
///
/// # Errors
/// What libvirt said.
pub(super) fn addresses(domain: &Domain, source: Source) -> Result<Vec<Card>, Error> {
    let source = match source {
        Source::Lease => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        Source::Agent => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
        Source::Arp => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
    };
    let mut list: *mut sys::virDomainInterfacePtr = std::ptr::null_mut();
    // SAFETY: the domain lives as long as its borrow, and `list` is written before it is read.
    let count = unsafe { sys::virDomainInterfaceAddresses(domain.as_ptr(), &raw mut list, source, 0) };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    let mut cards = Vec::with_capacity(count);
    for number in 0..count {
        // SAFETY: libvirt made `count` pointers to structures that are ours now; each is read and freed once.
        unsafe {
            let card = *list.add(number);
            cards.push(read(&*card));
            sys::virDomainInterfaceFree(card);
        }
    }
    // SAFETY: the array itself came from malloc(3), as its documentation says, and is used no more.
    unsafe { free(list.cast()) };
    Ok(cards)
}

/// A domain's state and the reason for it, as libvirt's numbers (`virDomainGetState`). The safe layer's call loses the
/// error.
///
/// # Errors
/// What libvirt said.
pub(super) fn state(domain: &Domain) -> Result<(u32, c_int), Error> {
    let (mut state, mut reason): (c_int, c_int) = (0, 0);
    // SAFETY: the domain lives as long as its borrow; both numbers are ours.
    let answer = unsafe { sys::virDomainGetState(domain.as_ptr(), &raw mut state, &raw mut reason, 0) };
    match (answer, u32::try_from(state)) {
        (0, Ok(state)) => Ok((state, reason)),
        _ => Err(Error::last_error()),
    }
}

unsafe extern "C" {
    /// malloc(3)'s counterpart.
    fn free(memory: *mut c_void);
}

/// # Safety
/// The structure is one that libvirt made and nobody freed.
unsafe fn read(card: &sys::virDomainInterface) -> Card {
    let count = usize::try_from(card.naddrs).unwrap_or(0);
    let addresses = (0..count).filter_map(|number| {
        // SAFETY: libvirt made `naddrs` of them.
        let address = unsafe { &*card.addrs.add(number) };
        // SAFETY: a string of libvirt's, or null.
        unsafe { text(address.addr) }.parse().ok()
    });
    let addresses = addresses.collect();
    // SAFETY: a string of libvirt's, or null.
    Card { mac: unsafe { text(card.hwaddr) }, addresses }
}

/// # Safety
/// A string that ends with a zero, or null.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as this function's own demand.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Tells when a domain stops. Has a connection of its own, as events need one
/// that was opened after the loop which they come through was set up.
pub(super) struct Watch {
    connection: Connect,
    callback: c_int,
    stopped: Receiver<()>,
}

/// Where the callback puts what it hears.
struct Ear(Mutex<Sender<()>>);

impl Watch {
    /// Begins to listen for the end of the domain with this UUID.
    ///
    /// # Errors
    /// What libvirt said.
    pub(super) fn begin(uri: &str, uuid: &str) -> Result<Self, Error> {
        run_loop()?;
        let connection = Connect::open(Some(uri))?;
        let domain = connection.lookup_domain_by_uuid_string(uuid)?;
        let (sender, stopped) = mpsc::channel();
        let ear = Box::into_raw(Box::new(Ear(Mutex::new(sender)))).cast::<c_void>();
        // SAFETY: for lifecycle events libvirt calls back with the arguments of `virConnectDomainEventCallback`
        // (its documentation of `virConnectDomainEventRegisterAny` has it cast so).
        let heard: sys::virConnectDomainEventGenericCallback = unsafe {
            std::mem::transmute::<sys::virConnectDomainEventCallback, sys::virConnectDomainEventGenericCallback>(Some(
                hear,
            ))
        };
        let event = c_int::try_from(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE).unwrap_or(0);
        // SAFETY: connection and domain live; `ear` lives until libvirt calls `drop_ear`, once, for each registration.
        let callback = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connection.as_ptr(),
                domain.as_ptr(),
                event,
                heard,
                ear,
                Some(drop_ear),
            )
        };
        if callback < 0 {
            let error = Error::last_error();
            // SAFETY: libvirt took nothing: it is still ours.
            drop(unsafe { Box::from_raw(ear.cast::<Ear>()) });
            return Err(error);
        }
        Ok(Watch { connection, callback, stopped })
    }

    /// Whether the domain stopped within this time.
    pub(super) fn stopped_within(&self, time: Duration) -> bool {
        self.stopped.recv_timeout(time).is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: the connection lives, and the callback was registered at it and nowhere else given up.
        unsafe { sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), self.callback) };
    }
}

unsafe extern "C" fn hear(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    event: c_int,
    _: c_int,
    ear: *mut c_void,
) -> c_int {
    if u32::try_from(event) == Ok(sys::VIR_DOMAIN_EVENT_STOPPED) {
        // SAFETY: what `begin` registered, alive until `drop_ear`.
        let ear = unsafe { &*ear.cast::<Ear>() };
        // Nobody listens any more when it fails.
        let _ = ear.0.lock().unwrap_or_else(PoisonError::into_inner).send(());
    }
    0
}

unsafe extern "C" fn drop_ear(ear: *mut c_void) {
    // SAFETY: what `begin` made; libvirt calls this once, after the last event.
    drop(unsafe { Box::from_raw(ear.cast::<Ear>()) });
}

/// libvirt's own event loop on a thread, for as long as the process lives.
fn run_loop() -> Result<(), Error> {
    static RUNNING: Mutex<bool> = Mutex::new(false);
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if !*running {
        virt::event::event_register_default_impl()?;
        std::thread::spawn(|| while virt::event::event_run_default_impl().is_ok() {});
        *running = true;
    }
    Ok(())
}
