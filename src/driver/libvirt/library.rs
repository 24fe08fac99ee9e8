//! libvirt's client library, loaded when a daemon is first asked for something.
//!
//! It brings dozens of other libraries, and loading those takes longer than most
//! commands. So the crate `virt` is not linked with it but with the functions
//! of these names here, which hand each call on to the library. The linker drops
//! a library that nothing needs, and says so when a function is missing here.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_ulonglong, c_void};
use std::sync::OnceLock;

use virt::sys::{
    self, virConnectDomainEventGenericCallback, virConnectPtr, virDomainInterfacePtr, virDomainPtr,
    virDomainSnapshotPtr, virErrorFunc, virErrorPtr, virFreeCallback, virNetworkPtr, virStoragePoolPtr,
    virStorageVolInfoPtr, virStorageVolPtr, virStreamPtr,
};

use crate::base::{Error, Result};

/// The library's name, the same since its first version.
const NAME: &CStr = c"libvirt.so.0";

static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();

/// Loads the library, once; comes before every other call to it.
///
/// # Errors
/// [`crate::base::Kind::Unavailable`] where it is not installed.
pub(super) fn load() -> Result<()> {
    match LIBRARY.get_or_init(Library::open) {
        Ok(_) => Ok(()),
        Err(why) => Err(Error::unavailable("libvirt is not installed")
            .because(why.as_str())
            .hint("install its client library: the package 'libvirt0' (Debian, Ubuntu) or 'libvirt-libs' (Fedora)")),
    }
}

fn library() -> &'static Library {
    // Only a connection leads to anything else, and it is opened after the library.
    LIBRARY.get().and_then(|library| library.as_ref().ok()).expect("libvirt is loaded before it is called")
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// dlopen(3): what the library needs is looked up when it is called.
const RTLD_LAZY: c_int = 1;

/// What the dynamic linker said last.
fn dynamic_error() -> String {
    // SAFETY: takes nothing; the string is copied before another call changes it.
    let error = unsafe { dlerror() };
    if error.is_null() {
        return "the dynamic linker does not say why".into();
    }
    // SAFETY: a string of the dynamic linker's.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}

/// The address of a function, which is never null.
fn find(library: *mut c_void, name: &CStr) -> std::result::Result<*mut c_void, String> {
    // SAFETY: the library is open and stays so; the name ends with a zero.
    let function = unsafe { dlsym(library, name.as_ptr()) };
    if function.is_null() { Err(dynamic_error()) } else { Ok(function) }
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        /// Where the library's functions are.
        #[allow(non_snake_case, reason = "the functions' own names")]
        struct Library {
            $($name: unsafe extern "C" fn($($type),*) $(-> $answer)?,)*
        }

        impl Library {
            fn open() -> std::result::Result<Self, String> {
                // SAFETY: the name ends with a zero. The library's initialisers are those that would run if it were
                // linked.
                let library = unsafe { dlopen(NAME.as_ptr(), RTLD_LAZY) };
                if library.is_null() {
                    return Err(dynamic_error());
                }
                Ok(Library {$(
                    $name: {
                        // The same type as the bindings have, which were made of libvirt's own header.
                        const _: unsafe extern "C" fn($($type),*) $(-> $answer)? = sys::$name;
                        let name = const {
                            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                                Ok(name) => name,
                                Err(_) => panic!("a name with a zero in it"),
                            }
                        };
                        // SAFETY: the function of this name in libvirt has this type.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $answer)?>(find(
                                library, name,
                            )?)
                        }
                    },
                )*})
            }
        }

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) $(-> $answer)? {
                // SAFETY: the caller keeps what libvirt demands of this function.
                unsafe { (library().$name)($($argument),*) }
            }
        )*
    };
}

