//! How much a guest may allocate: one budget over all its linear memories, and a cap on tables. The engine asks here;
//! nothing else grants a page.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use wasmer::sys::vm::{
    LinearMemory, MemoryError, MemoryStyle, TableStyle, Trap, VMConfig, VMMemory,
    VMMemoryDefinition, VMTable, VMTableDefinition,
};
use wasmer::sys::{BaseTunables, Tunables};
use wasmer::{MemoryType, Pages, TableType, WASM_PAGE_SIZE};

use crate::image::{Image, Recording};
use crate::watchdog::{end, exit};

/// The guest's call stack, beside its linear memory.
pub const WASM_STACK_BYTES: usize = 1024 * 1024;
/// What a table without a declared maximum may grow to.
const UNBOUNDED_TABLE_ELEMENTS: u32 = 100_000;

/// What the running guest may still allocate. Shared by the guest thread and the watchdog.
#[derive(Debug, Default)]
pub struct Budget {
    max_bytes: AtomicU64,
    used_bytes: AtomicU64,
    peak_bytes: AtomicU64,
    refused: AtomicBool,
    max_table_elements: AtomicU32,
    table_elements: AtomicU32,
    refused_table: AtomicBool,
    repeatable: AtomicBool,
}

impl Budget {
    /// Begin a run: nothing used, nothing refused. A repeatable one never learns that the machine had no memory left.
    pub fn reset(&self, max_bytes: u64, max_table_elements: u32, repeatable: bool) {
        self.repeatable.store(repeatable, Ordering::Relaxed);
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.used_bytes.store(0, Ordering::Relaxed);
        self.peak_bytes.store(0, Ordering::Relaxed);
        self.refused.store(false, Ordering::Relaxed);
        self.max_table_elements
            .store(max_table_elements, Ordering::Relaxed);
        self.table_elements.store(0, Ordering::Relaxed);
        self.refused_table.store(false, Ordering::Relaxed);
    }

    /// The most the guest's memories held together.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// Elements (16 bytes each) that the guest's tables were granted together, their maxima included.
    pub fn table_elements(&self) -> u32 {
        self.table_elements.load(Ordering::Relaxed)
    }

    /// The limit for which a page or a table was refused, not because of the module's own maximum.
    pub fn refused_limit(&self) -> Option<&'static str> {
        if self.refused_table.load(Ordering::Relaxed) {
            return Some("table_elements");
        }
        self.refused
            .load(Ordering::Relaxed)
            .then_some("memory_bytes")
    }

    /// Only the guest thread allocates, so plain loads and stores suffice.
    fn take(&self, bytes: u64) -> bool {
        let used = self
            .used_bytes
            .load(Ordering::Relaxed)
            .saturating_add(bytes);
        if used > self.max_bytes.load(Ordering::Relaxed) {
            self.refuse();
            return false;
        }
        self.used_bytes.store(used, Ordering::Relaxed);
        self.peak_bytes.fetch_max(used, Ordering::Relaxed);
        true
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// The kernel refused what the budget allowed: the process' own bound, or a machine without memory.
    fn refuse_for_kernel(&self) {
        if self.repeatable.load(Ordering::Relaxed) {
            // Another machine would have had it, so this run has no result at all.
            end(exit::ABORTED);
        }
        self.refuse();
    }

    fn take_table(&self, table: &TableType) -> Result<TableType, String> {
        let used = self.table_elements.load(Ordering::Relaxed);
        let max = self.max_table_elements.load(Ordering::Relaxed);
        let left = max.saturating_sub(used);
        if table.minimum > left {
            self.refused_table.store(true, Ordering::Relaxed);
            return Err(format!("tables of more than {max} elements"));
        }
        let wanted = table
            .maximum
            .unwrap_or(UNBOUNDED_TABLE_ELEMENTS)
            .max(table.minimum);
        let granted = wanted.min(left);
        self.table_elements.store(used + granted, Ordering::Relaxed);
        Ok(TableType {
            maximum: Some(granted),
            ..*table
        })
    }
}

fn bytes_of(pages: Pages) -> u64 {
    u64::from(pages.0) * WASM_PAGE_SIZE as u64
}

/// What a module's own memory holds when it is fresh, and what becomes of the segments that are written to it then.
#[derive(Debug, Clone, Default)]
pub enum Fresh {
    /// Zeros; each segment is copied.
    #[default]
    Zeros,
    /// Zeros that no guest will see; each segment is kept.
    Recorded(Arc<Recording>),
    /// All segments already.
    Image(Arc<Image>),
}

/// A linear memory whose growth asks the budget first.
#[derive(Debug)]
struct CappedMemory {
    inner: VMMemory,
    budget: Arc<Budget>,
    fresh: Fresh,
    /// Segments that the image holds and the engine has yet to write. It writes them before any code of the guest runs;
    /// what comes after them is the guest's own `memory.init`.
    to_pass_over: AtomicUsize,
}

impl LinearMemory for CappedMemory {
    fn ty(&self) -> MemoryType {
        self.inner.ty()
    }

    fn size(&self) -> Pages {
        self.inner.size()
    }

