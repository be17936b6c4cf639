//! The order of tensors in an aligned layout, and the header that says so.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::header::{LENGTH_BYTES, TensorRecord};

/// The boundary that the first large tensor lands on.
pub const PAGE_BYTES: u64 = 4096;
/// The same for files of at least `LARGE_FILE_BYTES`.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Below this 2 MiB of padding would cost more than they give.
pub const LARGE_FILE_BYTES: u64 = 1 << 30;
/// Tensors (or groups) below this go in front, where they need no boundary of their own.
pub const SMALL_BYTES: u64 = 64 << 10;
/// The metadata key that marks a file as laid out by these rules.
pub const LAYOUT_KEY: &str = "stoker.layout";
/// The version of these rules.
pub const LAYOUT_VERSION: &str = "1";

/// Weights that decoders multiply by at once, in the order of the fusion.
const FUSIONS: [(&[&str], &[&str]); 2] = [
    (&["q_proj", "k_proj", "v_proj"], &["weight", "bias"]),
    (&["gate_proj", "up_proj"], &["weight"]),
];

/// Where a tensor's bytes come from: a shard's number and the record in its header.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The number of the shard.
    pub shard: usize,
    /// The tensor in it.
    pub tensor: &'a TensorRecord,
}

/// What to write: the header, then the tensors' bytes one after the other.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The file's beginning: length, JSON, padding.
    pub header: Vec<u8>,
    /// The tensors in the order of the file.
    pub tensors: Vec<Source<'a>>,
    /// The names that stand side by side for fusion.
    pub fused_groups: Vec<Vec<String>>,
    /// The length of the whole file.
    pub file_bytes: u64,
}

/// The three regions of the file, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Region {
    /// Below [`SMALL_BYTES`], aligned to their element.
    Small,
    /// Every tensor a multiple of a page, so every tensor on a page.
    Paged,
    /// Large, but of another size; aligned to their element.
    Odd,
}

/// Tensors that stay together.
struct Unit<'a> {
    tensors: Vec<Source<'a>>,
    region: Region,
    alignment: u64,
}

impl<'a> Unit<'a> {
    fn new(tensors: Vec<Source<'a>>) -> Self {
        let size_bytes: u64 = tensors.iter().map(|source| source.tensor.size_bytes).sum();
        let paged = |source: &Source| source.tensor.size_bytes.is_multiple_of(PAGE_BYTES);
        let region = match () {
            () if size_bytes < SMALL_BYTES => Region::Small,
            () if tensors.iter().all(paged) => Region::Paged,
            () => Region::Odd,
        };
        let alignment = tensors.iter().map(|s| s.tensor.dtype.alignment()).max().unwrap_or(1);
        Self { tensors, region, alignment }
    }

    fn name(&self) -> &'a str {
        &self.tensors[0].tensor.name
    }

    /// Small tensors *end* on a page, so elements grow towards it; odd ones *begin* on a page, so
    /// elements shrink away from it. Either way each tensor is aligned without a gap.
    fn compare(&self, other: &Self) -> Ordering {
        self.region
            .cmp(&other.region)
            .then_with(|| match self.region {
                Region::Small => self.alignment.cmp(&other.alignment),
                Region::Paged => Ordering::Equal,
                Region::Odd => other.alignment.cmp(&self.alignment),
            })
            .then_with(|| natural_order(self.name(), other.name()))
    }
}

/// Plans the layout of the tensors of all shards; names are unique.
pub fn plan<'a>(tensors: &[Source<'a>], metadata: &BTreeMap<String, String>) -> Plan<'a> {
    let (mut units, fused_groups) = gather_units(tensors);
    units.sort_by(Unit::compare);
    let data_bytes: u64 = tensors.iter().map(|source| source.tensor.size_bytes).sum();
    let small_bytes: u64 = units
        .iter()
        .filter(|unit| unit.region == Region::Small)
        .flat_map(|unit| &unit.tensors)
        .map(|source| source.tensor.size_bytes)
        .sum();
    let tensors: Vec<Source> = units.into_iter().flat_map(|unit| unit.tensors).collect();

    let mut header = render(&tensors, metadata);
    let boundary = if data_bytes >= LARGE_FILE_BYTES { LARGE_PAGE_BYTES } else { PAGE_BYTES };
    let length = LENGTH_BYTES + header.len() as u64;
    let padding = (length + small_bytes).next_multiple_of(boundary) - (length + small_bytes);
    header.resize(header.len() + padding as usize, b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    let file_bytes = bytes.len() as u64 + data_bytes;
    Plan { header: bytes, tensors, fused_groups, file_bytes }
}