functions! {
    fn virConnectClose(connection: virConnectPtr) -> c_int;
    fn virConnectDomainEventDeregisterAny(connection: virConnectPtr, callback: c_int) -> c_int;
    fn virConnectDomainEventRegisterAny(
        connection: virConnectPtr, domain: virDomainPtr, event: c_int, back: virConnectDomainEventGenericCallback,
        data: *mut c_void, free: virFreeCallback
    ) -> c_int;
    fn virConnectGetCapabilities(connection: virConnectPtr) -> *mut c_char;
    fn virConnectGetDomainCapabilities(
        connection: virConnectPtr, emulator: *const c_char, arch: *const c_char, machine: *const c_char,
        kind: *const c_char, flags: c_uint
    ) -> *mut c_char;
    fn virConnectGetLibVersion(connection: virConnectPtr, version: *mut c_ulong) -> c_int;
    fn virConnectGetVersion(connection: virConnectPtr, version: *mut c_ulong) -> c_int;
    fn virConnectIsAlive(connection: virConnectPtr) -> c_int;
    fn virConnectListAllDomains(connection: virConnectPtr, domains: *mut *mut virDomainPtr, flags: c_uint) -> c_int;
    fn virConnectListAllStoragePools(
        connection: virConnectPtr, pools: *mut *mut virStoragePoolPtr, flags: c_uint
    ) -> c_int;
    fn virConnectOpen(name: *const c_char) -> virConnectPtr;
    fn virDomainAttachDeviceFlags(domain: virDomainPtr, xml: *const c_char, flags: c_uint) -> c_int;
    fn virDomainCreate(domain: virDomainPtr) -> c_int;
    fn virDomainDefineXML(connection: virConnectPtr, xml: *const c_char) -> virDomainPtr;
    fn virDomainDestroy(domain: virDomainPtr) -> c_int;
    fn virDomainDetachDeviceFlags(domain: virDomainPtr, xml: *const c_char, flags: c_uint) -> c_int;
    fn virDomainFree(domain: virDomainPtr) -> c_int;
    fn virDomainGetAutostart(domain: virDomainPtr, autostart: *mut c_int) -> c_int;
    fn virDomainGetID(domain: virDomainPtr) -> c_uint;
    fn virDomainGetName(domain: virDomainPtr) -> *const c_char;
    fn virDomainGetState(domain: virDomainPtr, state: *mut c_int, reason: *mut c_int, flags: c_uint) -> c_int;
    fn virDomainGetUUIDString(domain: virDomainPtr, buffer: *mut c_char) -> c_int;
    fn virDomainGetXMLDesc(domain: virDomainPtr, flags: c_uint) -> *mut c_char;
    fn virDomainHasManagedSaveImage(domain: virDomainPtr, flags: c_uint) -> c_int;
    fn virDomainInterfaceAddresses(
        domain: virDomainPtr, cards: *mut *mut virDomainInterfacePtr, source: c_uint, flags: c_uint
    ) -> c_int;
    fn virDomainInterfaceFree(card: virDomainInterfacePtr);
    fn virDomainIsActive(domain: virDomainPtr) -> c_int;
    fn virDomainListAllSnapshots(
        domain: virDomainPtr, snapshots: *mut *mut virDomainSnapshotPtr, flags: c_uint
    ) -> c_int;
    fn virDomainLookupByName(connection: virConnectPtr, name: *const c_char) -> virDomainPtr;
    fn virDomainLookupByUUIDString(connection: virConnectPtr, uuid: *const c_char) -> virDomainPtr;
    fn virDomainManagedSave(domain: virDomainPtr, flags: c_uint) -> c_int;
    fn virDomainManagedSaveRemove(domain: virDomainPtr, flags: c_uint) -> c_int;
    fn virDomainOpenConsole(domain: virDomainPtr, device: *const c_char, stream: virStreamPtr, flags: c_uint) -> c_int;
    fn virDomainPMWakeup(domain: virDomainPtr, flags: c_uint) -> c_int;
    fn virDomainRename(domain: virDomainPtr, name: *const c_char, flags: c_uint) -> c_int;
    fn virDomainResume(domain: virDomainPtr) -> c_int;
    fn virDomainRevertToSnapshot(snapshot: virDomainSnapshotPtr, flags: c_uint) -> c_int;
    fn virDomainScreenshot(domain: virDomainPtr, stream: virStreamPtr, screen: c_uint, flags: c_uint) -> *mut c_char;
    fn virDomainSetAutostart(domain: virDomainPtr, autostart: c_int) -> c_int;
    fn virDomainShutdown(domain: virDomainPtr) -> c_int;
    fn virDomainSnapshotCreateXML(domain: virDomainPtr, xml: *const c_char, flags: c_uint) -> virDomainSnapshotPtr;
    fn virDomainSnapshotDelete(snapshot: virDomainSnapshotPtr, flags: c_uint) -> c_int;
    fn virDomainSnapshotFree(snapshot: virDomainSnapshotPtr) -> c_int;
    fn virDomainSnapshotGetName(snapshot: virDomainSnapshotPtr) -> *const c_char;
    fn virDomainSnapshotGetXMLDesc(snapshot: virDomainSnapshotPtr, flags: c_uint) -> *mut c_char;
    fn virDomainSnapshotLookupByName(domain: virDomainPtr, name: *const c_char, flags: c_uint) -> virDomainSnapshotPtr;
    fn virDomainSuspend(domain: virDomainPtr) -> c_int;
    fn virDomainUndefineFlags(domain: virDomainPtr, flags: c_uint) -> c_int;
    fn virEventRegisterDefaultImpl() -> c_int;
    fn virEventRunDefaultImpl() -> c_int;
    fn virGetLastError() -> virErrorPtr;
    fn virNetworkCreate(network: virNetworkPtr) -> c_int;
    fn virNetworkFree(network: virNetworkPtr) -> c_int;
    fn virNetworkIsActive(network: virNetworkPtr) -> c_int;
    fn virNetworkLookupByName(connection: virConnectPtr, name: *const c_char) -> virNetworkPtr;
    fn virSetErrorFunc(data: *mut c_void, handler: virErrorFunc);
    fn virStoragePoolCreate(pool: virStoragePoolPtr, flags: c_uint) -> c_int;
    fn virStoragePoolDefineXML(connection: virConnectPtr, xml: *const c_char, flags: c_uint) -> virStoragePoolPtr;
    fn virStoragePoolFree(pool: virStoragePoolPtr) -> c_int;
    fn virStoragePoolGetXMLDesc(pool: virStoragePoolPtr, flags: c_uint) -> *mut c_char;
    fn virStoragePoolIsActive(pool: virStoragePoolPtr) -> c_int;
    fn virStoragePoolListAllVolumes(
        pool: virStoragePoolPtr, volumes: *mut *mut virStorageVolPtr, flags: c_uint
    ) -> c_int;
    fn virStoragePoolListVolumes(pool: virStoragePoolPtr, names: *mut *mut c_char, most: c_int) -> c_int;
    fn virStoragePoolLookupByName(connection: virConnectPtr, name: *const c_char) -> virStoragePoolPtr;
    fn virStoragePoolRefresh(pool: virStoragePoolPtr, flags: c_uint) -> c_int;
    fn virStoragePoolSetAutostart(pool: virStoragePoolPtr, autostart: c_int) -> c_int;
    fn virStorageVolCreateXML(pool: virStoragePoolPtr, xml: *const c_char, flags: c_uint) -> virStorageVolPtr;
    fn virStorageVolDelete(volume: virStorageVolPtr, flags: c_uint) -> c_int;
    fn virStorageVolDownload(
        volume: virStorageVolPtr, stream: virStreamPtr, offset: c_ulonglong, length: c_ulonglong, flags: c_uint
    ) -> c_int;
    fn virStorageVolFree(volume: virStorageVolPtr) -> c_int;
    fn virStorageVolGetInfo(volume: virStorageVolPtr, info: virStorageVolInfoPtr) -> c_int;
    fn virStorageVolGetInfoFlags(volume: virStorageVolPtr, info: virStorageVolInfoPtr, flags: c_uint) -> c_int;
    fn virStorageVolGetName(volume: virStorageVolPtr) -> *const c_char;
    fn virStorageVolGetPath(volume: virStorageVolPtr) -> *mut c_char;
    fn virStorageVolGetXMLDesc(volume: virStorageVolPtr, flags: c_uint) -> *mut c_char;
    fn virStorageVolLookupByName(pool: virStoragePoolPtr, name: *const c_char) -> virStorageVolPtr;
    fn virStorageVolResize(volume: virStorageVolPtr, capacity: c_ulonglong, flags: c_uint) -> c_int;
    fn virStorageVolUpload(
        volume: virStorageVolPtr, stream: virStreamPtr, offset: c_ulonglong, length: c_ulonglong, flags: c_uint
    ) -> c_int;
    fn virStreamAbort(stream: virStreamPtr) -> c_int;
    fn virStreamEventRemoveCallback(stream: virStreamPtr) -> c_int;
    fn virStreamFinish(stream: virStreamPtr) -> c_int;
    fn virStreamFree(stream: virStreamPtr) -> c_int;
    fn virStreamNew(connection: virConnectPtr, flags: c_uint) -> virStreamPtr;
    fn virStreamRecv(stream: virStreamPtr, data: *mut c_char, count: usize) -> c_int;
    fn virStreamRef(stream: virStreamPtr) -> c_int;
    fn virStreamSend(stream: virStreamPtr, data: *const c_char, count: usize) -> c_int;
}