    fn style(&self) -> MemoryStyle {
        self.inner.style()
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let bytes = bytes_of(delta);
        let size = self.inner.size();
        let declared = self.inner.ty().maximum;
        if declared.is_some_and(|maximum| size.0.saturating_add(delta.0) > maximum.0) {
            // The module's own maximum: the guest was told so before it asked, and no limit has fired.
            return Err(MemoryError::CouldNotGrow {
                current: size,
                attempted_delta: delta,
            });
        }
        if !self.budget.take(bytes) {
            return Err(MemoryError::CouldNotGrow {
                current: size,
                attempted_delta: delta,
            });
        }
        self.inner.grow(delta).inspect_err(|_| {
            self.budget.give_back(bytes);
            self.budget.refuse_for_kernel();
        })
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.inner.vmmemory()
    }

    unsafe fn initialize_with_data(&self, start: usize, data: &[u8]) -> Result<(), Trap> {
        if let Fresh::Recorded(recording) = &self.fresh {
            recording.take(start, data);
            return Ok(());
        }
        // One thread, as in the budget.
        if let Some(left) = self.to_pass_over.load(Ordering::Relaxed).checked_sub(1) {
            self.to_pass_over.store(left, Ordering::Relaxed);
            return Ok(());
        }
        // SAFETY: the caller's promise about the range is passed on unchanged.
        unsafe { self.inner.initialize_with_data(start, data) }
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }

    fn copy(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::MemoryNotShared)
    }
}

/// Grants memories and tables out of one budget.
pub struct CappedTunables {
    base: BaseTunables,
    budget: Arc<Budget>,
    fresh: Fresh,
    config: VMConfig,
}

impl CappedTunables {
    #[must_use]
    pub fn new(budget: Arc<Budget>, fresh: Fresh) -> Self {
        Self {
            base: BaseTunables::new(),
            budget,
            fresh,
            config: VMConfig {
                wasm_stack_size: Some(WASM_STACK_BYTES),
            },
        }
    }

    fn cap(
        &self,
        memory: &MemoryType,
        fresh: Fresh,
        make: impl FnOnce() -> Result<VMMemory, MemoryError>,
    ) -> Result<VMMemory, MemoryError> {
        let minimum = bytes_of(memory.minimum);
        if !self.budget.take(minimum) {
            return Err(MemoryError::Generic(format!(
                "the memory's minimum of {minimum} bytes passes the limit"
            )));
        }
        let inner = make()
            .and_then(|inner| begin(inner, &fresh))
            .inspect_err(|_| self.budget.refuse_for_kernel())?;
        let to_pass_over = match &fresh {
            Fresh::Image(image) => image.segments,
            Fresh::Zeros | Fresh::Recorded(_) => 0,
        };
        Ok(VMMemory(Box::new(CappedMemory {
            inner,
            budget: Arc::clone(&self.budget),
            fresh,
            to_pass_over: AtomicUsize::new(to_pass_over),
        })))
    }
}

/// Let a memory that was just made begin as it should.
fn begin(memory: VMMemory, fresh: &Fresh) -> Result<VMMemory, MemoryError> {
    let Fresh::Image(image) = fresh else {
        return Ok(memory);
    };
    // SAFETY: the definition belongs to the memory, which lives; nothing else has it yet.
    let definition = unsafe { memory.vmmemory().as_ref() };
    let base = NonNull::new(definition.base)
        .ok_or_else(|| MemoryError::Generic("a memory at no address".to_owned()))?;
    // SAFETY: the engine mapped this range for the memory, privately, and unmaps all of it when it drops the memory; on
    // an error it is dropped at once.
    unsafe { image.map_over(base, definition.current_length) }
        .map_err(|error| MemoryError::Region(format!("map the image: {error}")))?;
    Ok(memory)
}

impl Tunables for CappedTunables {
    fn memory_style(&self, memory: &MemoryType) -> MemoryStyle {
        self.base.memory_style(memory)
    }

    fn table_style(&self, table: &TableType) -> TableStyle {
        self.base.table_style(table)
    }

    fn create_host_memory(
        &self,
        memory: &MemoryType,
        style: &MemoryStyle,
    ) -> Result<VMMemory, MemoryError> {
        self.cap(memory, Fresh::Zeros, || {
            self.base.create_host_memory(memory, style)
        })
    }

    unsafe fn create_vm_memory(
        &self,
        memory: &MemoryType,
        style: &MemoryStyle,
        location: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        // SAFETY: the caller's promise about `location` is passed on unchanged.
        self.cap(memory, self.fresh.clone(), || unsafe {
            self.base.create_vm_memory(memory, style, location)
        })
    }

    fn create_host_table(&self, table: &TableType, style: &TableStyle) -> Result<VMTable, String> {
        self.base
            .create_host_table(&self.budget.take_table(table)?, style)
    }

    unsafe fn create_vm_table(
        &self,
        table: &TableType,
        style: &TableStyle,
        location: NonNull<VMTableDefinition>,
    ) -> Result<VMTable, String> {
        let table = self.budget.take_table(table)?;
        // SAFETY: the caller's promise about `location` is passed on unchanged.
        unsafe { self.base.create_vm_table(&table, style, location) }
    }

    fn vmconfig(&self) -> &VMConfig {
        &self.config
    }
}
