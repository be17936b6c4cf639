//! What is asked for, and dealing it out to threads.

use std::sync::{Mutex, PoisonError, TryLockError};

use crate::block::{Scratch, Task, room};
use crate::element::Element;
use crate::entry::Entry;
use crate::lanes::Instructions;
use crate::pool::Pool;
use crate::shares::{ROW_STEP, Shares};
use crate::tile::Inputs;

/// Float32 of a block of widened weights: a fifth of a second-level cache of 1.25 MiB, which also
/// holds the next block's bfloat16 and the inputs.
const WIDE_BLOCK_NUMBERS: usize = 64 * 1024;
/// Bfloat16 of a block that is read where it lies: some 10 us of a memory channel.
const STREAMED_BLOCK_NUMBERS: usize = 64 * 1024;

/// Rows of numbers in memory, each row without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// The first number.
    pub start: *const u8,
    /// How numbers are stored.
    pub element: Element,
    /// Numbers from one row to the next.
    pub stride: usize,
}

/// As `Matrix`, to be written.
#[derive(Debug, Clone, Copy)]
pub struct MatrixMut {
    /// The first number.
    pub start: *mut u8,
    /// How numbers are stored.
    pub element: Element,
    /// Numbers from one row to the next.
    pub stride: usize,
}

/// `out [tokens, outputs] = x [tokens, inputs] * weight [outputs, inputs]^T + bias [outputs]`.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// `[tokens, inputs]`.
    pub x: Matrix,
    /// `[outputs, inputs]` of bfloat16, without gaps.
    pub weight: *const u16,
    /// `[outputs]`.
    pub bias: Option<(*const u8, Element)>,
    /// `[tokens, outputs]`.
    pub out: MatrixMut,
    /// Rows of `x` and `out`.
    pub tokens: usize,
    /// Columns of `x` and `weight`.
    pub inputs: usize,
    /// Rows of `weight`, columns of `out`.
    pub outputs: usize,
}

/// Computes products with a pool of threads of its own.
pub struct Kernels {
    instructions: Instructions,
    pool: Pool,
    /// Whoever holds it has the pool.
    memory: Mutex<Memory>,
}

/// What is kept from product to product; between products its contents mean nothing.
struct Memory {
    x: Scratch,
    weights: Vec<Mutex<Scratch>>, // one for each thread
}

impl Memory {
    fn new(threads: usize) -> Self {
        Self { x: Scratch::new(), weights: (0..threads).map(|_| Mutex::default()).collect() }
    }
}

impl Kernels {
    /// Kernels for this processor; `threads` counts the one that calls `multiply`.
    ///
    /// Errors: the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::with(Instructions::best(), threads)
    }

    /// Kernels with chosen instructions.
    ///
    /// Errors: the system refuses a thread, or the processor lacks the instructions.
    pub fn with(instructions: Instructions, threads: usize) -> std::io::Result<Self> {
        if !instructions.available() {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        let pool = Pool::new(threads)?;
        let memory = Mutex::new(Memory::new(pool.threads()));
        Ok(Self { instructions, pool, memory })
    }

    /// The instructions in use.
    #[must_use]
    pub fn instructions(&self) -> Instructions {
        self.instructions
    }

    /// Threads that work on a product, the caller's among them.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Computes a product. Of several callers at once, one has the pool; the others compute alone.
    ///
    /// # Safety
    /// All of the product's matrices are as large as it says, nobody else writes them meanwhile,
    /// and `out` overlaps none of the others.
    pub unsafe fn multiply(&self, product: &Product) {
        let mut alone = None;
        let mut held = match self.memory.try_lock() {
            Ok(memory) => Some(memory),
            // The scratch of a product that panicked is as good as any.
            Err(TryLockError::Poisoned(memory)) => Some(memory.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let pool = held.is_some().then_some(&self.pool);
        let memory = match &mut held {
            Some(memory) => &mut **memory,
            None => alone.insert(Memory::new(1)),
        };
        // SAFETY: the caller's promise.
        unsafe { self.run(product, memory, pool) };
    }

    /// # Safety
    /// As for `multiply`.
    unsafe fn run(&self, product: &Product, memory: &mut Memory, pool: Option<&Pool>) {
        let Product { x, weight, bias, out, tokens, inputs, outputs } = *product;
        if tokens == 0 || outputs == 0 {
            return;
        }
        let entry = Entry::of(self.instructions);
        let padded = inputs.next_multiple_of(entry.step);
        let arranged = room(&mut memory.x, tokens * padded);
        // SAFETY: the caller's promise, and there is room.
        unsafe { (entry.arrange)(x, tokens, inputs, arranged) };
        let inputs_of_tokens = Inputs { start: arranged, padded };
        let task = Shared(Task { weight, inputs, x: inputs_of_tokens, tokens, bias, out });
        let threads = memory.weights.len();
        let shares = Shares::new(outputs, threads, block_rows(entry, tokens, padded));
        let scratches = &memory.weights;
        let work = |thread: usize| {
            let mut scratch = scratches[thread].lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(rows) = shares.take(thread) {
                // SAFETY: the caller's promise; shares do not overlap, and so no output is
                // written by two threads.
                unsafe { (entry.block)(task.get(), rows.start, rows.len(), &mut scratch) };
            }
        };
        match pool {
            Some(pool) => pool.run(&work),
            None => work(0),
        }
    }
}

/// Rows that a thread takes at a time.
fn block_rows(entry: &Entry, tokens: usize, padded: usize) -> usize {
    let streamed = tokens <= entry.streamed_tokens;
    let numbers = if streamed { STREAMED_BLOCK_NUMBERS } else { WIDE_BLOCK_NUMBERS };
    (numbers / padded.max(1)).max(1).next_multiple_of(ROW_STEP)
}

/// A task that threads may look at together.
struct Shared(Task);

// SAFETY: threads read what its pointers name, except for the outputs, of which each thread
// writes its own.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> &Task {
        &self.0
    }
}
