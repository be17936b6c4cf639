//! A rank's share of a checkpoint.

use std::any::Any;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stoker_loader_core::dtype::Dtype;
use stoker_loader_core::parallel::{Loaded, Part, Plan, Rule, Split};

use crate::attach::{Placed, attach};

/// `(pattern, split)`; a split is `(dimension, parts, heads)`, and `None` replicates.
pub type PyRule = (String, Option<(usize, Vec<u64>, bool)>);

/// The plan that Python's rules are.
pub fn import_plan(rules: Vec<PyRule>) -> Plan {
    let import = |(pattern, split)| {
        let split = match split {
            None => Split::Replicate,
            Some((dimension, parts, heads)) => Split::Along { dimension, parts, heads },
        };
        Rule { pattern, split }
    };
    Plan { rules: rules.into_iter().map(import).collect() }
}

/// The tensors of one rank, each in the mapping of its file or in one packed piece of memory.
#[pyclass(frozen, module = "stoker_loader._native")]
pub struct Parts {
    parts: Vec<Owned>,
    #[pyo3(get)]
    packed_bytes: u64,
}

/// A part with what keeps its memory, and where it begins in that.
struct Owned {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    size_bytes: u64,
    keeper: Arc<dyn Any + Send + Sync>,
    address: usize,
}

#[pymethods]
impl Parts {
    /// `{name: tensor}`, as `Checkpoint.attach` makes it.
    fn attach<'py>(
        &self,
        py: Python<'py>,
        dtypes: Vec<String>,
        make: &Bound<'py, PyAny>,
        other: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let placed = self.parts.iter().map(|part| {
            Ok(Placed {
                name: &part.name,
                dtype: part.dtype,
                shape: &part.shape,
                size_bytes: part.size_bytes,
                address: part.address as *mut u8,
                keeper: Arc::clone(&part.keeper),
            })
        });
        attach(py, placed, &dtypes, make, other)
    }
}

impl Parts {
    /// The parts of a load.
    pub fn new(loaded: &Loaded<'_>) -> Self {
        let own = |part: &Part<'_>| {
            let (address, keeper) = loaded.memory(part);
            Owned {
                name: part.tensor.name.clone(),
                dtype: part.tensor.dtype,
                shape: part.slice.shape.clone(),
                size_bytes: part.slice.size_bytes(),
                keeper,
                address: address as usize,
            }
        };
        let is_packed = |part: &&Part| part.packed.is_some();
        let packed_bytes =
            loaded.parts.iter().filter(is_packed).map(|part| part.slice.size_bytes()).sum();
        Self { parts: loaded.parts.iter().map(own).collect(), packed_bytes }
    }
}
