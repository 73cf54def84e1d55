//! Fuel: what a guest's instructions cost, and the code that counts it inside the guest.
//!
//! Each basic block is paid for as a whole when it begins, and a function, a loop's body or a bulk operation does not
//! begin on fuel that is spent. What is counted depends on the module, its input and [`COSTS`] alone: not on the machine,
//! not on the profile, not on how the compiler translates an instruction.
//!
//! Own code beside the engine's `wasmer-middlewares`, which cannot charge a bulk operation for its length, bakes the limit
//! into the artifact (so a start function would run on another limit than the order's), and checks in every block.

use std::fmt;
use std::sync::{Arc, OnceLock};

use wasmer::sys::wasmparser::{BlockType, Operator};
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer::{
    ExportIndex, GlobalInit, GlobalType, LocalFunctionIndex, ModuleInfo, Mutability, Type,
};

/// The name of the costs below. Another cost is another name: it is digested into every artifact and receipt.
pub const COSTS: &str = "fuel-1";
/// The export under which the host finds what is left, in place of any that the module itself names so.
pub const REMAINING: &str = "agentfactory:fuel";
/// The export of the module's start function, which the host calls itself once the fuel is there.
pub const START: &str = "agentfactory:start";

/// What a host call costs before it does anything: the way out of the guest and, mostly, into the kernel.
const HOST_CALL: u64 = 1_000;
/// Of one that walks a path, or waits for a disk.
const DEAR_HOST_CALL: u64 = 10_000;

const CALL: u64 = 4;
const INDIRECT_CALL: u64 = 8;
const DIVISION: u64 = 8;
/// A call of the engine's own code, for instance to copy within a memory. Its length comes on top.
const ENGINE_CALL: u64 = 100;
/// Growing asks the kernel. Its length is not charged: nothing is ever given back, so limits bound the sum.
const GROW: u64 = 500;
/// Of a bulk operation over memory: 8 bytes for one.
const BYTES_SHIFT: i64 = 3;
/// Of a bulk operation over tables: 8 for one element.
const ELEMENTS_SHIFT: i64 = 3;

/// What one instruction costs, apart from the length of a bulk operation.
fn cost(operator: &Operator<'_>) -> u64 {
    use Operator as O;
    match operator {
        O::Nop | O::Drop | O::Block { .. } | O::Loop { .. } | O::Else | O::End => 0,
        O::Call { .. } => CALL,
        O::CallIndirect { .. } => INDIRECT_CALL,
        O::MemoryGrow { .. } | O::TableGrow { .. } => GROW,
        O::MemoryFill { .. }
        | O::MemoryCopy { .. }
        | O::MemoryInit { .. }
        | O::TableFill { .. }
        | O::TableCopy { .. }
        | O::TableInit { .. }
        | O::DataDrop { .. }
        | O::ElemDrop { .. }
        | O::MemorySize { .. }
        | O::TableSize { .. } => ENGINE_CALL,
        O::TableGet { .. } | O::TableSet { .. } | O::RefFunc { .. } => INDIRECT_CALL,
        O::I32DivS
        | O::I32DivU
        | O::I32RemS
        | O::I32RemU
        | O::I64DivS
        | O::I64DivU
        | O::I64RemS
        | O::I64RemU
        | O::F32Div
        | O::F64Div
        | O::F32Sqrt
        | O::F64Sqrt
        | O::F32x4Div
        | O::F64x2Div
        | O::F32x4Sqrt
        | O::F64x2Sqrt
        | O::I64x2Mul => DIVISION,
        _ => 1,
    }
}

/// What a host call costs on top of the work that it does.
#[must_use]
pub fn host_call(name: &str) -> u64 {
    if name.starts_with("path_") || name.ends_with("sync") {
        DEAR_HOST_CALL
    } else {
        HOST_CALL
    }
}

/// By how many bits the length of a bulk operation is shifted to the right; negative is to the left.
fn length_shift(operator: &Operator<'_>) -> Option<i64> {
    match operator {
        Operator::MemoryFill { .. } | Operator::MemoryCopy { .. } | Operator::MemoryInit { .. } => {
            Some(BYTES_SHIFT)
        }
        Operator::TableFill { .. } | Operator::TableCopy { .. } | Operator::TableInit { .. } => {
            Some(-ELEMENTS_SHIFT)
        }
        _ => None,
    }
}

/// Whether what follows the instruction may be reached without it, or it may be left without reaching what follows.
fn ends_block(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::Else
            | Operator::End
            | Operator::Br { .. }
            | Operator::BrIf { .. }
            | Operator::BrTable { .. }
            | Operator::Return
            | Operator::Unreachable
    )
}

/// Indices of the two globals that are added to a module. Its own code was validated without them and cannot name them.
#[derive(Debug, Clone, Copy)]
struct Globals {
    remaining: u32,
    /// The length of a bulk operation while it is paid for.
    length: u32,
}

/// Adds the counting to one module; each compilation needs its own.
#[derive(Debug, Default)]
pub struct Fuel {
    globals: OnceLock<Globals>,
}

