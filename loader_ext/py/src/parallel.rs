//! Tensors in memory that a load made: a rank's share of a checkpoint, or all of it.

use std::any::Any;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stoker_loader_core::arena::Arena;
use stoker_loader_core::checkpoint::Shard;
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

/// Tensors, each in the mapping of its file or in memory that it shares with others of its load.
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

    /// All tensors of files that were read whole, an image each.
    pub fn of_images(shards: &[Shard], images: &[Arc<Arena>]) -> Self {
        let own = |(shard, image): (&Shard, &Arc<Arena>)| {
            let tensors = shard.header.tensors.iter().map(|tensor| Owned {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                size_bytes: tensor.size_bytes,
                keeper: Arc::clone(image) as _,
                // Within the image, which is as long as the file that the header was checked for.
                address: image.address().as_ptr() as usize + tensor.offset_bytes as usize,
            });
            tensors.collect::<Vec<_>>()
        };
        let parts: Vec<_> = shards.iter().zip(images).flat_map(own).collect();
        let packed_bytes = parts.iter().map(|part| part.size_bytes).sum();
        Self { parts, packed_bytes }
    }
}
