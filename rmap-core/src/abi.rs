//! The commands of XPMEM's device, `/dev/xpmem`, and their argument structs (spec 1.2).

use core::ffi::c_int;

/// Asks for the version, which is what the call returns.
pub const VERSION: u32 = 0x7800;
/// Takes a [`Make`].
pub const MAKE: u32 = 0x7801;
/// Takes a segment's id.
pub const REMOVE: u32 = 0x7802;
/// Takes a [`Get`].
pub const GET: u32 = 0x7803;
/// Takes a permit's id.
pub const RELEASE: u32 = 0x7804;
/// Takes an [`Attach`].
pub const ATTACH: u32 = 0x7805;
/// Takes an address, 64 bits wide.
pub const DETACH: u32 = 0x7806;
/// Takes nothing; XPMEM's library never sends it.
pub const FORK_BEGIN: u32 = 0x7807;
/// Takes nothing; XPMEM's library never sends it.
pub const FORK_END: u32 = 0x7808;

/// `XPMEM_ERRNO_NOPROC`: the calling process has not opened the device.
pub const NOPROC: c_int = 2004;

/// The argument of [`MAKE`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Make {
    /// First address.
    pub vaddr: u64,
    /// Bytes.
    pub size: usize,
    /// `XPMEM_PERMIT_MODE`.
    pub permit_type: c_int,
    /// An octal mode.
    pub permit_value: u64,
    /// Out: the segment.
    pub segid: i64,
}

/// The argument of [`GET`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Get {
    /// The segment.
    pub segid: i64,
    /// `XPMEM_RDONLY` or `XPMEM_RDWR`.
    pub flags: c_int,
    /// `XPMEM_PERMIT_MODE`.
    pub permit_type: c_int,
    /// 0.
    pub permit_value: u64,
    /// Out: the permit.
    pub apid: i64,
}

/// The argument of [`ATTACH`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// The permit.
    pub apid: i64,
    /// Bytes from the start of the segment.
    pub offset: i64,
    /// Bytes.
    pub size: usize,
    /// In: where, or 0. Out: where it is.
    pub vaddr: u64,
    /// Not looked at.
    pub fd: c_int,
    /// Not looked at.
    pub flags: c_int,
}

const _: () = assert!(size_of::<Make>() == 40 && size_of::<Get>() == 32 && size_of::<Attach>() == 40);