impl Fuel {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }
}

impl ModuleMiddleware for Fuel {
    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        let globals = *self
            .globals
            .get()
            .expect("the module comes before its functions");
        Box::new(Counting {
            globals,
            block: Vec::new(),
            cost: 0,
            checks: true,
        })
    }

    fn transform_module_info(&self, info: &mut ModuleInfo) -> Result<(), MiddlewareError> {
        let mut global = |kind, initial| {
            info.global_initializers.push(initial);
            info.globals.push(GlobalType::new(kind, Mutability::Var))
        };
        // Nothing is there to spend until the host puts it in.
        let remaining = global(Type::I64, GlobalInit::I64Const(0));
        let length = global(Type::I32, GlobalInit::I32Const(0));
        let globals = Globals {
            remaining: remaining.as_u32(),
            length: length.as_u32(),
        };
        info.exports
            .insert(REMAINING.to_owned(), ExportIndex::Global(remaining));
        info.exports.shift_remove(START);
        if let Some(start) = info.start_function.take() {
            info.exports
                .insert(START.to_owned(), ExportIndex::Function(start));
        }
        self.globals
            .set(globals)
            .map_err(|_| MiddlewareError::new("fuel", "one counts for one module only"))
    }
}

/// Counts in one function. An instruction is held back until its block has ended and its cost is known.
struct Counting<'a> {
    globals: Globals,
    block: Vec<Operator<'a>>,
    cost: u64,
    /// Whether the block begins a function or a loop's body.
    checks: bool,
}

impl fmt::Debug for Counting<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Counting")
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

impl<'a> Counting<'a> {
    fn check(&self) -> [Operator<'a>; 6] {
        [
            Operator::GlobalGet {
                global_index: self.globals.remaining,
            },
            Operator::I64Const { value: 0 },
            Operator::I64LtS,
            Operator::If {
                blockty: BlockType::Empty,
            },
            Operator::Unreachable,
            Operator::End,
        ]
    }

    /// `remaining -= amount`, where `amount` pushes one i64.
    fn charge(&self, amount: impl IntoIterator<Item = Operator<'a>>) -> Vec<Operator<'a>> {
        let remaining = self.globals.remaining;
        let mut code = vec![Operator::GlobalGet {
            global_index: remaining,
        }];
        code.extend(amount);
        code.extend([
            Operator::I64Sub,
            Operator::GlobalSet {
                global_index: remaining,
            },
        ]);
        code
    }

    /// Pays for the length on top of the stack, and leaves it there.
    fn charge_length(&self, shift: i64) -> Vec<Operator<'a>> {
        let length = self.globals.length;
        let amount = [
            Operator::GlobalGet {
                global_index: length,
            },
            Operator::I64ExtendI32U,
            Operator::I64Const { value: shift.abs() },
            if shift < 0 {
                Operator::I64Shl
            } else {
                Operator::I64ShrU
            },
        ];
        let mut code = vec![Operator::GlobalSet {
            global_index: length,
        }];
        code.extend(self.charge(amount));
        code.extend(self.check());
        code.push(Operator::GlobalGet {
            global_index: length,
        });
        code
    }

    fn finish_block(&mut self, state: &mut MiddlewareReaderState<'a>) {
        if self.cost > 0 {
            let value = i64::try_from(self.cost).unwrap_or(i64::MAX);
            state.extend(self.charge([Operator::I64Const { value }]));
        }
        if self.checks {
            state.extend(self.check());
        }
        state.extend(self.block.drain(..));
        self.cost = 0;
    }
}

impl<'a> FunctionMiddleware<'a> for Counting<'a> {
    fn feed(
        &mut self,
        operator: Operator<'a>,
        state: &mut MiddlewareReaderState<'a>,
    ) -> Result<(), MiddlewareError> {
        self.cost += cost(&operator);
        if let Some(shift) = length_shift(&operator) {
            let paid = self.charge_length(shift);
            self.block.extend(paid);
        }
        let (ends, begins_loop) = (
            ends_block(&operator),
            matches!(operator, Operator::Loop { .. }),
        );
        self.block.push(operator);
        if ends {
            self.finish_block(state);
            self.checks = begins_loop;
        }
        Ok(())
    }
}

/// What was used of `limit` when `remaining` is left: a block that is paid for as a whole may take more than there was.
#[must_use]
pub fn used(limit: u64, remaining: i64) -> u64 {
    u64::try_from(remaining).map_or(limit, |left| limit.saturating_sub(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_is_ever_used() {
        assert_eq!(used(10, 10), 0);
        assert_eq!(used(10, 0), 10);
        assert_eq!(used(10, -1), 10);
        assert_eq!(used(10, i64::MIN), 10);
    }

    #[test]
    fn every_way_round_a_loop_costs_something() {
        // A cycle goes back by a branch, into the body of a loop, which checks.
        for back in [
            Operator::Br { relative_depth: 0 },
            Operator::BrIf { relative_depth: 0 },
        ] {
            assert!(cost(&back) > 0 && ends_block(&back));
        }
    }
}
