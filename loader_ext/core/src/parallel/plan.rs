//! Which bytes of a tensor a rank needs: rules by name, and the slices that follow from them.
//!
//! The splits are those of Megatron-LM (Shoeybi et al., arXiv:1909.08053): a layer's first
//! projections by rows, its last one by columns.

use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::header::TensorRecord;

/// How a tensor is dealt out to the ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// Every rank has all of it.
    Replicate,
    /// A dimension is cut into `parts`, in proportion to these numbers, and each rank gets its
    /// equal share of every part.
    Along {
        /// 0: rows, 1: columns.
        dimension: usize,
        /// One number for a plain tensor, one for each weight that was fused into it.
        parts: Vec<u64>,
        /// Whether the numbers count heads, which stay whole: a rank gets some of them, or where
        /// there are more ranks than heads several ranks get the same one.
        heads: bool,
    },
}

/// How the tensors of some names are split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A name in which `*` stands for any characters, none included.
    pub pattern: String,
    /// The split of all tensors with such a name.
    pub split: Split,
}

/// Rules in order: of those whose pattern fits, the first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The rules.
    pub rules: Vec<Rule>,
}

/// What a rank needs of one tensor: the same `runs` of each of `lines` equal pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The shape of what the rank gets, whose bytes are the runs one after the other.
    pub shape: Vec<u64>,
    /// Where the first line begins in the file.
    pub offset_bytes: u64,
    /// How many lines there are.
    pub lines: u64,
    /// The length of one.
    pub line_bytes: u64,
    /// Byte ranges within a line, rising and apart from each other.
    pub runs: Vec<Range<u64>>,
}

impl Slice {
    /// The bytes that the rank gets.
    pub fn size_bytes(&self) -> u64 {
        self.lines * self.runs.iter().map(|run| run.end - run.start).sum::<u64>()
    }

    /// The bytes in the file, if they are in one piece there.
    pub fn contiguous(&self) -> Option<Range<u64>> {
        match (self.lines, self.runs.as_slice()) {
            (_, []) | (0, _) => Some(self.offset_bytes..self.offset_bytes),
            (1, [run]) => Some(self.offset_bytes + run.start..self.offset_bytes + run.end),
            _ => None,
        }
    }
}

impl Plan {
    /// Fails with `PlanInvalid` if a rule makes no sense for any tensor, or there is no such rank.
    pub fn check(&self, path: &Path, rank: u64, world_size: u64) -> Result<()> {
        let invalid = |reason| Err(Error::new(path, Kind::PlanInvalid { reason }));
        if rank >= world_size {
            return invalid(format!("there is no rank {rank} of {world_size}"));
        }
        for Rule { pattern, split } in &self.rules {
            let Split::Along { dimension, parts, .. } = split else { continue };
            if *dimension > 1 {
                return invalid(format!("{pattern:?} splits dimension {dimension}, not 0 or 1"));
            }
            let total = parts.iter().try_fold(0u64, |total, part| total.checked_add(*part));
            if parts.is_empty() || parts.contains(&0) || total.is_none() {
                return invalid(format!("{pattern:?} has no parts, or one of none"));
            }
        }
        Ok(())
    }

    /// What `rank` of `world_size` (checked) needs of a tensor of the file at `path`.
    ///
    /// Errors: `TensorUnplanned` if no rule is for it, `SplitMismatch` if its shape does not divide.
    pub fn slice(
        &self,
        path: &Path,
        tensor: &TensorRecord,
        rank: u64,
        world_size: u64,
    ) -> Result<Slice> {
        let error = |kind| Error::new(path, kind).tensor(&tensor.name);
        let rule = self.rules.iter().find(|rule| matches(&rule.pattern, &tensor.name));
        match &rule.ok_or_else(|| error(Kind::TensorUnplanned))?.split {
            Split::Replicate => Ok(whole(tensor)),
            Split::Along { dimension, parts, heads } => {
                let share = Share { parts, heads: *heads, rank, world_size };
                cut(tensor, *dimension, &share)
                    .map_err(|reason| error(Kind::SplitMismatch { reason }))
            }
        }
    }
}

