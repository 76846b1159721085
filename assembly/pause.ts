// Where an operation may pause. A second build of the engine is made so that a pause unwinds the stack into PAUSE_BASE and
// returns to the caller of the export, and calling it again rewinds (Binaryen's asyncify); the first build never pauses.
// A paused operation is bytes in memory like all other state: it survives a snapshot.
//
// A pause is no yield: no lock is dropped, nothing is flushed or walked again.

import { reservedBlocks, reservedUppers } from './blocks';
import { ctl } from './control';
import { pause } from './env';
import { PAUSE_BASE, PAUSE_BYTES } from './layout';
import { EIO, STATUS_DESTROYED, STATUS_OPERATION_PAUSED } from './status';

/** The budget of visited entries is used up, inside a walk (KVM holds mmu_lock). */
export const PAUSE_BUDGET: u32 = 1;
/** Attributes: the range is zapped and the hull published, nothing stored yet (mmu_lock is free). */
export const PAUSE_ATTRIBUTES_ZAPPED: u32 = 2;
/** Attributes: the new values are stored, the invalidation not ended. */
export const PAUSE_ATTRIBUTES_STORED: u32 = 4;
/** guest_memfd: the range is zapped, its pages not yet freed. */
export const PAUSE_GMEM_ZAPPED: u32 = 8;
/** Memslot: the INVALID copy is installed and its sptes are zapped, the slot not yet removed. */
export const PAUSE_SLOT_INVALID: u32 = 16;
/** Notifier: between the start and the end of an event. */
export const PAUSE_NOTIFIER_STARTED: u32 = 32;

function stop(point: u32): void {
  store<u32>(PAUSE_BASE, <u32>PAUSE_BASE + 8);
  store<u32>(PAUSE_BASE, <u32>(PAUSE_BASE + PAUSE_BYTES), 4);
  ctl.heldUppers = reservedUppers;
  ctl.heldBlocks = <u32>reservedBlocks;
  ctl.paused = point;
  pause(point);
  ctl.paused = 0;
  ctl.heldUppers = 0;
  ctl.heldBlocks = 0;
}

/** Stops here if the caller asked for this point. What runs while another operation is paused never pauses itself. */
export function pausePoint(point: u32): void {
  if ((ctl.stopMask & point) == 0 || ctl.paused != 0) return;
  stop(point);
}

/** Stops because the budget is used up; the caller of the export gives a new one. */
export function pauseForBudget(gfn: u64): void {
  ctl.pauseGfn = <f64>gfn;
  stop(PAUSE_BUDGET);
}

/** Calls that change state pass here: an operation of the VM, or a vCPU's own (a fault). */
export const GATE_OPERATION: u32 = 0;
export const GATE_VCPU: u32 = 1;
/** A guest_memfd's own calls, and the close of any descriptor: a dead VM does not stop them. */
export const GATE_CLOSE: u32 = 2;
/** The host's own memory, which outlives the VM. */
export const GATE_HOST: u32 = 3;

/**
 * 0, or why no call may change state now: the VM is destroyed or dead (-EIO), an operation is paused under a lock that
 * the call needs, a fault holds mmu_lock for reading while its mirror entry is FROZEN.
 */
export function gate(kind: u32): i32 {
  if (kind == GATE_OPERATION || kind == GATE_VCPU) {
    if (ctl.destroyed != 0) return STATUS_DESTROYED;
    if (ctl.dead != 0) return -EIO;
  } else if (kind == GATE_CLOSE && ctl.destroyed == 2) {
    return STATUS_DESTROYED;
  }
  if (ctl.paused != 0 && (kind != GATE_VCPU || ctl.paused == PAUSE_BUDGET)) return STATUS_OPERATION_PAUSED;
  if (ctl.frozenFaults != 0 && kind != GATE_VCPU) return STATUS_OPERATION_PAUSED;
  return 0;
}
