//! Products of matrices that Python holds, by address.

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use stoker_kernels::{self as kernels, Element, Matrix, MatrixMut, Product};

/// `(address, is bfloat16, numbers from row to row)`.
type PyMatrix = (usize, bool, usize);

/// A pool of threads, and what they compute with.
#[pyclass(frozen, module = "stoker_loader._native")]
pub struct Kernels(kernels::Kernels);

#[pymethods]
impl Kernels {
    #[new]
    fn new(threads: usize) -> PyResult<Self> {
        if threads == 0 {
            return Err(PyValueError::new_err("kernels take at least one thread"));
        }
        kernels::Kernels::new(threads).map(Self).map_err(|e| PyOSError::new_err(e.to_string()))
    }

    #[getter]
    fn threads(&self) -> usize {
        self.0.threads()
    }

    #[getter]
    fn instructions(&self) -> &'static str {
        self.0.instructions().name()
    }

    /// The Python side answers for addresses and sizes; see `stoker_loader.kernels`.
    #[expect(clippy::too_many_arguments, reason = "a tuple would have to be built at every call")]
    #[pyo3(signature = (x, weight, bias, out, tokens, inputs, outputs, /))]
    fn multiply(
        &self,
        py: Python<'_>,
        x: PyMatrix,
        weight: usize,
        bias: Option<(usize, bool)>,
        out: PyMatrix,
        tokens: usize,
        inputs: usize,
        outputs: usize,
    ) {
        let product = Addresses(Product {
            x: Matrix { start: x.0 as *const u8, element: element(x.1), stride: x.2 },
            weight: weight as *const u16,
            bias: bias.map(|(address, short)| (address as *const u8, element(short))),
            out: MatrixMut { start: out.0 as *mut u8, element: element(out.1), stride: out.2 },
            tokens,
            inputs,
            outputs,
        });
        py.detach(|| {
            let product = product; // all of it, not its pointers one by one
            // SAFETY: `stoker_loader.kernels` has checked shapes and strides of tensors that its
            // caller holds until this returns.
            unsafe { self.0.multiply(&product.0) }
        });
    }
}

/// Whether this processor has vectors that make the kernels worth their while.
#[pyfunction]
pub fn has_wide_vectors() -> bool {
    kernels::Instructions::best() != kernels::Instructions::Portable
}

fn element(short: bool) -> Element {
    if short { Element::Bfloat16 } else { Element::Float32 }
}

/// A product on its way out of the interpreter's lock.
struct Addresses(Product);

// SAFETY: pointers are addresses; whoever uses them answers for what they point to.
unsafe impl Send for Addresses {}