/// Fusable tensors as units of their own order, all others alone.
fn gather_units<'a>(tensors: &[Source<'a>]) -> (Vec<Unit<'a>>, Vec<Vec<String>>) {
    let by_name: HashMap<&str, Source> =
        tensors.iter().map(|source| (source.tensor.name.as_str(), *source)).collect();
    let mut units = Vec::new();
    let mut groups = Vec::new();
    let mut grouped: HashSet<&str> = HashSet::new();
    for source in tensors {
        let Some(names) = fusion_led_by(&source.tensor.name) else { continue };
        let members: Option<Vec<Source>> =
            names.iter().map(|name| by_name.get(name.as_str()).copied()).collect();
        if let Some(members) = members.filter(|members| can_fuse(members)) {
            grouped.extend(members.iter().map(|member| member.tensor.name.as_str()));
            units.push(Unit::new(members));
            groups.push(names);
        }
    }
    groups.sort_by(|a, b| natural_order(&a[0], &b[0]));
    let alone = tensors.iter().filter(|source| !grouped.contains(source.tensor.name.as_str()));
    units.extend(alone.map(|source| Unit::new(vec![*source])));
    (units, groups)
}

/// The names of the fusion whose first member this is.
fn fusion_led_by(name: &str) -> Option<Vec<String>> {
    FUSIONS.iter().find_map(|(members, leaves)| {
        leaves.iter().find_map(|leaf| {
            let prefix = name.strip_suffix(&format!("{}.{leaf}", members[0]))?;
            (prefix.is_empty() || prefix.ends_with('.'))
                .then(|| members.iter().map(|m| format!("{prefix}{m}.{leaf}")).collect())
        })
    })
}

/// One view along the first dimension needs one dtype and the same other dimensions.
fn can_fuse(members: &[Source]) -> bool {
    let first = members[0].tensor;
    members.iter().all(|member| {
        let tensor = member.tensor;
        tensor.dtype == first.dtype
            && !tensor.shape.is_empty()
            && tensor.shape.get(1..) == first.shape.get(1..)
    })
}

fn render(tensors: &[Source], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut metadata = metadata.clone();
    metadata.insert(LAYOUT_KEY.into(), LAYOUT_VERSION.into());
    let mut text = Vec::new();
    let write = |text: &mut Vec<u8>, key: &str, value: &Value| {
        text.push(if text.is_empty() { b'{' } else { b',' });
        // A Vec takes every byte and these values are plain trees: this cannot fail.
        serde_json::to_writer(&mut *text, key).expect("a string is valid JSON");
        text.push(b':');
        serde_json::to_writer(&mut *text, value).expect("a tree is valid JSON");
    };
    let metadata: Map<String, Value> =
        metadata.into_iter().map(|(key, value)| (key, Value::String(value))).collect();
    write(&mut text, "__metadata__", &Value::Object(metadata));
    let mut begin = 0;
    for Source { tensor, .. } in tensors {
        let end = begin + tensor.size_bytes;
        let value = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        });
        write(&mut text, &tensor.name, &value);
        begin = end;
    }
    text.push(b'}');
    text
}

/// Compares names so that `layers.2` comes before `layers.10`.
fn natural_order(left: &str, right: &str) -> Ordering {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (mut a, mut b) = (left, right);
    while let (Some(x), Some(y)) = (a.chars().next(), b.chars().next()) {
        let (m, n) = (digits(a), digits(b));
        let order = if m > 0 && n > 0 {
            let (left, right) = (&a[..m], &b[..n]);
            let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
            (a, b) = (&a[m..], &b[n..]);
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]);
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    // Names that differ only in leading zeros still need an order.
    a.len().cmp(&b.len()).then_with(|| left.cmp(right))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