fn whole(tensor: &TensorRecord) -> Slice {
    let mut runs = Vec::new();
    if tensor.size_bytes > 0 {
        runs.push(0..tensor.size_bytes);
    }
    Slice {
        shape: tensor.shape.clone(),
        offset_bytes: tensor.offset_bytes,
        lines: 1,
        line_bytes: tensor.size_bytes,
        runs,
    }
}

fn cut(
    tensor: &TensorRecord,
    dimension: usize,
    share: &Share,
) -> std::result::Result<Slice, String> {
    let shape = &tensor.shape;
    let Some(&length) = shape.get(dimension) else {
        return Err(format!("the shape {shape:?} has no dimension {dimension}"));
    };
    let ranges = share
        .of(length)
        .map_err(|reason| format!("dimension {dimension} of the shape {shape:?}: {reason}"))?;
    let mut slice = whole(tensor);
    slice.shape[dimension] = ranges.iter().map(|range| range.end - range.start).sum();
    if tensor.size_bytes == 0 {
        return Ok(slice);
    }
    // Of a tensor that has bytes no dimension is 0, and its bits are less than 2^64.
    let step_bits = shape[dimension + 1..].iter().product::<u64>() * tensor.dtype.bits();
    let byte = |index: u64| match index * step_bits {
        bits if bits.is_multiple_of(8) => Ok(bits / 8),
        _ => Err(format!("a cut at {index} of the shape {shape:?} goes through a byte")),
    };
    slice.lines = shape[..dimension].iter().product();
    slice.line_bytes = byte(length)?;
    slice.runs.clear();
    for range in ranges {
        let (begin, end) = (byte(range.start)?, byte(range.end)?);
        match slice.runs.last_mut() {
            Some(last) if last.end == begin => last.end = end,
            _ if begin < end => slice.runs.push(begin..end),
            _ => {}
        }
    }
    // All of each line is all of the tensor.
    match slice.runs.as_slice() {
        [run] if run.end - run.start == slice.line_bytes => Ok(whole(tensor)),
        _ => Ok(slice),
    }
}

/// A rank's share of a dimension.
struct Share<'a> {
    parts: &'a [u64],
    heads: bool,
    rank: u64,
    world_size: u64,
}

impl Share<'_> {
    /// The ranges of a dimension of this length, one for each part.
    fn of(&self, length: u64) -> std::result::Result<Vec<Range<u64>>, String> {
        let total: u64 = self.parts.iter().sum();
        if !length.is_multiple_of(total) {
            return Err(format!("{length} does not divide into {total}"));
        }
        let unit = length / total;
        let mut begin = 0;
        let mut ranges = Vec::with_capacity(self.parts.len());
        for &part in self.parts {
            let (first, count) =
                if self.heads { self.heads(part, unit)? } else { self.even(part * unit)? };
            ranges.push(begin + first..begin + first + count);
            begin += part * unit;
        }
        Ok(ranges)
    }

    fn even(&self, length: u64) -> std::result::Result<(u64, u64), String> {
        if !length.is_multiple_of(self.world_size) {
            return Err(format!("{length} does not divide by {} ranks", self.world_size));
        }
        let count = length / self.world_size;
        Ok((self.rank * count, count))
    }

    fn heads(&self, heads: u64, unit: u64) -> std::result::Result<(u64, u64), String> {
        if self.world_size.is_multiple_of(heads) {
            return Ok((self.rank / (self.world_size / heads) * unit, unit));
        }
        let failed = |_| format!("{heads} heads do not divide by {} ranks", self.world_size);
        let (first, count) = self.even(heads).map_err(failed)?;
        Ok((first * unit, count * unit))
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, pattern)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let (middle, last) = pattern.rsplit_once('*').unwrap_or(("", pattern));
    // The leftmost fit of each piece leaves the most for those behind it.
    for piece in middle.split('*') {
        match rest.split_once(piece) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
