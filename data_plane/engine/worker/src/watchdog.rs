//! Ends a run that passes its wall-clock or CPU limit: says so to the parent and ends the process, because nothing
//! inside can stop a guest that never calls out. Also sends output that waited too long.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::frames::Kind;
use crate::host_call::Counts;
use crate::limits::Budget;
use crate::messages::{Outcome, Resources};
use crate::output::Output;

/// Exit codes of the process. The parent reads them when no outcome came: the reason is then in the code.
pub mod exit {
    pub const PROTOCOL: i32 = 65;
    pub const WALL_LIMIT: i32 = 66;
    pub const CPU_LIMIT: i32 = 67;
    pub const LOAD_REFUSED: i32 = 68;
    pub const JAIL: i32 = 69;
    pub const ABORTED: i32 = 70;
    pub const ALARM: i32 = 71;
    pub const PANIC: i32 = 101;
}

/// While a guest runs the watchdog looks this often: at its clocks, and for output that waits.
const TICK: Duration = Duration::from_millis(50);
/// CPU time is looked at no more often than this, however little is left.
const MIN_TICK: Duration = Duration::from_millis(1);
/// How long a kill waits for the output lock, and then for the parent to take the outcome. Past it the exit code tells.
const LOCK_PATIENCE: Duration = Duration::from_millis(50);
const SEND_PATIENCE: Duration = Duration::from_millis(200);

/// The run the watchdog guards.
#[derive(Clone, Copy)]
struct Armed {
    run: u64,
    started: Instant,
    wall: Duration,
    cpu: Duration,
    cpu_at_start: Duration,
    cpu_clock: libc::clockid_t,
}

impl Armed {
    fn cpu_used(&self) -> Duration {
        read_clock(self.cpu_clock).saturating_sub(self.cpu_at_start)
    }
}

/// What the guest thread and the watchdog share.
pub struct Shared {
    output: Mutex<Output>,
    armed: Mutex<Option<Armed>>,
    pub budget: Arc<Budget>,
    pub calls: Counts,
    timer: OwnedFd,
}

impl Shared {
    /// # Errors
    /// The kernel gives no timer.
    pub fn new(output: Output) -> rustix::io::Result<Self> {
        Ok(Self {
            output: Mutex::new(output),
            armed: Mutex::new(None),
            budget: Arc::new(Budget::default()),
            calls: Counts::default(),
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
        })
    }

    /// The way to the parent. A panic ends the process, so the lock is never poisoned for anybody.
    pub fn output(&self) -> MutexGuard<'_, Output> {
        self.output
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn armed(&self) -> MutexGuard<'_, Option<Armed>> {
        self.armed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Guard the run that the calling thread begins now.
    pub fn arm(&self, run: u64, wall: Duration, cpu: Duration) {
        let cpu_clock = own_cpu_clock();
        let mut place = self.armed();
        *place = Some(Armed {
            run,
            started: Instant::now(),
            wall,
            cpu,
            cpu_at_start: read_clock(cpu_clock),
            cpu_clock,
        });
        // Under the lock, as in `tick`: a late tick for the run before must not put this run's timer off.
        self.set_timer(TICK.min(wall).min(cpu));
    }

    /// Stop guarding, and return wall and CPU time of the run. Call it with the output lock held, after the outcome
    /// has been sent: until then a parent that does not read counts as the run's time.
    pub fn disarm(&self) {
        // The timer is left alone: one spare tick is cheaper than a system call on each run.
        *self.armed() = None;
    }

    /// Wall and CPU time of the guarded run so far.
    #[must_use]
    pub fn elapsed(&self) -> (Duration, Duration) {
        self.armed()
            .map_or((Duration::ZERO, Duration::ZERO), |armed| {
                (armed.started.elapsed(), armed.cpu_used())
            })
    }

    /// Guard runs for as long as the process lives.
    pub fn watch(&self) -> ! {
        loop {
            let mut expirations = [0_u8; 8];
            match rustix::io::read(&self.timer, &mut expirations) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.tick(),
                Err(error) => panic!("the watchdog has lost its timer: {error}"),
            }
        }
    }

    fn tick(&self) {
        let Some(armed) = *self.armed() else { return };
        let (wall, cpu) = (armed.started.elapsed(), armed.cpu_used());
        if wall >= armed.wall {
            self.kill(armed, "wall_ms", exit::WALL_LIMIT);
        } else if cpu >= armed.cpu {
            self.kill(armed, "cpu_ms", exit::CPU_LIMIT);
        } else {
            if let Ok(mut output) = self.output.try_lock() {
                // A failed socket shows again when the run ends; there is nobody to tell now.
                let _ = output.flush_within(Duration::ZERO);
            }
            let next = TICK
                .min(armed.wall - wall)
                .min((armed.cpu - cpu).max(MIN_TICK));
            let place = self.armed();
            if place.is_some_and(|now| now.run == armed.run) {
                self.set_timer(next);
            }
        }
    }

    /// Say that the limit fired and end the process; return if the run has ended meanwhile.
    fn kill(&self, armed: Armed, limit: &'static str, code: i32) {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match self.output.try_lock() {
                Ok(mut output) => {
                    if self.armed().is_none_or(|now| now.run != armed.run) {
                        return;
                    }
                    let resources =
                        self.resources(&output, armed.started.elapsed(), armed.cpu_used());
                    let outcome = Outcome {
                        outcome: "killed",
                        limit: Some(limit),
                        resources: Some(resources),
                        ..Outcome::default()
                    };
                    output.say(Kind::Outcome, &outcome);
                    let _ = output.flush_within(SEND_PATIENCE);
                    end(code);
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(MIN_TICK)
                }
                Err(_) => end(code),
            }
        }
    }

    /// What the run has used, as far as it is known outside the guest's own state.
    #[must_use]
    pub fn resources(&self, output: &Output, wall: Duration, cpu: Duration) -> Resources {
        let (host_calls, host_call_bytes, host_call_us) = self.calls.used();
        Resources {
            host_calls,
            host_call_bytes,
            host_call_us,
            wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
            cpu_us: u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX),
            peak_memory_bytes: self.budget.peak_bytes(),
            table_elements: self.budget.table_elements(),
            stdout_bytes: output.stdout_bytes,
            stderr_bytes: output.stderr_bytes,
            ..Resources::default()
        }
    }

    fn set_timer(&self, after: Duration) {
        let value = Timespec::try_from(after.max(MIN_TICK)).expect("at most a tick");
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)
            .expect("a valid time on an own timer");
    }
}

/// End the process at once, without unwinding a guest that cannot be unwound.
pub fn end(code: i32) -> ! {
    // SAFETY: `_exit` takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// The CPU clock of the calling thread, readable from the other thread.
fn own_cpu_clock() -> libc::clockid_t {
    let mut clock = 0;
    // SAFETY: the thread is the calling one, so it exists, and `clock` is a valid place to write to.
    let result = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    assert_eq!(result, 0, "the kernel gives no CPU clock for this thread");
    clock
}

fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place to write to. The clock's thread lives as long as the process.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "the guest thread's CPU clock cannot be read");
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
