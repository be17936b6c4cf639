//! Memory as DLPack capsules (<https://dmlc.github.io/dlpack>, version 0.8's layout, which every
//! later reader takes): a tensor of its own over a range that someone keeps alive.

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use stoker_loader_core::dtype::Dtype;

const NAME: &CStr = c"dltensor";
const CPU: i32 = 1;

#[repr(C)]
struct DLDevice {
    device_type: i32,
    device_id: i32,
}

#[repr(C)]
struct DLDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DLTensor {
    data: *mut c_void,
    device: DLDevice,
    ndim: i32,
    dtype: DLDataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct DLManagedTensor {
    tensor: DLTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// What a capsule owns: the description, the shape that it points to, and the memory's keeper.
struct Managed {
    raw: DLManagedTensor,
    shape: Vec<i64>,
    _keeper: Arc<dyn Any + Send + Sync>,
}

/// A capsule over row-major elements at `address`, which `keeper` keeps valid and writable for
/// the whole tensor. Whoever takes the capsule drops the keeper when the last tensor is gone, from
/// whatever thread that is. Errors: `ValueError` if `address` is no multiple of the element: takers
/// trust it, and their vector loads would fault or, on some processors, read other bytes.
pub fn capsule<'py>(
    py: Python<'py>,
    keeper: Arc<dyn Any + Send + Sync>,
    address: *mut u8,
    dtype: Dtype,
    shape: &[u64],
) -> PyResult<Bound<'py, PyAny>> {
    if !is_aligned(address, dtype) {
        let (name, bytes) = (dtype.name(), dtype.alignment());
        let message = format!("a tensor of {name} must begin at a multiple of {bytes} bytes");
        return Err(PyValueError::new_err(message));
    }
    let (code, bits) = data_type(dtype);
    let shape = shape
        .iter()
        .map(|&dimension| i64::try_from(dimension))
        .collect::<Result<Vec<i64>, _>>()
        .map_err(|_| PyOverflowError::new_err("a dimension is beyond 63 bits"))?;
    let tensor = DLTensor {
        data: address.cast(),
        device: DLDevice { device_type: CPU, device_id: 0 },
        ndim: i32::try_from(shape.len())
            .map_err(|_| PyOverflowError::new_err("too many dimensions"))?,
        dtype: DLDataType { code, bits, lanes: 1 },
        shape: ptr::null_mut(),
        strides: ptr::null_mut(), // row-major
        byte_offset: 0,
    };
    let raw = DLManagedTensor { tensor, context: ptr::null_mut(), deleter: Some(delete) };
    let managed = Box::into_raw(Box::new(Managed { raw, shape, _keeper: keeper }));
    // SAFETY: `managed` is a live allocation that nothing else knows yet. Its shape is a heap block
    // (or dangling for no dimensions, of which none is read) that lives as long as it.
    let raw = unsafe {
        (*managed).raw.tensor.shape = (*managed).shape.as_mut_ptr();
        (*managed).raw.context = managed.cast();
        &raw mut (*managed).raw
    };
    // SAFETY: the pointer is not null, the name is static, and `destroy` matches it.
    let capsule = unsafe { ffi::PyCapsule_New(raw.cast(), NAME.as_ptr(), Some(destroy)) };
    if capsule.is_null() {
        // SAFETY: no capsule took it, so it is still ours alone.
        unsafe { delete(raw) };
        return Err(PyErr::fetch(py));
    }
    // SAFETY: PyCapsule_New returned a new reference.
    Ok(unsafe { Bound::from_owned_ptr(py, capsule) })
}

/// Whether elements at an address may be a tensor as they lie.
pub fn is_aligned(address: *const u8, dtype: Dtype) -> bool {
    (address as u64).is_multiple_of(dtype.alignment())
}

/// DLPack's code and bits for an element type.
fn data_type(dtype: Dtype) -> (u8, u8) {
    let code = match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => 0,
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => 1,
        Dtype::F16 | Dtype::F32 | Dtype::F64 => 2,
        Dtype::BF16 => 4,
        Dtype::C64 => 5,
        Dtype::BOOL => 6,
        Dtype::F8_E4M3 => 10,
        Dtype::F8_E4M3FNUZ => 11,
        Dtype::F8_E5M2 => 12,
        Dtype::F8_E5M2FNUZ => 13,
        Dtype::F8_E8M0 => 14,
        Dtype::F6_E2M3 => 15,
        Dtype::F6_E3M2 => 16,
        Dtype::F4 => 17,
    };
    (code, dtype.bits() as u8)
}

/// What a tensor's owner calls when it is done.
unsafe extern "C" fn delete(raw: *mut DLManagedTensor) {
    // SAFETY: by DLPack's contract this is called once, with what `capsule` made; its context is
    // the box around it.
    drop(unsafe { Box::from_raw((*raw).context.cast::<Managed>()) });
}

/// What Python calls for a capsule; one that a tensor was made of has another name by then.
unsafe extern "C" fn destroy(capsule: *mut ffi::PyObject) {
    // SAFETY: Python passes the live capsule. Its pointer is asked for only under the name that
    // says that nobody took it, so `delete` has not run.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}
